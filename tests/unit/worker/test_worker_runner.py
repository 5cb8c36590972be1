"""The runner against a hub that is a dictionary and a hand-made half: what is fetched, kept, reported and dropped."""

import hashlib
import threading
from dataclasses import replace

import pytest
import torch

from depin_nb.core.errors import CodecError, HubDied, HubError
from depin_nb.core.lease import SOLO_SEATS, EntrySpec, Lease, StrategyConfig, Unit
from depin_nb.core.state import CARRIED, INNER, PARAM, STEP, State
from depin_nb.loop.halves.record import GangAborted, Outcome
from depin_nb.training.allreduce import decode_grads, encode_grads
from depin_nb.training.compress import decode_change
from depin_nb.training.downlink import digest_of, encode_step
from depin_nb.training.entering import inner_to_bytes
from depin_nb.worker.blobs import BlobCache
from depin_nb.worker.device import Pacer
from depin_nb.worker.link import Dropped, Go
from depin_nb.worker.residuals import Residuals
from depin_nb.worker.runner import LeaseRunner, failure, overlaid

PROGRAM = b"a program"
DIGEST = hashlib.sha256(PROGRAM).hexdigest()
SIZE = 600


class CountingHalf:
    """Adds 1 to every weight an iteration; its optimizer state counts iterations."""

    opened = 0

    def __init__(self, program, blob):
        type(self).opened += 1
        assert program == PROGRAM
        self.loads = []
        self.weight = torch.zeros(SIZE)
        self.exp_avg = torch.zeros(SIZE)
        self.step = torch.zeros(())
        self.on_iteration = lambda index: None

    def load(self, state):
        self.loads.append(state)
        self.weight = state.tensors["model/w"].clone()
        self.exp_avg = state.tensors.get("optimizer/0/exp_avg", torch.zeros(SIZE)).clone()
        self.step = state.tensors.get("optimizer/0/step", torch.zeros(())).clone()

    def state(self):
        tensors = {"model/w": self.weight.clone(), "optimizer/0/exp_avg": self.exp_avg.clone(), "optimizer/0/step": self.step.clone()}
        return State(tensors, {"model/w": PARAM, "optimizer/0/exp_avg": INNER, "optimizer/0/step": STEP})

    def run(self, lease, spec, *, go, paced, reduce):
        outcome = Outcome()
        for unit in lease.units:
            if not go():
                outcome.stopped = True
                break
            self.on_iteration(unit.index)
            if reduce is not None:
                (mean,) = reduce(unit.index, unit.samples, [torch.full((SIZE,), float(lease.rank))])
                self.weight += mean
            else:
                self.weight += 1
            self.exp_avg += 1
            self.step += 1
            outcome.done += 1
            outcome.logs.append(b"log")
            outcome.losses.append((unit.index, 0.5))
            outcome.seconds += 0.25
            paced(0.25)
        return outcome


class FakeHub:
    """Answers `ask` from dictionaries, and writes down what was asked."""

    def __init__(self, strategy):
        self.spec = EntrySpec(DIGEST, (), strategy, 100, 0, 1000, 0.1, 0)
        self.versions = {0: State({"model/w": torch.zeros(SIZE)}, {"model/w": PARAM})}
        self.asked = []
        self.reduced = []
        self.had = []
        self.steps = None  # what is answered to a worker that holds a version, where versions travel by steps
        self.reduce_answer = None
        self.goes_on = False  # whether the notebook left optimizer state alone
        self.inner = None  # what a worker without its own gets
        self.owned = []

    def ask(self, op, go, **request):
        if not go():
            raise Dropped
        self.asked.append(op)
        return getattr(self, op)(**request)

    def depin_entry(self, run, entry, own=False):
        self.owned.append(own)
        inner = {"own_inner": True} if own else {} if self.inner is None else {"inner": self.inner}
        return {"spec": self.spec.to_dict(), **(inner if self.goes_on else {})}

    def depin_blob(self, run, digest):
        return {"data": PROGRAM}

    def depin_version(self, run, version, have=None):
        self.had.append(have)
        if self.steps is not None and have is not None:
            return self.steps
        answer = {"state": self.versions[version].to_bytes()}
        return answer if self.steps is None else {**answer, "digest": digest_of(self.versions[version])}

    def depin_reduce(self, **request):
        self.reduced.append(request)
        return self.reduce_answer(request)


