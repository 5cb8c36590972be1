"""Hands in reports: the change to the hub, or to the aggregator that its lease names. What went to an aggregator is kept until no longer
needed, so that it can be handed in again when the aggregator goes."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from ..core.errors import DepinError
from ..core.lease import Lease, Report
from .transfer import hand_in, put_parts

if TYPE_CHECKING:
    from .link import HubLink

log = logging.getLogger(__name__)

MAX_KEPT = 3  # changes; a round is closed long before


class Handing:
    """The reports of one worker. `kept`: leases of which the change is at an aggregator, and no merge is known of yet."""

    def __init__(self, hub: HubLink) -> None:
        self._hub = hub
        self._kept: OrderedDict[str, tuple[Lease, Report]] = OrderedDict()

    @property
    def kept(self) -> list[str]:
        return list(self._kept)

    async def hand_in(self, lease: Lease, report: Report) -> dict[str, Any]:
        """The hub's answer. Raises HubDied when the hub is gone; an aggregator that can't be reached costs only a detour."""
        if lease.aggregator and len(report.change) > self._hub.whole_bytes:
            if (about := await self._parked(lease, report)) is not None:
                said = {**report.to_dict(), "change": b"", "extra": {**report.extra, "sent": about, "at": lease.aggregator}}
                answer = await self._hub.call("depin_report", report=said)
                if answer.get("accepted"):
                    self._kept[lease.lease_id] = lease, report
                    while len(self._kept) > MAX_KEPT:
                        self._kept.popitem(last=False)
                if not answer.get("again"):
                    return answer
        return await hand_in(self._hub, report)

    async def _parked(self, lease: Lease, report: Report) -> dict[str, Any] | None:
        """The change at the lease's aggregator; None where that can't be."""
        peer = self._hub.peer(lease.aggregator)
        try:
            sent = await put_parts(peer, report)
        except DepinError as error:
            log.warning("%s can't take a change, which goes to the hub: %s", lease.aggregator, error.message)
            return None
        finally:
            await peer.close()
        return None if "refused" in sent else sent

    def drop(self, lease_id: str) -> None:
        """It is merged, or isn't wanted."""
        self._kept.pop(lease_id, None)

    def taken(self, lease_id: str) -> tuple[Lease, Report] | None:
        """What is to be handed in again; it isn't kept any longer."""
        return self._kept.pop(lease_id, None)
