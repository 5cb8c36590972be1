"""Finds the training loops that a cell would run: in the cell itself, or in the notebook's functions and methods that it calls."""

from __future__ import annotations

import ast
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..core.errors import RefusedLoop
from .callees import is_user_code
from .reach import parse_function, reachable

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


@dataclass
class Site:
    """A leased loop: its `for`, the function that it stands in (None: the cell), and where a person finds it."""

    loop: ast.For
    function: types.FunctionType | None
    scope: ast.AST  # the module or function node that holds the loop
    filename: str
    source: str
    outer: tuple[ast.For, ...] = ()  # the loops around it in the same scope

    @property
    def line(self) -> int:
        return self.loop.lineno

    def where(self) -> str:
        place = self.scope.name + "()" if isinstance(self.scope, ast.FunctionDef) else "the cell"
        return f"{place}, line {self.line}: {self.header()}"

    def header(self) -> str:
        return f"for {ast.unparse(self.loop.target).removeprefix('(').removesuffix(')')} in {ast.unparse(self.loop.iter)}"


@dataclass
class Found:
    """The cell's tree, its sites, and the trees of functions outside the cell that hold some of them."""

    tree: ast.Module
    sites: list[Site]


def find(source: str, namespace: dict[str, Any], filename: str) -> Found:
    """The sites of a cell. Raises RefusedLoop, naming the line, when there is none that can be leased."""
    tree = ast.parse(source, filename)
    functions = list(reachable(tree, namespace))
    trains = _Trains(namespace, tree)
    sites = [Site(loop, None, scope, filename, source, outer) for scope, loop, outer in _training_loops(tree, trains)]
    for function, node, text in functions:
        file = function.__code__.co_filename
        sites += [Site(loop, function, scope, file, text, outer) for scope, loop, outer in _training_loops(node, trains)]
    if any("step" in trains.words(site.loop.body) for site in sites):
        sites = [site for site in sites if "step" in trains.words(site.loop.body)]
    if not sites:
        raise _no_loop(tree, [node for _, node, _ in functions], trains)
    return Found(tree, sites)


def _no_loop(tree: ast.Module, nodes: list[ast.FunctionDef], trains: _Trains) -> RefusedLoop:
    for root in (tree, *nodes):
        for node in ast.walk(root):
            if isinstance(node, ast.While) and trains(node.body):
                return RefusedLoop(
                    f"line {node.lineno}: `while` loops aren't leased yet, because their iterations aren't known ahead",
                    line=node.lineno,
                    reason="while",
                    hint="Write it as `for step in range(n):` or `for x, y in loader:`; a `break` may leave it early.",
                )
            if isinstance(node, ast.AsyncFor) and trains(node.body):
                return RefusedLoop(f"line {node.lineno}: `async for` can't run on workers", line=node.lineno, reason="async")
    what = "there is no training loop in this cell: no `for` whose body calls backward()"
    return RefusedLoop(
        what, line=1, reason="no loop", hint="Put %%depin train on the cell that holds (or calls) `for ...: ... loss.backward()`."
    )


class _Trains:
    """Whether statements call `backward` (and `step`), in themselves or in a function of the notebook that they call."""

    def __init__(self, namespace: dict[str, Any], tree: ast.Module) -> None:
        self.namespace = namespace
        self.local = {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        self._known: dict[str, frozenset[str]] = {}

    def __call__(self, body: list[ast.stmt]) -> bool:
        return "backward" in self.words(body)

    def words(self, body: list[Any]) -> frozenset[str]:
        words: set[str] = set()
        for node in (n for statement in body for n in ast.walk(statement)):
            if isinstance(node, ast.Call):
                if isinstance(node.func, ast.Attribute):
                    if node.func.attr in ("backward", "step"):
                        words.add(node.func.attr)
                    words |= self._method(node.func)
                elif isinstance(node.func, ast.Name):
                    words |= self._function(node.func.id)
        return frozenset(words)

    def _function(self, name: str) -> frozenset[str]:
        if name in self._known:
            return self._known[name]
        self._known[name] = frozenset()
        node = self.local.get(name)
        if node is None:
            value = self.namespace.get(name)
            parsed = parse_function(value) if isinstance(value, types.FunctionType) else None
            node = parsed[0] if parsed else None
        if node is not None:
            self._known[name] = self._outside_own_loops(node.body)
        return self._known[name]

    def _outside_own_loops(self, body: list[ast.stmt]) -> frozenset[str]:
        """Words of a function, unless it has a training loop of its own: then that is the one to lease, not its caller's."""
        own = (n for s in body for n in ast.walk(s) if isinstance(n, ast.For))
        return frozenset() if any({"backward", "step"} <= self.words(loop.body) for loop in own) else self.words(body)

    def _method(self, func: ast.Attribute) -> frozenset[str]:
        """`trainer.run_batch(...)`, and `self.run_batch(...)` of any class that has been met."""
        key = f".{func.attr}"
        if key not in self._known:
            self._known[key] = frozenset()
            words: set[str] = set(self._function(func.attr)) if func.attr in self.local else set()
            for name in (n for n in self.namespace if not n.startswith("_")):
                method = getattr(type(self.namespace[name]), func.attr, None)
                if isinstance(method, types.FunctionType) and is_user_code(method.__code__) and func.attr not in ("forward", "__call__"):
                    parsed = parse_function(method)
                    words |= self._outside_own_loops(parsed[0].body) if parsed else frozenset()
            self._known[key] = frozenset(words)
        return self._known[key]


def _training_loops(root: ast.AST, trains: _Trains) -> Iterator[tuple[ast.AST, ast.For, tuple[ast.For, ...]]]:
    """Innermost `for` loops with backward and step; one with backward alone only where no enclosing loop adds the step."""
    chains: list[tuple[ast.AST, list[ast.For]]] = []

    def walk(node: ast.AST, scope: ast.AST, loops: list[ast.For]) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            scope, loops = node, []
        elif isinstance(node, ast.Lambda):
            return
        if isinstance(node, ast.For) and trains(node.body):
            loops = [*loops, node]
            if not any(isinstance(n, ast.For) and trains(n.body) for s in node.body for n in _same_scope(s)):
                chains.append((scope, loops))
                return
        for child in ast.iter_child_nodes(node):
            walk(child, scope, loops)

    walk(root, root, [])
    seen: set[int] = set()
    for scope, loops in chains:
        chosen = next((loop for loop in reversed(loops) if "step" in trains.words(loop.body)), loops[-1])
        if id(chosen) not in seen:
            seen.add(id(chosen))
            yield scope, chosen, tuple(loops[: loops.index(chosen)])


def _same_scope(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    if not isinstance(node, _SCOPES):
        for child in ast.iter_child_nodes(node):
            yield from _same_scope(child)