def lease_of(first, count, version, *, final=False, entry=0, **more):
    units = tuple(Unit(i, b"", 4) for i in range(first, first + count))
    return Lease(f"lease-{entry}-{first}", "run-1", entry, version, units, final, **more)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    CountingHalf.opened = 0


class Halves(list):
    """The halves that a runner opened."""

    def on_open(self, half):
        """Told of each."""


def runner_of(hub, pacer=None, residuals=None):
    halves = Halves()

    def opener(program, blob):
        halves.append(CountingHalf(program, blob))
        halves.on_open(halves[-1])
        return halves[-1]

    return LeaseRunner(hub.ask, pacer, opener=opener, residuals=residuals), halves


def test_solo_goes_on_in_its_living_objects():
    hub = FakeHub(StrategyConfig("sync", solo=True, bits=32))
    runner, halves = runner_of(hub)
    first = runner.run(lease_of(0, 3, 0), Go())
    assert (first.report.done, first.report.logs, first.report.seconds) == (3, (b"log",) * 3, 0.75)
    second = runner.run(lease_of(3, 2, 1), Go())
    assert hub.asked == ["depin_entry", "depin_blob", "depin_version"]
    assert len(halves) == 1
    assert len(halves[0].loads) == 1
    change = decode_change(second.report.change, first.state, max_bytes=1 << 20)
    assert torch.equal(change.values["model/w"], torch.full((SIZE,), 5.0))


def test_solo_loads_when_the_base_is_not_its_own_last_version():
    hub = FakeHub(StrategyConfig("sync", solo=True, bits=32))
    hub.versions[7] = State({"model/w": torch.full((SIZE,), 70.0)}, {"model/w": PARAM})
    runner, _ = runner_of(hub)
    assert runner.run(lease_of(0, 1, 0), Go()) is not None
    third = runner.run(lease_of(1, 1, 7), Go())
    change = decode_change(third.report.change, hub.versions[7], max_bytes=1 << 20)
    assert torch.equal(change.values["model/w"], torch.full((SIZE,), 71.0))


def test_solo_after_a_refused_report_starts_from_the_hubs_version():
    hub = FakeHub(StrategyConfig("sync", solo=True, bits=32))
    runner, halves = runner_of(hub)
    runner.refused(runner.run(lease_of(0, 3, 0), Go()))
    again = runner.run(lease_of(0, 3, 0), Go())
    assert len(halves) == 2
    assert torch.equal(again.state.tensors["model/w"], torch.full((SIZE,), 3.0))


def test_local_keeps_its_own_optimizer_state_but_takes_the_merged_weights():
    hub = FakeHub(StrategyConfig("local", solo=False, bits=4))
    hub.versions[1] = State({"model/w": torch.full((SIZE,), 10.0)}, {"model/w": PARAM})
    runner, halves = runner_of(hub)
    assert runner.run(lease_of(0, 3, 0), Go()) is not None
    second = runner.run(lease_of(3, 2, 1, final=True), Go())
    assert torch.equal(second.state.tensors["model/w"], torch.full((SIZE,), 12.0))
    assert second.state.tensors["optimizer/0/step"].item() == 5
    assert len(halves) == 1
    change = decode_change(second.report.change, hub.versions[1], max_bytes=1 << 20)
    assert change.kinds["optimizer/0/exp_avg"] == INNER  # the final lease sends it
    assert change.deltas["model/w"].mean().item() == pytest.approx(2.0, rel=0.2)


def test_optimizer_state_goes_on_in_the_next_entry_where_the_notebook_left_it_alone():
    hub = FakeHub(StrategyConfig("local", solo=False, bits=4))
    hub.versions[1] = State({"model/w": torch.full((SIZE,), 10.0)}, {"model/w": PARAM})
    runner, _ = runner_of(hub)
    assert runner.run(lease_of(0, 3, 0, entry=1), Go()) is not None
    hub.goes_on = True
    second = runner.run(lease_of(0, 2, 1, entry=2), Go())
    assert second.state.tensors["optimizer/0/step"].item() == 5
    assert second.state.tensors["optimizer/0/exp_avg"].eq(5).all()
    hub.goes_on = False
    third = runner.run(lease_of(0, 2, 1, entry=3), Go())
    assert third.state.tensors["optimizer/0/step"].item() == 2
    assert hub.owned == [False, True, True]


