"""Runs a cell (or a function) with its training loops leased: rewrites the code, swaps it in, and takes everything out again."""

from __future__ import annotations

import ast
import types
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from ..core.errors import RefusedLoop
from .contract import Hub
from .find.definitions import parse_function
from .find.forms import LOOPS
from .find.sites import Found, Site, find
from .find.unsupported import refuse_unsupported
from .leasing import Loops
from .split.callees import Callees
from .split.rewrite import rewrite_function, rewrite_tree


class LeasedCell:
    """A cell that was found fit: its sites, and `run`. Raises RefusedLoop from the constructor, before anything has run."""

    def __init__(self, source: str, namespace: dict[str, Any], filename: str) -> None:
        self.namespace = namespace
        self.source = source
        self.filename = filename
        self.found: Found = find(source, namespace, filename)
        for site in self.found.sites:
            check(site)

    @property
    def sites(self) -> list[Site]:
        return self.found.sites

    def run(self, hub: Hub, execute: Callable[[ast.Module], Any]) -> Any:
        """Executes the rewritten cell by `execute(tree)` (the shell's own way, in the namespace). What was swapped in comes out again."""
        callees = Callees()
        loops = Loops(self.sites, hub, self.namespace, callees)
        with ExitStack() as stack:
            stack.callback(loops.release)
            callees.originals.add(compile(self.source, self.filename, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True))
            holders = self.found.holders()
            for function in holders:
                callees.originals.add(function.__code__)
            stack.enter_context(callees.originals.active())
            changed = {f.__code__: rewrite_function(f, self.sites, loops.token) for f in holders}
            for function in holders:
                stack.enter_context(_swapped(function, changed[function.__code__], loops))
            self.namespace[LOOPS] = loops
            tree = rewrite_tree(self.found.tree, self.sites, loops.token)
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


class _swapped:
    """A function whose code has its leased loops, for as long as the cell runs: callers, aliases and bound methods all see it."""

    def __init__(self, function: types.FunctionType, changed: types.CodeType, loops: Loops) -> None:
        self.function, self.code, self.changed, self.loops = function, function.__code__, changed, loops

    def __enter__(self) -> None:
        self.function.__globals__[LOOPS] = self.loops
        self.function.__code__ = self.changed

    def __exit__(self, *error: object) -> None:
        self.function.__code__ = self.code
        self.function.__globals__.pop(LOOPS, None)
