"""One *simulated* device as a process of its own, with a speed and a link that no profile of the package has. Used by the benchmarks.

python device.py SCHEDULER NAME --speed 0.25 --up 20 --down 50 --latency 40
SIGUSR1 cuts its connections to the hub, as a lost network does.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
from contextlib import suppress

PRICED_AS = "phone"  # the hub refuses a profile that its price book doesn't know


def cut(port: int) -> None:
    """Shuts every connection of this process to that port."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            connection = socket.socket(fileno=os.dup(int(name)))
            with connection:
                if connection.getpeername()[1] == port:
                    connection.shutdown(socket.SHUT_RDWR)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scheduler")
    parser.add_argument("name")
    parser.add_argument("--speed", type=float, default=1.0, help="relative to one core of this machine")
    parser.add_argument("--up", type=float, default=0.0, help="Mbit/s, 0 = as fast as it goes")
    parser.add_argument("--down", type=float, default=0.0, help="Mbit/s")
    parser.add_argument("--latency", type=float, default=0.0, help="round trip in ms")
    args = parser.parse_args()

    from depin_nb.backends import base
    from depin_nb.worker import agent

    known = dict(base.profiles())
    known[PRICED_AS] = base.DeviceProfile(
        PRICED_AS, PRICED_AS, True, speed=args.speed, up_mbit_s=args.up, down_mbit_s=args.down, latency_ms=args.latency
    )
    base.profiles = lambda: known  # type: ignore[assignment]
    port = int(args.scheduler.rpartition(":")[2])
    signal.signal(signal.SIGUSR1, lambda *_: cut(port))
    return agent.main([args.scheduler, "--name", args.name, "--profile", PRICED_AS, "--backend", "depin", "--of-hub"])


if __name__ == "__main__":
    raise SystemExit(main())