def test_who_has_no_optimizer_state_of_its_own_takes_the_newest():
    hub = FakeHub(StrategyConfig("local", solo=False, bits=4))
    inner = {"optimizer/0/exp_avg": torch.full((SIZE,), 7.0), "optimizer/0/step": torch.tensor(7.0)}
    hub.inner = inner_to_bytes(State(inner, {"optimizer/0/exp_avg": INNER, "optimizer/0/step": STEP}))
    hub.goes_on = True
    hub.versions[9] = hub.versions[0]
    runner, _ = runner_of(hub)
    first = runner.run(lease_of(0, 2, 9, entry=4), Go())
    assert first.state.tensors["optimizer/0/step"].item() == 9
    assert first.state.tensors["optimizer/0/exp_avg"].eq(9).all()
    runner.run(lease_of(0, 2, 9, entry=6), Go())  # it had no lease of entry 5: what it holds is of long ago
    assert hub.owned == [False, False]


def test_local_sends_no_optimizer_state_before_the_end():
    hub = FakeHub(StrategyConfig("local", solo=False, bits=4))
    runner, _ = runner_of(hub)
    first = runner.run(lease_of(0, 3, 0), Go())
    change = decode_change(first.report.change, hub.versions[0], max_bytes=1 << 20)
    assert "optimizer/0/exp_avg" not in change.kinds


def test_a_refused_local_lease_leaves_no_trace_in_the_optimizer_state():
    hub = FakeHub(StrategyConfig("local", solo=False, bits=4))
    runner, _ = runner_of(hub)
    assert runner.run(lease_of(0, 3, 0), Go()) is not None
    runner.refused(runner.run(lease_of(3, 50, 0), Go()))
    third = runner.run(lease_of(3, 2, 0), Go())
    assert third.state.tensors["optimizer/0/step"].item() == 5


def test_a_worker_that_starts_again_sends_what_its_earlier_changes_left_out(tmp_path):
    hub = FakeHub(StrategyConfig("sparse", solo=False, bits=2))
    noise = torch.randn(9000, generator=torch.Generator().manual_seed(0))
    hub.versions[0] = State({"model/w": torch.zeros(9000)}, {"model/w": PARAM})

    def started():
        runner, halves = runner_of(hub, residuals=Residuals(tmp_path))
        halves.on_open = lambda half: setattr(half, "on_iteration", lambda index: half.weight.add_(noise - 1))
        return runner

    runner = started()
    sent = []
    for first in range(3):
        finished = runner.run(lease_of(first, 1, 0), Go())
        sent.append(decode_change(finished.report.change, hub.versions[0], max_bytes=1 << 20).deltas["model/w"] != 0)
        if first == 1:
            runner.refused(finished)  # counts for nothing
        else:
            runner.accepted(finished)
        runner = started()
    assert torch.equal(sent[1], sent[2])
    assert not bool((sent[0] & sent[2]).all())
    plain = LeaseRunner(hub.ask, opener=runner._opener)
    anew = decode_change(plain.run(lease_of(5, 1, 0), Go()).report.change, hub.versions[0], max_bytes=1 << 20)
    assert torch.equal(anew.deltas["model/w"] != 0, sent[0])


def test_a_lease_that_is_not_wanted_any_more_ends_without_a_report():
    hub = FakeHub(StrategyConfig("sync", solo=True))
    runner, halves = runner_of(hub)
    assert runner.run(lease_of(0, 1, 0), Go()) is not None
    go = Go()
    halves[0].on_iteration = lambda index: go.stop() if index == 4 else None
    assert runner.run(lease_of(1, 50, 1), go) is None
    hub.versions[1] = State({"model/w": torch.full((SIZE,), 1.0)}, {"model/w": PARAM})
    again = runner.run(lease_of(1, 1, 1), Go())
    assert torch.equal(again.state.tensors["model/w"], torch.full((SIZE,), 2.0))


def test_a_stop_during_the_fetch_ends_the_lease():
    hub = FakeHub(StrategyConfig("sync", solo=True))
    runner, halves = runner_of(hub)
    go = Go()
    go.stop()
    assert runner.run(lease_of(0, 1, 0), go) is None
    assert halves == []


def test_gang_averages_through_the_hub():
    hub = FakeHub(StrategyConfig("sync", solo=False))
    hub.reduce_answer = lambda request: {"data": encode_grads([torch.full((SIZE,), 0.5)])}
    runner, _ = runner_of(hub)
    lease = lease_of(0, 2, 0, gang="g1", rank=1, size=2, groups=(0, 1), group_samples=(8, 8), group_size=(2, 2))
    finished = runner.run(lease, Go())
    assert torch.equal(finished.state.tensors["model/w"], torch.full((SIZE,), 1.0))
    assert [(r["gang"], r["rank"], r["step"], r["weight"]) for r in hub.reduced] == [("g1", 1, 0, 4), ("g1", 1, 1, 4)]
    assert torch.equal(decode_grads(hub.reduced[0]["data"], max_bytes=1 << 20)[0], torch.ones(SIZE))


