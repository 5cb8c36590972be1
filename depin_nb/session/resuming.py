"""What a resumed run did already, read from the hub as the replay asks for it."""

from __future__ import annotations

from typing import Any

from ..core.lease import DRAWN_BYTES, EntrySpec
from ..core.state import State
from ..loop.contract import Part
from ..loop.resume import Chapter
from .reconnecting import Reconnecting


class Journalled:
    """`loop.resume.Past` of the run `run_id`, which goes on as `going_on`; `told`: the loop entries as `depin_run_start` answers them."""

    def __init__(self, client: Reconnecting, run_id: str, going_on: str, told: list[dict[str, Any]]) -> None:
        self.run_id = run_id
        self._client, self._going_on = client, going_on
        self._chapters = {c["number"]: _chapter(c) for c in told}

    @property
    def last(self) -> int:
        return max(self._chapters, default=0)

    def chapter(self, number: int) -> Chapter | None:
        return self._chapters.get(number)

    def parts(self, number: int, after: int) -> tuple[Part, ...]:
        answer = self._client.call("replay", run=self._going_on, number=number, after=after)
        return tuple(Part(p["first"], tuple(p["logs"]), p["left"], p["exit"], _cut(p["drawn"])) for p in answer["leases"])

    def end_state(self, number: int) -> State:
        return State.from_bytes(self._client.call("kept", run=self._going_on, number=number)["state"])


def _chapter(told: dict[str, Any]) -> Chapter:
    return Chapter(
        number=told["number"],
        header=told["header"],
        where=told["where"],
        spec=EntrySpec.from_dict(told["spec"]),
        generators=told["generators"],
        merged=told["merged"],
        complete=told["complete"],
    )


def _cut(digests: bytes) -> tuple[bytes, ...]:
    return tuple(digests[i : i + DRAWN_BYTES] for i in range(0, len(digests), DRAWN_BYTES))
