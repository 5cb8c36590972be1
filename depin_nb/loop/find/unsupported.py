"""What neither half of a body could run: refused with its line, the reason, and what works instead."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from ...core.errors import RefusedLoop

SINGLE = "`%%depin train --single` runs the whole cell on one remote worker"
_REFUSED: dict[type[ast.AST], tuple[str, str]] = {
    ast.Await: ("`await` can't run on a worker", "Call it before the loop."),
    ast.Yield: ("a `yield` in the loop's body can't run on a worker", "Yield after the loop, once an epoch."),
    ast.YieldFrom: ("a `yield` in the loop's body can't run on a worker", "Yield after the loop, once an epoch."),
    ast.AsyncFor: ("`async for` can't run on a worker", "Iterate with an ordinary `for`."),
    ast.AsyncWith: ("`async with` can't run on a worker", "Open it before the loop."),
    ast.AsyncFunctionDef: ("an async function in the loop's body can't run on a worker", "Define it before the loop."),
    ast.ClassDef: ("a class defined in the loop's body can't be split", "Define it before the loop."),
    ast.TryStar: ("`except*` in the loop's body isn't supported", "Write `except`."),
}
_FRAMES = {
    "eval": "Write the expression itself.",
    "exec": "Write the statements themselves.",
    "locals": "Name what you need.",
    "globals": "Name what you need.",
    "vars": "Name what you need, or read the object's attributes.",
    "input": "Ask before the loop.",
}


def refuse_unsupported(nodes: Iterable[ast.AST]) -> None:
    """Raises RefusedLoop at the first statement or expression that neither half could run."""
    for root in nodes:
        for node in ast.walk(root):
            reason, instead = _REFUSED.get(type(node), ("", ""))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FRAMES:
                if not (node.func.id == "vars" and node.args):
                    reason, instead = f"`{node.func.id}()` in the loop's body can't be split", _FRAMES[node.func.id]
            if reason:
                raise refused(node, reason, instead)


def refused(node: ast.AST, reason: str, instead: str) -> RefusedLoop:
    """The refusal of a loop at `node`. `instead`: what the user may write."""
    line: int = node.lineno  # type: ignore[attr-defined]
    return RefusedLoop(f"line {line}: {reason}", line=line, reason=reason, hint=f"{instead} Or: {SINGLE}.")
