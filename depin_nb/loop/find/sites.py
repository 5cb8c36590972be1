"""Finds the training loops that a cell would run: in the cell itself, or in the user's functions and methods that it calls."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...core.errors import RefusedLoop
from .definitions import class_of, is_user_file, parse_function, spelled_out
from .forms import Form, form
from .reach import Reach, mentioned
from .resolve import Resolver
from .things import Scope, imported_value
from .trains import Trains
from .unsupported import SINGLE

Loop = ast.For | ast.While


@dataclass
class Site:
    """A leased loop: its `for`, the function that it stands in (None: the cell), and where a person finds it."""

    loop: ast.For
    function: types.FunctionType | None
    scope: ast.AST  # the module or function node that holds the loop
    filename: str
    source: str
    outer: tuple[Loop, ...]  # the loops around it in the same scope
    node: Loop  # as it stands in `root`
    root: ast.AST  # the tree that is compiled anew: the cell's, or the function's
    form: Form
    text: str  # its first line, as the user wrote it
    owner: str  # the class whose method holds it, if one does

    @property
    def line(self) -> int:
        return self.loop.lineno

    @property
    def notes(self) -> list[str]:
        """What the plan should say about fetches."""
        return [fetch.note for fetch in self.form.fetches if fetch.note]

    def where(self) -> str:
        name = self.scope.name if isinstance(self.scope, ast.FunctionDef) else ""
        place = f"{self.owner}.{name}()" if name and self.owner else f"{name}()" if name else "the cell"
        if name and self.filename.endswith(".py") and not self.filename.startswith("<") and "ipykernel" not in self.filename:
            place += f" in {os.path.basename(self.filename)}"
        return f"{place}, line {self.line}: {self.header()}"

    def header(self) -> str:
        return self.text


def header(loop: Loop) -> str:
    """The first line of a loop, without its colon."""
    if isinstance(loop, ast.While):
        return f"while {ast.unparse(loop.test)}"
    return f"for {ast.unparse(loop.target).removeprefix('(').removesuffix(')')} in {ast.unparse(loop.iter)}"


@dataclass
class Found:
    """The cell's tree, its sites, and every function of the user's that it reaches (several may share one code: closures)."""

    tree: ast.Module
    sites: list[Site]
    functions: list[types.FunctionType] = field(default_factory=list)

    def holders(self) -> list[types.FunctionType]:
        """The functions whose code holds a site."""
        codes = {site.function.__code__ for site in self.sites if site.function is not None}
        return [f for f in self.functions if f.__code__ in codes]


def find(source: str, namespace: dict[str, Any], filename: str) -> Found:
    """The sites of a cell. Raises RefusedLoop, naming the line, when there is none that can be leased.

    The cell's imports of the user's own modules are made here, before it runs: their functions may hold the loop.
    """
    tree = ast.parse(source, filename)
    _headers_kept(tree)
    spelled_out(tree)
    reached = Reach().visit(_named(tree, namespace), mentioned(tree))
    calls = Resolver(tree, namespace, reached)
    trees: list[tuple[types.FunctionType | None, Any, Scope, str, str]] = [(None, tree, calls.cell, filename, source)]
    codes: set[types.CodeType] = set()
    for function in reached.functions:
        if function.__code__ not in codes:
            codes.add(function.__code__)
            made, parsed = calls.function(function), parse_function(function)
            if made is not None and parsed is not None:
                _headers_kept(made.node)
                trees.append((function, made.node, made.scope, function.__code__.co_filename, parsed[1]))
    trains = Trains(calls, [(node, scope) for _, node, scope, _, _ in trees])
    chosen = [(site, loops) for entry in trees for site, loops in _sites(entry, trains, calls)]
    if any("step" in words for _, words in chosen):
        chosen = [(site, words) for site, words in chosen if "step" in words]
    if not chosen:
        raise _no_loop([(node, scope) for _, node, scope, _, _ in trees], trains)
    return Found(tree, [site for site, _ in chosen], reached.functions)


def _named(tree: ast.Module, namespace: Mapping[str, Any]) -> list[Any]:
    """Values that the cell names, without those that it defines anew."""
    defined = {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)} - defined
    values = [namespace[n] for n in sorted(names) if n in namespace]
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                _import(alias.name if isinstance(node, ast.Import) else node.module or "")
                if alias.name == "*":
                    module = sys.modules.get(getattr(node, "module", None) or "")
                    values += [vars(module)[n] for n in sorted(names) if module is not None and n in vars(module)]
                else:
                    value = imported_value(node, alias)
                    values += [value] if value is not None else []
    return values


def _import(name: str) -> None:
    """Imports a module of the user's that isn't loaded yet; what fails is left to the cell."""
    root = name.partition(".")[0]
    if not root or name in sys.modules or root in sys.stdlib_module_names:
        return
    try:
        spec = importlib.util.find_spec(root)
        if spec is not None and spec.origin and is_user_file(spec.origin) and spec.origin.endswith(".py"):
            importlib.import_module(name)
    except Exception:  # the cell's own import raises it, where the user expects it
        return


def _headers_kept(tree: ast.AST) -> None:
    """Notes each loop's first line as the user wrote it, before anything is spelled out or rewritten."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.For, ast.While)) and not hasattr(node, "depin_header"):
            node.depin_header = header(node)  # type: ignore[union-attr]


