"""Executes the quickstart headless with a progress line, and prints what it came to. `make demo`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shutil
import sys
import threading
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--notebook", type=Path, default=HERE / "01_quickstart.ipynb")
    parser.add_argument("--out", type=Path, default=ROOT / ".demo", help="where the executed notebook and the hub's state go")
    args = parser.parse_args()
    home = args.out / "home"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    os.environ["DEPIN_HOME"] = str(home)
    os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
    executed = args.out / args.notebook.name
    started = time.monotonic()
    try:
        notebook = execute(args.notebook, executed, Line(home))
    finally:
        stop_hub()
    report(notebook, executed, time.monotonic() - started)
    return 0


def execute(source: Path, target: Path, line: Line):
    """Runs every cell; the executed notebook is written also when a cell fails."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.read(source, as_version=4)
    code = [index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]

    def on_cell_execute(cell, cell_index):
        line.begin(code.index(cell_index) + 1, len(code), cell.source.splitlines()[0])

    logging.getLogger("traitlets").setLevel(logging.ERROR)
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(source.parent)}}, on_cell_execute=on_cell_execute)
    client.extra_arguments = ["--log-level=ERROR"]
    try:
        client.execute()
    except CellExecutionError as error:
        line.close()
        print(error, file=sys.stderr)
        raise SystemExit(f"The quickstart failed; it is kept, with its outputs so far, in {target}") from None
    finally:
        line.close()
        nbformat.write(notebook, target)
    return notebook


class Line:
    """One line that says which cell runs, and what the run is at. In a log (no terminal), a line a cell."""

    def __init__(self, home: Path) -> None:
        self.home, self.text, self.terminal = home, "", sys.stdout.isatty()
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def begin(self, number: int, total: int, first: str) -> None:
        self.text = f"[{number}/{total}] {first[:60]}"
        self.show(self.text)

    def show(self, text: str) -> None:
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            print("\r" + text[:width].ljust(width), end="", flush=True)
        elif text == self.text:
            print(text, flush=True)

    def watch(self) -> None:
        while not self.closed.wait(0.5):
            run = self.run()
            if run and self.terminal:
                done = f"{run['iterations_done']}/{run['iterations_total'] or '?'}"
                loss = f", loss {run['loss'][-1][1]:.3f}" if run["loss"] else ""
                self.show(f"{self.text}  {done} iterations{loss}, {len(run['devices'])} devices")

    def run(self):
        """The hub's newest active run, None when there is none (or no hub yet)."""
        try:
            hub = json.loads((self.home / "hub.json").read_text())
            request = urllib.request.Request(hub["status_url"] + "/api/status", headers={"Authorization": f"Bearer {hub['status_token']}"})
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=2) as answer:
                runs = json.load(answer)["runs"]
            return next((r for r in reversed(runs) if r["state"] in ("running", "paused")), None)
        except (OSError, ValueError, KeyError):
            return None

    def close(self) -> None:
        if not self.closed.is_set():
            self.closed.set()
            self.thread.join()
            if self.terminal:
                self.show("")
                print("\r", end="")


def report(notebook, executed: Path, seconds: float) -> None:
    """What the run came to, from the journal, the chain and the notebook's own prints."""
    from depin_nb import attach, wiring

    run = attach(wiring.runs()[0]["run_id"])
    status = run.status
    check = wiring.verify(run.run_id)
    verdict = "the chain and the receipts agree" if check.ok else "THE CHAIN AND THE RECEIPTS DIFFER: " + "; ".join(check.problems)
    rows = [
        ("accuracy", f"{printed(notebook, 'before')} -> {printed(notebook, 'after')}"),
        ("devices", ", ".join(f"{d.name}: {d.iterations} iterations, {d.state}" for d in status.devices)),
        ("cost", f"{status.spent} of {status.budget}"),
        ("tokens paid", f"{status.tokens_paid} settled in {len(status.signatures)} transactions; {verdict}"),
        ("time", f"{status.elapsed_s:.1f} s of training, {seconds:.1f} s in all"),
        ("run", f"{run.run_id}, {status.iterations_done} iterations in {status.merges} merges"),
        ("notebook", os.path.relpath(executed)),
    ]
    print(f"\nQuickstart: {status.state}. Devices and the tokens' value are simulated.")
    for name, text in rows:
        print(f"  {name:<12} {text}")


def printed(notebook, tag: str) -> str:
    """The percentage that the cell with this tag printed."""
    for cell in notebook.cells:
        if tag in cell.metadata.get("tags", []):
            text = "".join(o.get("text", "") for o in cell.outputs)
            found = re.search(r"[\d.]+%", text)
            return found.group() if found else "?"
    return "?"


def stop_hub() -> None:
    """The notebook ends its hub itself; one that failed half-way may not have."""
    from depin_nb import wiring

    wiring.down()


if __name__ == "__main__":
    sys.exit(main())
