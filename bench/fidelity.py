"""Every loop of the tests' catalogue through a real hub: what comes out, against the same cell run here.

exact         one worker, `sync`: weights, optimizers, names, printed text, warnings and generators are bit for bit the local ones
quality       three workers, `local`, 32 bits: mean training loss of the last quarter of iterations, over the local run's (1 = the same,
              less = better; n/a where the cell calls no scalar `backward()`); with one worker by necessity the reason's line stands there
prints        with three workers: "exact", "same lines" (other numbers), "other lines" (only where the cell's branches follow its numbers)
program       kB of code and names that the first run sent; a later pass sends them again where a name has changed (a list of losses, say)
data, again   kB of tensors and datasets from the kernel to a hub that has none of them, and in a second run

The cells are tiny (5 to 20 iterations a pass), so a third of the steps shows: the quality that is promised is tested on digits
(tests/functional/test_accuracy.py), over many more. The losses are those that `backward()` was called on, as the journal's curve has
them: the data that a cell trains with is its own, and none holds any out. A cell that fails, or takes longer than --limit seconds, says so
in its row. Needs a checkout: the cells are the tests'.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1] / "tests"
COLUMNS = ("loop", "exact", "quality", "prints", "program kB", "data kB", "again kB")
WIDTHS = (52, 14, 24, 12, 10, 8, 8)


class TookTooLong(BaseException):
    """A cell ran past its limit; no `except Exception` of a cell's own stops it."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PATTERN", default="", help="loops whose name holds this text")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--limit", metavar="SECONDS", type=int, default=60, help="most seconds for a cell's four runs (default 60)")
    options = parser.parse_args()
    sys.path[:0] = [str(TESTS / "unit" / "loop"), str(TESTS / "functional")]
    home = tempfile.mkdtemp(prefix="depin-bench-")
    os.environ["DEPIN_HOME"] = home
    import torch
    from catalogue import catalogue

    from depin_nb import wiring

    torch.set_num_threads(1)
    cells = {name: cell for name, cell in catalogue().items() if options.only in name}
    if not cells:
        print(f"no loop's name holds {options.only!r}", file=sys.stderr)
        return 2
    show = markdown if options.markdown else plain
    rows = []
    try:
        session = wiring.connect("local", workers=3)
        row(session, "", catalogue()["plain"], options.limit)  # the workers import torch
        show(COLUMNS)
        if options.markdown:
            show(tuple("---" for _ in COLUMNS))
        for name, cell in cells.items():
            rows.append(row(session, name, cell, options.limit))
            show(tuple(rows[-1]))
    finally:
        wiring.down()
        shutil.rmtree(home, ignore_errors=True)
    ratios = [float(r[2]) for r in rows if r[2].replace(".", "", 1).isdigit()]
    exact = sum(r[1] == "yes" for r in rows)
    middle = f"; quality: median {statistics.median(ratios):.3f}, worst {max(ratios):.3f} of {len(ratios)}" if ratios else ""
    print(f"\n{exact} of {len(rows)} exact{middle}")
    return 0 if exact == len(rows) else 1


def plain(columns: tuple[str, ...]) -> None:
    print("  ".join(f"{text[:width]:{width}}" for text, width in zip(columns, WIDTHS, strict=True)), flush=True)


def markdown(columns: tuple[str, ...]) -> None:
    print("| " + " | ".join(text.replace("|", "\\|") for text in columns) + " |", flush=True)


def row(session: Any, name: str, cell: Any, limit_s: int) -> list[str]:
    """One line of the table. Whatever goes wrong in it becomes its text."""
    found = [name, *["-"] * 6]
    with limited(limit_s):
        fill(session, cell, found)
    return found


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Ends what runs in it after so long, by SIGALRM."""

    def late(*_: object) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    except TookTooLong:
        print(f"  a cell took longer than {seconds} s", file=sys.stderr)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fill(session: Any, cell: Any, found: list[str]) -> None:
    from holding import exact, same_structure
    from running import Trained

    with losses() as noted:
        here = run_here(cell)
    for blob in (Path(os.environ["DEPIN_HOME"]) / "blobs").iterdir():
        blob.unlink()  # many cells share their data
    first = Trained(session, cell, strategy="sync", workers=1)
    found[1] = verdict(lambda: exact(here, first.ran, cell.ignored), "yes")
    again = Trained(session, cell, strategy="sync", workers=1)
    for place, part, trained in ((4, "program", first), (5, "data", first), (6, "data", again)):
        if trained.run is not None:
            found[place] = f"{trained.run.sent_bytes[part] / 1e3:,.1f}"
    three = Trained(session, cell, strategy="local", bits=32)
    found[2] = quality(noted, three)
    found[3] = "exact" if three.text == here[1] else verdict(lambda: same_structure(here, three.ran, cell.ignored), "same lines")
    if found[3].startswith("no:") and cell.by_value:
        found[3] = "other lines"


def run_here(cell: Any) -> Any:
    from inprocess import local

    return local(cell)


def verdict(check: Callable[[], None], good: str) -> str:
    try:
        check()
    except Exception as error:
        return f"no: {type(error).__name__} {str(error).splitlines()[0] if str(error) else ''}"[:60]
    return good


@contextlib.contextmanager
def losses() -> Iterator[list[float]]:
    """Notes each scalar that `backward` is called on, as a worker does."""
    import torch

    noted: list[float] = []
    backward = torch.Tensor.backward

    def noting(tensor: Any, *args: Any, **kwargs: Any) -> None:
        if tensor.numel() == 1:
            noted.append(float(tensor.detach()))
        backward(tensor, *args, **kwargs)

    torch.Tensor.backward = noting  # type: ignore[method-assign,assignment]
    try:
        yield noted
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]


def quality(local: list[float], trained: Any) -> str:
    """The last quarter's mean loss over the local one's; "one worker" where the analysis says so."""
    from running import row_of

    if trained.run is None:
        return f"no: {type(trained.error).__name__}" if trained.error is not None else "n/a"
    row = row_of(trained.run.run_id)
    if "in order" in row.strategy:
        return "one worker" + row.strategy.partition("in order")[2]
    curve = [value for _, value in row.losses]
    if not local or not curve:
        return "n/a"
    ours = statistics.mean(local[-max(1, len(local) // 4) :])
    theirs = statistics.mean(curve[-max(1, len(curve) // 4) :])
    return f"{theirs / ours:.3f}" if ours > 0 else "n/a"


if __name__ == "__main__":
    sys.exit(main())
