"""How long `import depin_nb` and `%load_ext depin_nb` take beside bare IPython. Run: `python bench/import_time.py [repeats]`.

Each figure is the median over fresh processes, in milliseconds of wall time. The limit of 150 ms is issue 2's.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

LIMIT_MS = 150
HEAVY = ("torch", "distributed", "anywidget", "solders", "numpy")
SCRIPT = """
import json, sys, time
started = time.perf_counter()
from IPython.core.interactiveshell import InteractiveShell
ip = InteractiveShell.instance()
shell = time.perf_counter()
import depin_nb
imported = time.perf_counter()
ip.run_line_magic("load_ext", "depin_nb")
loaded = time.perf_counter()
heavy = [name for name in {heavy!r} if name in sys.modules]
print(json.dumps([shell - started, imported - shell, loaded - imported, heavy]))
"""


def measure() -> tuple[list[float], list[str]]:
    """One fresh process: milliseconds for bare IPython, the import and load_ext, and the heavy modules found."""
    script = SCRIPT.format(heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    *seconds, heavy = json.loads(done.stdout.splitlines()[-1])
    return [s * 1000 for s in seconds], heavy


def main() -> int:
    """Prints the table; 1 when the limit is passed or something heavy was imported."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    measure()  # the first process compiles
    runs = [measure() for _ in range(repeats)]
    rows = [[ms[i] for ms, _ in runs] for i in range(3)]
    rows.append([a + b for a, b in zip(rows[1], rows[2], strict=True)])
    print(f"{'median of ' + str(repeats):34} {'ms':>8} {'min':>8} {'max':>8}")
    for name, values in zip(("bare IPython", "import depin_nb", "%load_ext depin_nb", "both"), rows, strict=True):
        print(f"{name:34} {statistics.median(values):8.1f} {min(values):8.1f} {max(values):8.1f}")
    heavy = sorted({name for _, names in runs for name in names})
    print(f"heavy modules imported: {', '.join(heavy) or 'none'}; limit {LIMIT_MS} ms")
    return int(bool(heavy) or statistics.median(rows[3]) > LIMIT_MS)


if __name__ == "__main__":
    raise SystemExit(main())
