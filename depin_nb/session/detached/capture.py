"""What a detached cell takes along: a copy of the names that it uses, and in the notebook a note of which objects they were."""

from __future__ import annotations

import ast
import linecache
import os
import pickle
import sys
import types
from dataclasses import dataclass
from typing import Any

import torch

from ...core.errors import RefusedLoop, ShipError
from ...loop.find.codes import names_of
from ...loop.find.syntax import read_first, stored_names
from ...loop.ship.capture import numeric_flags
from ...loop.ship.objects import Roots
from ...loop.whole.anchors import Anchors, anchors_of
from ...loop.whole.fingerprints import fingerprint
from ..options import TrainOptions
from .copying import Storages, Writer, pack

SHELL_NAMES = frozenset({"In", "Out", "get_ipython", "exit", "quit", "open", "_", "__", "___", "_ih", "_oh", "_dh"})
_OTHERS_OWN = ("DEPIN_HOME", "JPY_PARENT_PID", "JPY_SESSION_NAME", "PWD")  # of the kernel's process, not of the user's work


@dataclass
class Captured:
    """The notebook's side of a capture: its own objects by number, and digests of the names' values at that moment."""

    anchors: Anchors
    roots: Roots
    prints: dict[str, bytes]  # of every name that the cell reads or assigns and that was there
    stored: frozenset[str]  # names that the cell assigns
    generators: bytes


def needed_names(tree: ast.Module, space: dict[str, Any]) -> dict[str, Any]:
    """The notebook's names that the cell may read before it has assigned them, also through the notebook's own functions."""
    names = {n: space[n] for n in sorted(read_first(tree.body, set())) if n in space and n not in SHELL_NAMES}
    while True:
        functions = [f for f in anchors_of(names, space) if isinstance(f, types.FunctionType) and f.__globals__ is space]
        reached = {n for f in functions for n in names_of(f.__code__)} - SHELL_NAMES
        more = {n: space[n] for n in sorted(reached) if n in space and n not in names and not n.startswith("__depin_")}
        if not more:
            return names
        names.update(more)


def refuse_shell(tree: ast.Module) -> None:
    """Raises RefusedLoop at the first magic or shell command."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "get_ipython":
            raise RefusedLoop(
                f"line {node.lineno}: magics and shell commands need the notebook's own kernel",
                line=node.lineno,
                reason="magic",
                hint="Put it into a cell of its own, before this one.",
            )


def capture(tree: ast.Module, source: str, filename: str, space: dict[str, Any], options: TrainOptions) -> tuple[Captured, bytes]:
    """The names as they are now, and as bytes. Raises ShipError naming what can't be copied, RefusedLoop for a magic."""
    refuse_shell(tree)
    names = needed_names(tree, space)
    anchors = Anchors(anchors_of(names, space))
    roots = anchors.roots(names)
    stored = frozenset(stored_names(tree) | _defined(tree))
    generators = Roots().read({}, rng=True)
    env = {"__name__": "__main__", **names}
    tensors = [t for t in anchors.objects if isinstance(t, torch.Tensor) and t.is_leaf and t.grad is not None]
    whole = {
        "env": env,
        "anchors": anchors.objects,
        "roots": roots,
        "grads": [(t, t.grad) for t in tensors],
        "patched": [o for o in roots.optimizers.values() if "step" in vars(o)],
        "options": options,
        "stored": stored,
    }
    storages = Storages()
    try:
        graph = Writer(storages, space=space, env=env).graph(whole)
    except Exception as error:
        raise _unpicklable(names, space, error) from error
    data = pack(
        storages,
        {"names": graph},
        source=source,
        filename=filename,
        lines=_sources(),
        cwd=os.getcwd(),
        path=[p for p in sys.path if p],
        environ={k: v for k, v in os.environ.items() if k not in _OTHERS_OWN},
        flags=numeric_flags(),
        generators=generators.to_bytes(),
    )
    prints = {n: fingerprint(space[n]) for n in (*names, *(stored & space.keys()))}
    return Captured(anchors, roots, prints, stored, generators.to_bytes()), data


def _defined(tree: ast.Module) -> set[str]:
    """Names that `def`, `class` and `import` at the top of the cell bind."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(a.asname or a.name).partition(".")[0] for a in node.names}
    return found


def _unpicklable(names: dict[str, Any], space: dict[str, Any], error: Exception) -> ShipError:
    """Which of the names it was."""
    culprits = {}
    for name, value in names.items():
        try:
            Writer(Storages(), space=space, env={}).graph(value)
        except Exception as own:
            culprits[name] = own
    listed = ", ".join(f"`{name}` ({type(names[name]).__name__}: {_said(own)})" for name, own in culprits.items())
    first = min(culprits, default="")
    return ShipError(
        f"the cell uses {listed or 'something'} and no copy of it can be made" + ("" if culprits else f": {_said(error)}"),
        name=first,
        kind=type(names[first]).__name__ if culprits else "",
        hint="Make it inside the cell (open files, writers, progress bars, generators), or train without --detach.",
    )


def _said(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if isinstance(error, (pickle.PicklingError, TypeError)) and str(error) else type(error).__name__


def _sources() -> dict[str, str]:
    """Sources that only this process knows: of cells."""
    lines: dict[str, str] = {}
    for name, entry in list(linecache.cache.items()):
        if len(entry) == 4 and entry[1] is None and not os.path.exists(name):
            lines[name] = "".join(entry[2])
    return lines


def remember_sources(lines: dict[str, str]) -> None:
    for name, text in lines.items():
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)


def generators_moved(before: bytes) -> bool:
    """Whether somebody has drawn random numbers here since."""
    return Roots().read({}, rng=True).to_bytes() != before