def _sites(
    entry: tuple[types.FunctionType | None, Any, Scope, str, str], trains: Trains, calls: Resolver
) -> Iterator[tuple[Site, frozenset[str]]]:
    function, root, root_scope, filename, source = entry
    for scope, owner, loops in _training_loops(root, root_scope, trains, calls):
        owner = owner or (class_of(function.__code__.co_qualname) if function is not None else "")
        *others, last = _choices(loops, scope, trains)
        for loop in (*others, last):
            try:
                made = form(loop)
            except RefusedLoop:
                if loop is last:
                    raise
                continue
            words = trains.words(loop.body, scope)
            outer = tuple(loops[: loops.index(loop)])
            text: str = loop.depin_header  # type: ignore[union-attr]
            yield Site(made.loop, function, scope.node, filename, source, outer, loop, root, made, text, owner), words
            break


def _choices(loops: list[Loop], scope: Scope, trains: Trains) -> list[Loop]:
    """Which of nested loops to lease, best first: the innermost that also steps, unless one around it trains outside of it too."""
    innermost = next((loop for loop in reversed(loops) if "step" in trains.words(loop.body, scope)), loops[-1])
    chosen = innermost
    for loop in reversed(loops[: loops.index(innermost)]):
        inner = [n for s in loop.body for n in ast.walk(s) if isinstance(n, (ast.For, ast.While))]
        if {"backward", "step"} <= trains.words(loop.body, scope, without=inner):
            chosen = loop
    return [chosen] if chosen is innermost else [chosen, innermost]


def _training_loops(root: Any, root_scope: Scope, trains: Trains, calls: Resolver) -> Iterator[tuple[Scope, str, list[Loop]]]:
    """Chains of loops around an innermost one that trains, one for each loop to lease."""
    chains: list[tuple[Scope, str, list[Loop]]] = []

    def walk(node: Any, scope: Scope, owner: str, loops: list[Loop]) -> None:
        if node is not root and isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            scope, loops = calls.scope_of(node, scope), []
            owner = node.name if isinstance(node, ast.ClassDef) else owner
        elif isinstance(node, (ast.AsyncFunctionDef, ast.Lambda)):
            return
        if isinstance(node, (ast.For, ast.While)) and trains(node.body, scope):
            loops = [*loops, node]
            if not any(isinstance(n, (ast.For, ast.While)) and trains(n.body, scope) for s in node.body for n in _same_scope(s)):
                chains.append((scope, owner, loops))
                return
        for child in ast.iter_child_nodes(node):
            walk(child, scope, owner, loops)

    walk(root, root_scope, "", [])
    seen: set[int] = set()
    for scope, owner, loops in chains:
        chosen = _choices(loops, scope, trains)[0]
        if id(chosen) not in seen:
            seen.add(id(chosen))
            yield scope, owner, loops


def _same_scope(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
        for child in ast.iter_child_nodes(node):
            yield from _same_scope(child)


def _no_loop(trees: list[tuple[Any, Scope]], trains: Trains) -> RefusedLoop:
    for root, scope in trees:
        for node in ast.walk(root):
            if isinstance(node, ast.AsyncFunctionDef) and any(trains(n.body, scope) for n in ast.walk(node) if isinstance(n, ast.For)):
                return RefusedLoop(
                    f"line {node.lineno}: the loop stands in an async function, which can't be leased",
                    line=node.lineno,
                    reason="async",
                    hint=f"Put it in an ordinary function. Or: {SINGLE}.",
                )
            if isinstance(node, ast.AsyncFor) and trains(node.body, scope):
                return RefusedLoop(
                    f"line {node.lineno}: `async for` can't run on workers",
                    line=node.lineno,
                    reason="async",
                    hint=f"Iterate with an ordinary `for`. Or: {SINGLE}.",
                )
            if isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)) and trains([node], scope):
                return RefusedLoop(
                    f"line {node.lineno}: a comprehension that trains can't be leased",
                    line=node.lineno,
                    reason="comprehension",
                    hint=f"Write it as `for batch in loader:` with an `append`. Or: {SINGLE}.",
                )
    what = "there is no training loop in this cell: no `for` or `while` whose body calls backward()"
    return RefusedLoop(
        what,
        line=1,
        reason="no loop",
        hint=f"Put %%depin train on the cell that holds (or calls) `for ...: ... loss.backward()`. Or: {SINGLE}.",
    )
