"""Runs a command in a network namespace of its own and says how many bytes passed its loopback: `unshare -n python counted.py OUT CMD ...`.

Every process that the command starts is counted, headers and acknowledgements included. Linux; `unshare -n` needs root.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import subprocess
import sys
from pathlib import Path

SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1


def main() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))
    code = subprocess.run(sys.argv[2:], check=False).returncode
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    Path(sys.argv[1]).write_text(line.partition(":")[2].split()[0])
    return code


if __name__ == "__main__":
    sys.exit(main())
