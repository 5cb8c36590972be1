"""Runs a cell (or a function) with its training loops leased: rewrites the code, swaps it in, and takes everything out again."""

from __future__ import annotations

import ast
import types
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from ..core.errors import RefusedLoop
from .callees import Callees
from .contract import Hub
from .find import Found, Site, find
from .leasing import Loops
from .reach import parse_function
from .rewrite import LOOPS, rewrite_function, rewrite_tree
from .split import refuse_unsupported


class LeasedCell:
    """A cell that was found fit: its sites, and `run`. Raises RefusedLoop from the constructor, before anything has run."""

    def __init__(self, source: str, namespace: dict[str, Any], filename: str) -> None:
        self.namespace = namespace
        self.filename = filename
        self.found: Found = find(source, namespace, filename)
        for site in self.found.sites:
            check(site)
        self.zeroes = "zero_grad" in source or any(_mentions_zero_grad(v) for v in namespace.values())

    @property
    def sites(self) -> list[Site]:
        return self.found.sites

    def run(self, hub: Hub, execute: Callable[[ast.Module], Any]) -> Any:
        """Executes the rewritten cell by `execute(tree)` (the shell's own way, in the namespace). What was swapped in comes out again."""
        loops = Loops(self.sites, hub, self.namespace, Callees(), self.zeroes)
        with ExitStack() as stack:
            stack.callback(loops.release)
            for function in {id(s.function): s.function for s in self.sites if s.function is not None}.values():
                stack.enter_context(_swapped(function, self.sites, loops))
            self.namespace[LOOPS] = loops
            tree = rewrite_tree(self.found.tree, self.sites)
            return execute(tree)


class LeasedFunction(LeasedCell):
    """The same for an ordinary function `fit()` that holds or calls the loop."""

    def __init__(self, function: Callable[[], Any]) -> None:
        target = function.__func__ if isinstance(function, types.MethodType) else function
        if not isinstance(target, types.FunctionType) or parse_function(target) is None:
            raise RefusedLoop(
                f"{function!r} has no source that can be read",
                reason="no source",
                hint="Pass a function that is defined in a cell or a .py file.",
            )
        self.function = function
        name = "__depin_function__"
        space = dict(target.__globals__)
        space[name] = function
        super().__init__(f"{name}()", space, target.__code__.co_filename)
        self.namespace = target.__globals__

    def call(self, hub: Hub) -> Any:
        return self.run(hub, lambda tree: self.function())


def check(site: Site) -> None:
    """Raises RefusedLoop for what neither half could run, with the line."""
    refuse_unsupported(site.loop.body)
    for node in ast.walk(site.loop):
        if isinstance(node, ast.Global) and site.function is not None:
            raise RefusedLoop(
                f"line {node.lineno}: `global` inside the leased loop's body can't be split", line=node.lineno, reason="global"
            )


class _swapped:
    """A function whose code has its leased loops, for as long as the cell runs: callers, aliases and bound methods all see it."""

    def __init__(self, function: types.FunctionType, sites: list[Site], loops: Loops) -> None:
        self.function, self.code = function, function.__code__
        node = next(s.scope for s in sites if s.function is function)
        top = _outermost(node, function)
        self.changed = rewrite_function(function, top, sites)
        self.loops = loops

    def __enter__(self) -> None:
        self.function.__globals__[LOOPS] = self.loops
        self.function.__code__ = self.changed

    def __exit__(self, *error: object) -> None:
        self.function.__code__ = self.code
        self.function.__globals__.pop(LOOPS, None)


def _outermost(node: ast.AST, function: types.FunctionType) -> ast.FunctionDef:
    if not isinstance(node, ast.FunctionDef) or node.name != function.__code__.co_name:
        raise RefusedLoop(
            f"the loop stands in a function inside {function.__name__}()",
            reason="nested function",
            hint="Move the loop into the outer function, or the inner function to the top of a cell.",
        )
    return node


def _mentions_zero_grad(value: Any) -> bool:
    if isinstance(value, types.FunctionType):
        return "zero_grad" in value.__code__.co_names
    return isinstance(value, type) and any(_mentions_zero_grad(f) for f in vars(value).values())
