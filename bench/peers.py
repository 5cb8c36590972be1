"""The same work through others' frameworks: time to a held-out loss and bytes, at equal model, data, batch size and workers.

An MLP on scikit-learn's digits, two workers on this machine, one thread each, in turns. Step-wise: accelerate and Ray Train (DDP over
gloo), `sync` here. Local steps, as many between merges for each: Flower (simulation, FedAvg), torchft (LocalSGD), hivemind (averager),
`local` here. Seconds count from the first step, when everything runs (starting has its own column). Bytes: all that passed the loopback
of a network namespace of its own, from start to end, every process and header included (needs `unshare -n`, so root; else they aren't
counted).

The peers need an environment of their own, for their requirements don't fit together with this project's:
  python -m venv PEERS
  PEERS/bin/pip install torch==2.13.0 scikit-learn accelerate torchft 'ray[train]' hivemind
  PEERS/bin/pip install flwr     (where its pins can't be met: --no-deps, and its dependencies by hand)
Run: python bench/peers.py --python PEERS/bin/python [--quick]
What can't be imported there, or fails, is a row that says so.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from common.measure import CHECKOUT, in_turns, median, parser, report, say

WAYS = {  # shown: (script, module to import, way)
    "this package, sync": ("with_depin", "depin_nb", "sync"),
    "this package, local": ("with_depin", "depin_nb", "local"),
    "accelerate (DDP)": ("with_accelerate", "accelerate", "sync"),
    "Ray Train (DDP)": ("with_ray", "ray.train.torch", "sync"),
    "torchft (LocalSGD)": ("with_torchft", "torchft", "local"),
    "Flower (simulation)": ("with_flwr", "flwr.simulation", "local"),
    "hivemind (averager)": ("with_hivemind", "hivemind", "local"),
}
NAMED = ("accelerate", "flwr", "hivemind", "ray", "torchft")


@dataclass(frozen=True)
class Outcome:
    """`at_s`, `held_out`: after each epoch. `failed`: why there is nothing."""

    at_s: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    wire_bytes: int | None = None
    whole_s: float = 0.0
    failed: str = ""

    def seconds_to(self, loss: float) -> float | None:
        return next((s for s, v in zip(self.at_s, self.held_out, strict=True) if v <= loss), None)


def run(way: str, python: str, settings: dict, timeout_s: float) -> Outcome:
    script, module, kind = WAYS[way]
    interpreter = sys.executable if module == "depin_nb" else python
    asked = subprocess.run([interpreter, "-W", "ignore", "-c", f"import {module}"], capture_output=True, text=True, check=False)
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or ["no reason given"])[-1]
        return Outcome(failed=f"can't be imported: {last[:80]}")
    with tempfile.TemporaryDirectory(prefix="depin-peer-") as folder:
        out, wire, log = Path(folder, "out.json"), Path(folder, "bytes"), Path(folder, "log")
        bench = CHECKOUT / "bench" / "common"
        argv = [interpreter, str(bench / "peers" / f"{script}.py"), json.dumps({**settings, "way": kind, "out": str(out)})]
        if os.geteuid() == 0 and shutil.which("unshare"):
            argv = ["unshare", "-n", sys.executable, str(bench / "counted.py"), str(wire), *argv]
        path = os.pathsep.join([str(bench.parent), str(bench / "peers"), *filter(None, [os.environ.get("PYTHONPATH")])])
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
        start = time.monotonic()
        with log.open("wb") as said:
            process = subprocess.Popen(argv, stdout=said, stderr=said, env=env, start_new_session=True, cwd=folder)
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                return Outcome(failed=f"did not end within {timeout_s:.0f} s")
            finally:
                if process.poll() is None or not out.exists():
                    _end(process)
        whole_s = time.monotonic() - start
        if not out.exists():
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            say("\n".join(lines[-15:]))
            return Outcome(failed=f"failed: {lines[-1][:80] if lines else 'it said nothing'}")
        found = json.loads(out.read_text())
        return Outcome(found["at_s"], found["held_out"], int(wire.read_text()) if wire.exists() else None, whole_s)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends what the peer started: all of it is in one session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def main() -> int:
    options = parser(__doc__, repeats=3)
    options.add_argument("--python", default="", metavar="PATH", help="the interpreter of the peers' environment (see above)")
    options.add_argument("--only", nargs="+", choices=[*WAYS], help="these rows only")
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--epochs", type=int, default=12, help="epochs in all (default 12)")
    options.add_argument("--batch", type=int, default=32, help="samples a step and worker")
    options.add_argument("--hidden", type=int, default=512, help="units a layer (default 512: 0.3 M parameters)")
    options.add_argument("--inner-steps", type=int, default=7, help="steps between merges, where steps are local (default 7)")
    options.add_argument("--loss", type=float, default=0.15, help="the held-out loss that the time is measured to (default 0.15)")
    options.add_argument("--timeout", type=float, default=600.0, metavar="S", help="what one run may take in all")
    args = options.parse_args()
    settings = {"workers": args.workers, "epochs": args.epochs, "batch": args.batch, "hidden": args.hidden, "inner_steps": args.inner_steps}
    if args.quick:
        settings |= {"epochs": 2, "hidden": 32}
    ways = args.only or [*WAYS]
    python = shutil.which(args.python) if args.python else None
    if python is None:
        say("no environment for the peers: --python PATH names one, and --help says how to make it")
        ways = [way for way in ways if WAYS[way][1] == "depin_nb"]
    turn = dict.fromkeys(ways, 0)

    def of(way: str) -> Outcome:
        turn[way] += 1
        found = run(way, python or "", {**settings, "seed": turn[way] - 1}, args.timeout)
        say(f"{way}: {found.failed or f'held-out loss {found.held_out[-1]:.4f} after {found.at_s[-1]:.1f} s'}")
        return found

    found = in_turns({way: lambda way=way: of(way) for way in ways}, 1 if args.quick else args.repeats)
    rows = []
    for way, outcomes in found.items():
        good = [o for o in outcomes if not o.failed]
        if not good:
            rows.append([way, outcomes[-1].failed, *[""] * 5])
            continue
        reached = [s for o in good if (s := o.seconds_to(args.loss)) is not None]
        to_loss = f"{median(reached):.2f}" if len(reached) == len(good) else f"not reached in {len(good) - len(reached)} of {len(good)}"
        wire = [float(o.wire_bytes) for o in good if o.wire_bytes is not None]
        cells = [to_loss, f"{median([o.at_s[-1] for o in good]):.2f}", f"{median([o.held_out[-1] for o in good]):.4f}"]
        cells += [f"{median(wire) / 1e6:.2f}" if wire else "not counted", f"{median([o.whole_s - o.at_s[-1] for o in good]):.0f}"]
        rows.append([way, *cells, f"{len(good)} of {len(outcomes)}"])
    head = ["way", f"s to loss {args.loss}", "s in all", "held-out loss", "MB on the wire", "s to start and end", "runs"]
    sizes = (
        f"{args.workers} workers, {settings['epochs']} epochs of digits, {settings['hidden']} units a layer, {args.inner_steps} local steps"
    )
    return report(head, rows, [], quick=args.quick, notes=[sizes, versions(python)])


def versions(python: str | None) -> str:
    """Which versions of the peers were measured."""
    if python is None:
        return "peers: none (no --python)"
    code = "import importlib.metadata as m, json; print(json.dumps([(d.metadata['Name'], d.version) for d in m.distributions()]))"
    said = subprocess.run([python, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    return "peers: " + ", ".join(f"{name} {version}" for name, version in sorted(json.loads(said.stdout or "[]")) if name in NAMED)


if __name__ == "__main__":
    sys.exit(main())
