"""`python -m depin_nb.hub` (also `depin hub`): takes the state folder's lock, detaches if told to, then imports the heavy parts."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from depin_nb.core.amount import Amount, parse
from depin_nb.core.errors import AmountError
from depin_nb.hub.info import HubInfo, hold_home, log_file

IDLE_TIMEOUT_S = 3600.0
USER_BUDGET = "DEPIN_USER_BUDGET"


def budget(text: str) -> Amount:
    """An amount on the command line. Raises ArgumentTypeError."""
    try:
        return parse(text)
    except AmountError as error:
        raise argparse.ArgumentTypeError(error.message) from None


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="depin hub",
        description="Runs the hub of this state folder (DEPIN_HOME) in the foreground: scheduler, coordinator, ledger, status API.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback only)")
    parser.add_argument(
        "--idle-timeout",
        type=float,
        default=IDLE_TIMEOUT_S,
        metavar="S",
        help="ends after so many seconds without a client or an active run; 0 = never (default: %(default).0f)",
    )
    parser.add_argument(
        "--user-budget",
        type=budget,
        default=os.environ.get(USER_BUDGET) or None,
        metavar="$X",
        help=f"the most that one user's active runs may spend together, such as $1 (default: {USER_BUDGET}, else no limit)",
    )
    parser.add_argument("--detach", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--ready-fd", type=int, default=None, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 after an ordered end, 3 when another hub has the state folder, 1 when it could not start."""
    arguments = parser().parse_args(argv)
    if arguments.detach and os.fork():
        os._exit(0)
    lock = hold_home()
    if lock is None:
        _tell(arguments.ready_fd, "taken")
        print("depin hub: another hub is running in this state folder; `depin status` shows it", file=sys.stderr)
        return 3
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if not arguments.detach:  # detached, stderr is the log file already
        handlers.append(logging.FileHandler(log_file()))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=handlers)
    from depin_nb.hub.app import run

    def ready(info: HubInfo) -> None:
        _tell(arguments.ready_fd, "ready")
        if not arguments.detach:
            print(f"depin hub: ready at {info.scheduler}, dashboard {info.dashboard} (Ctrl-C ends it)", file=sys.stderr)

    try:
        run(ready, host=arguments.host, idle_timeout_s=arguments.idle_timeout or None, user_budget=arguments.user_budget)
    except Exception:
        logging.getLogger(__name__).exception("the hub ends")
        return 1
    # the lock ends with the process: as long as it is held, something of this hub is still there
    return 0


def _tell(descriptor: int | None, word: str) -> None:
    if descriptor is not None:
        with suppress(OSError):  # the one who waited may be gone
            os.write(descriptor, f"{word}\n".encode())
            os.close(descriptor)
