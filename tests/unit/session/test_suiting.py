"""What `auto` comes to once model, step and links are known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from depin_nb.core.lease import StrategyConfig
from depin_nb.core.state import State
from depin_nb.core.status import Device
from depin_nb.session.lessor import Lessor
from depin_nb.session.options import TrainOptions
from depin_nb.session.suiting import slowest, suit
from depin_nb.training.strategy import choose

BIG = State({"w": torch.zeros(4_000_000), "m": torch.zeros(9)}, {"w": "param", "m": "buffer"}, {})
SMALL = State({"w": torch.zeros(1000)}, {"w": "param"}, {})


def device(kind: str = "phone", up: float = 20.0, down: float = 50.0, latency: float = 40.0) -> Any:
    return SimpleNamespace(kind=kind, up_mbit_s=up, down_mbit_s=down, latency_ms=latency)


FLEET = [device(), device("laptop", 40, 100, 20)]


def found(state: State, *, passes: int | None = 100, step_s: float = 0.02, workers: list[Any] = FLEET, **options: Any):
    asked = TrainOptions(**options)
    requested = None if asked.strategy == "auto" else asked.strategy
    first, _ = choose(
        requested, workers=len(workers), backend="depin", total=300, solo_reason=None, options=asked.tuning()
    )  # fmt: skip
    entering: Any = SimpleNamespace(total=300, passes=passes)
    return suit(first, entering, asked, workers=workers, backend="depin", step_s=step_s, state=state)


def test_it_follows_model_length_and_step() -> None:
    config, why = found(BIG)
    assert (config.name, config.bits, config.down_bits) == ("sparse", 2, 4)
    assert "20 Mbit/s" in why
    assert "4,000,000 parameters" in why
    assert "as asked" not in why
    assert found(BIG, passes=2)[0].name == "local"
    assert found(BIG, passes=None)[0].name == "local"
    assert found(SMALL)[0].name == "local"
    assert found(SMALL, step_s=5.0)[0].name == "sync"
    assert found(BIG, inner_steps=7)[0].inner_steps == 7


@pytest.mark.parametrize("options", [{"strategy": "local"}, {"strategy": "sparse"}, {"bits": 8}])
def test_what_was_asked_for_stands(options: dict[str, Any]) -> None:
    assert found(BIG, **options) is None


def test_without_measured_links_the_first_choice_stands() -> None:
    assert found(BIG, workers=[device(), device(up=0.0)]) is None
    assert found(BIG, workers=[device("local"), device("local")]) is None
    solo: Any = StrategyConfig(solo=True)
    assert suit(solo, None, TrainOptions(), workers=FLEET, backend="depin", step_s=1, state=BIG) is None  # type: ignore[arg-type]


def test_the_slowest_link_counts_each_way() -> None:
    link = slowest([device(up=5, down=100), device(up=20, down=8, latency=90)])
    assert link is not None
    assert (link.up_bytes_s, link.down_bytes_s, link.latency_s) == (625e3, 1e6, 0.09)
    assert slowest([]) is None


def test_another_link_at_a_later_entry_may_mean_another_strategy() -> None:
    class Client:
        """A hub whose workers measured their links anew between two entries."""

        links: ClassVar[dict[str, dict[str, float]]] = {}

        def call(self, op: str, **request: Any) -> dict[str, Any]:
            assert op == "needs"
            return {"lacks": {}, "other": {}, "uncompiled": [], "links": self.links}

    def worker(name: str) -> Device:
        return Device(name, name, "phone", True, "idle", up_mbit_s=500.0, down_mbit_s=500.0, latency_ms=20.0)

    lessor = Lessor(
        Client(),  # type: ignore[arg-type]
        TrainOptions(),
        workers=[worker("a"), worker("b")],
        backend="depin",
        source="",
        on_status=lambda status: None,
        newest_kept=lambda run: BIG,
    )
    entering: Any = SimpleNamespace(total=300, passes=100, solo_reason=None)
    shipment: Any = SimpleNamespace(manifest=SimpleNamespace(packages={}))
    ways = []
    for up in (500.0, 5.0, 500.0):
        Client.links = {"b": {"up_mbit_s": up, "down_mbit_s": 500.0, "latency_ms": 20.0}}
        first = lessor.choose(entering)
        assert not lessor.admit(shipment)  # nobody left or came: only a link is another
        ways.append(lessor._suited(first, 0.02, BIG).name)
        assert f"links of {up:.0f} Mbit/s" in lessor._reason
    assert ways == ["local", "sparse", "local"]
