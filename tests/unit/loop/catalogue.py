"""Every training cell of the tests, each run three ways: here, with one worker `sync` (exact), with three workers `local`."""

import importlib
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cell:
    """An ordinary cell and what it needs. `setup` runs before it and makes the names.

    `solo`: a piece of the reason why one worker must do it ("" = several may). `by_value`: printed lines depend on the numbers themselves,
    so that several workers may print others. `files`: modules beside the notebook, name -> source. `ignored`: names that can't be
    compared (clocks, files).
    """

    code: str
    setup: str = ""
    solo: str = ""
    by_value: bool = False
    files: dict[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()


SECTIONS = ("cells_where", "cells_over", "cells_with", "cells_beside", "cells_carried", "cells_found")
FIRST_SOLO = {
    "break on the running mean": "running",
    "best inside": "`best`",
    "gradient accumulation": "gradients",
    "hidden state": "`h`",
}
FIRST_BY_VALUE = {"break on the running mean", "best inside"}
FIRST_IGNORED = {"an open file, a lambda, time": frozenset({"log", "start", "took"})}


def catalogue():
    """All cells by name: those of the first section share one setup; the others are in a module each (`CELLS: dict[str, Cell]`)."""
    from cells import CELLS, SETUP

    found = {
        name: Cell(code, SETUP, FIRST_SOLO.get(name, ""), name in FIRST_BY_VALUE, ignored=FIRST_IGNORED.get(name, frozenset()))
        for name, code in CELLS.items()
    }
    for section in SECTIONS:
        try:
            module = importlib.import_module(section)
        except ModuleNotFoundError as error:
            if error.name != section:
                raise
            continue
        twice = found.keys() & module.CELLS.keys()
        assert not twice, twice
        found.update(module.CELLS)
    return found