@pytest.mark.parametrize(
    "answer",
    [
        lambda request: {"abort": "a rank was lost"},
        lambda request: {"data": b"nonsense"},
        lambda request: {"data": encode_grads([torch.zeros(3)])},
        lambda request: (_ for _ in ()).throw(HubDied("gone")),
    ],
    ids=["abort", "garbage", "shape", "lost"],
)
def test_a_gang_that_fails_drops_the_lease_and_never_looks_like_the_users_error(answer):
    hub = FakeHub(StrategyConfig("sync", solo=False))
    hub.reduce_answer = answer
    runner, _ = runner_of(hub)
    seen = []
    original = CountingHalf.run

    def noting(self, lease, spec, **kwargs):
        try:
            return original(self, lease, spec, **kwargs)
        except BaseException as error:
            seen.append(type(error))
            raise

    CountingHalf.run = noting
    try:
        assert runner.run(lease_of(0, 2, 0, gang="g", rank=0, size=2, groups=(0, 1)), Go()) is None
    finally:
        CountingHalf.run = original
    assert seen == [GangAborted]


def test_solo_change_carries_what_iterations_hand_on():
    hub = FakeHub(StrategyConfig("sync", solo=True, bits=32))
    runner, halves = runner_of(hub)
    lease = lease_of(0, 1, 0)
    assert runner.run(lease, Go()) is not None
    half = halves[0]
    plain = half.state
    half.state = lambda: _with_carried(plain())
    finished = runner.run(lease_of(1, 1, 1), Go())
    assert decode_change(finished.report.change, finished.state, max_bytes=1 << 20).kinds["names/h"] == CARRIED


def _with_carried(state):
    state.tensors["names/h"], state.kinds["names/h"] = torch.ones(2), CARRIED
    return state


def test_what_breaks_before_the_first_iteration_is_raised_and_then_reported():
    hub = FakeHub(StrategyConfig("sync", solo=True))

    def opener(program, blob):
        raise ModuleNotFoundError("No module named 'theirs'")

    runner = LeaseRunner(hub.ask, opener=opener)
    with pytest.raises(ModuleNotFoundError) as caught:
        runner.run(lease_of(0, 1, 0), Go())
    report = failure(lease_of(0, 1, 0), caught.value)
    assert report.done == 0
    assert "theirs" in report.extra["failed"]


def test_overlay_leaves_out_slots_that_no_longer_fit():
    base = State({"a": torch.zeros(2), "o": torch.zeros(2)}, {"a": PARAM, "o": INNER})
    inner = State({"o": torch.ones(3), "n": torch.ones(1)}, {"o": INNER, "n": INNER})
    merged = overlaid(base, inner)
    assert torch.equal(merged.tensors["o"], torch.zeros(2))
    assert torch.equal(merged.tensors["n"], torch.ones(1))
    assert set(base.tensors) == {"a", "o"}


def test_versions_come_by_steps_from_the_one_that_is_held():
    hub = FakeHub(StrategyConfig("local", solo=False, bits=4, down_bits=4))
    target = State({"model/w": torch.randn(SIZE)}, {"model/w": PARAM})
    data, after = encode_step(hub.versions[0], target, bits=4)
    hub.steps = {"version": 1, "steps": [data], "digest": digest_of(after)}
    runner, halves = runner_of(hub)
    runner.accepted(runner.run(lease_of(0, 1, 0), Go()))
    second = runner.run(lease_of(1, 1, 1), Go())
    assert hub.had == [None, {"version": 0, "digest": digest_of(hub.versions[0])}]
    assert torch.equal(halves[0].loads[1].tensors["model/w"], after.tensors["model/w"])
    change = decode_change(second.report.change, after, max_bytes=1 << 20)
    assert torch.allclose(change.deltas["model/w"], torch.ones(SIZE), atol=1e-5)
    hub.steps = {"version": 1, "steps": [], "digest": digest_of(after)}
    runner.run(lease_of(2, 1, 1), Go())
    assert torch.equal(halves[0].loads[2].tensors["model/w"], after.tensors["model/w"])


