"""Hands in a report: the change to the hub, or to the aggregator that its lease names."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ..core.errors import DepinError
from ..core.lease import Lease, Report
from . import transfer

if TYPE_CHECKING:
    from .link import HubLink

log = logging.getLogger(__name__)


async def hand_in(hub: HubLink, lease: Lease, report: Report) -> tuple[dict[str, Any], bool]:
    """`(the hub's answer, whether the change is at an aggregator)`: such a one is to be kept, since it can go with the aggregator.
    Raises HubDied when the hub is gone; an aggregator that can't be reached costs only a detour."""
    if lease.aggregator and len(report.change) > hub.whole_bytes and (about := await _parked(hub, lease, report)) is not None:
        said = {**report.to_dict(), "change": b"", "extra": {**report.extra, "sent": about, "at": lease.aggregator}}
        answer = await hub.call("depin_report", report=said)
        if not answer.get("direct"):
            return answer, bool(answer.get("accepted"))
    return await transfer.hand_in(hub, report), False


async def _parked(hub: HubLink, lease: Lease, report: Report) -> dict[str, Any] | None:
    """The change at the lease's aggregator; None where that can't be."""
    peer = hub.peer(lease.aggregator)
    try:
        sent = await transfer.put_parts(peer, report)
    except DepinError as error:
        log.warning("%s can't take a change, which goes to the hub: %s", lease.aggregator, error.message)
        return None
    finally:
        await peer.close()
    return None if "refused" in sent else sent