@pytest.mark.parametrize("wrong", ["digest", "step", "garbage"])
def test_steps_that_lead_elsewhere_are_found_out_and_the_version_comes_whole(wrong):
    hub = FakeHub(StrategyConfig("local", solo=False, bits=4, down_bits=4))
    hub.versions[1] = State({"model/w": torch.randn(SIZE)}, {"model/w": PARAM})
    other = State({"model/w": torch.ones(SIZE)}, {"model/w": PARAM})
    data, after = encode_step(other if wrong == "step" else hub.versions[0], hub.versions[1], bits=4)
    data = b"DPN1 nonsense" if wrong == "garbage" else data
    hub.steps = {"version": 1, "steps": [data], "digest": bytes(16) if wrong == "digest" else digest_of(after)}
    runner, halves = runner_of(hub)
    runner.accepted(runner.run(lease_of(0, 1, 0), Go()))
    runner.accepted(runner.run(lease_of(1, 1, 1), Go()))
    assert [have and have["version"] for have in hub.had] == [None, 0, None]
    assert torch.equal(halves[0].loads[1].tensors["model/w"], hub.versions[1].tensors["model/w"])
    hub.steps = None
    runner.run(lease_of(2, 1, 1), Go())
    assert hub.had[-1] == {"version": 1, "digest": digest_of(hub.versions[1])}  # held again


def test_two_seats_are_kept_and_the_oldest_goes():
    hub = FakeHub(StrategyConfig("local", solo=False))
    runner, halves = runner_of(hub)
    for entry in (0, 1, 0, 2, 0, 1):
        assert runner.run(lease_of(0, 1, 0, entry=entry), Go()) is not None
    assert len(halves) == 4  # 0, 1, 2, and 1 again
    assert hub.asked.count("depin_blob") == 1


def test_solo_runs_keep_their_objects_while_they_take_turns():
    hub = FakeHub(StrategyConfig())
    runner, halves = runner_of(hub)

    def lease(run: str, version: int, entry: int = 1) -> Lease:
        return replace(lease_of(version, 1, version, entry=entry), run_id=run)

    runs = [f"run-{i}" for i in range(SOLO_SEATS)]
    for version in (0, 1):
        for name in runs:
            assert runner.run(lease(name, version), Go()) is not None
    assert len(halves) == SOLO_SEATS, "the second lease of each goes on in its living objects"
    assert runner.run(lease("run-0", 0, entry=2), Go()) is not None  # its first entry is over
    for i in range(2 * SOLO_SEATS - 1):
        assert runner.run(lease(f"later-{i}", 0), Go()) is not None
    assert runner.run(lease("run-0", 1, entry=2), Go()) is not None
    with pytest.raises(HubError, match="make room"):
        runner.run(lease("run-1", 2), Go())


def test_blobs_are_checked_and_the_least_used_goes_first():
    digests = [hashlib.sha256(bytes([n]) * 100).hexdigest() for n in range(3)]
    fetched = []

    def get(n):
        return cache.get(digests[n], lambda: fetched.append(n) or bytes([n]) * 100)

    cache = BlobCache(max_bytes=200)
    for n in (0, 1, 0, 2, 0, 1):
        assert get(n) == bytes([n]) * 100
    assert fetched == [0, 1, 2, 1]
    with pytest.raises(CodecError):
        cache.get(digests[2], lambda: b"something else")


def test_pacer_slows_down_to_the_profiles_speed():
    pacer = Pacer(0.25)
    assert pacer.wait_s(1.0) == pytest.approx(3.0)
    assert Pacer(1.0).wait_s(1.0) == 0.0


def test_pacer_counts_processor_time_on_a_machine_that_is_shared():
    # two seconds on the clock, one on a core: a device of half the speed needs two
    assert Pacer(0.5).wait_s(2.0, 1.0) == pytest.approx(0.0)
    assert Pacer(0.5).wait_s(1.5, 1.0) == pytest.approx(0.5)


def test_pacer_saves_up_waits_that_are_too_short_to_keep():
    pacer = Pacer(0.5)
    waits = [pacer.wait_s(0.0004) for _ in range(5)]
    assert waits[:2] == [0.0, 0.0]
    assert sum(waits) == pytest.approx(0.0012)


def test_go_wakes_who_waits():
    go = Go()
    waiting = threading.Thread(target=go.wait, args=(60.0,))
    waiting.start()
    go.stop()
    waiting.join(10.0)
    assert not waiting.is_alive()
    assert not go()
