"""What a view of the body reads and writes, by path: what an iteration may read before it has written it, and every write with its node."""

from __future__ import annotations

import ast
import random
import types
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..find.syntax import static_length
from ..paths import path_of, within
from ..values import is_device_type
from .inline import View
from .places import FIXED, Places, names_in

_READING = {
    "get", "items", "keys", "values", "copy", "index", "count", "most_common", "elements", "union", "intersection", "difference",
    "issubset", "issuperset", "isdisjoint", "state_dict", "total",
}  # fmt: skip
_CHANGES_FIRST = {"shuffle", "heappush", "heappop", "heapify", "heappushpop", "heapreplace", "insort", "insort_left", "insort_right"}
_CONTAINERS = (list, dict, set, deque)
_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)


@dataclass(frozen=True)
class Write:
    """`how`: `bind` (the path is another object now), `augment` (`+=` and the like), `replace` (something in the plain container or object
    at the path is another one now) or `mutate` (the object at the path has changed in place)."""

    path: str
    how: str
    node: Any
    value: ast.expr | None
    depth: int


class Flow(Places):
    """`first`: paths read before they are surely written, each with the parts of it that had been. `reads`: all that are read."""

    def __init__(self, view: View, resolve: Any, assigned: set[str]) -> None:
        super().__init__(view, resolve)
        self.first: dict[str, set[str]] = {}
        self.reads: set[str] = set()
        self.writes: list[Write] = []
        self._block(view.body, set(assigned), 0)

    def _read(self, node: ast.AST | None, known: set[str] | None) -> None:
        for path, _ in self.paths_in(node):
            self.reads.add(path)
            if known is not None and not _covered(path, known):
                parts = {k for k in known if within(k, path)}
                self.first[path] = self.first[path] & parts if path in self.first else parts

    def kept(self, path: str) -> bool:
        """Whether an iteration may read a path, or something that it is a part of, as an earlier one has left it."""
        return any(path == f or within(f, path) or (within(path, f) and path not in known) for f, known in self.first.items())

    # --- writing -----------------------------------------------------------------------------------------------

    def _write(self, target: ast.expr, node: ast.stmt, value: ast.expr | None, depth: int, known: set[str] | None) -> None:
        if isinstance(target, (ast.Tuple, ast.List)):
            for element in target.elts:
                self._write(element, node, value, depth, known)
            return
        if isinstance(target, ast.Starred):
            self._write(target.value, node, value, depth, known)
            return
        found = self.path(target)
        if isinstance(target, ast.Name):  # binds the name itself, whatever it stood for
            found = target.id, True
        if found is None:
            self._read(target, known)
            return
        inner: ast.AST = target
        while isinstance(inner, (ast.Attribute, ast.Subscript)):
            if isinstance(inner, ast.Subscript):
                self._read(inner.slice, known)
            inner = inner.value
        owner = getattr(target, "value", None)
        inside = "replace" if owner is not None and self.is_plain(owner) and not self.in_device(found[0]) else "mutate"
        self.writes.append(Write(found[0], "bind" if found[1] else inside, node, value, depth))
        if found[1] and known is not None:
            known.add(found[0])

    def _calls(self, node: ast.AST | None, statement: ast.stmt, depth: int) -> None:
        """Changes that the calls in an expression make."""
        for call in ast.walk(node) if node is not None else ():
            if isinstance(call, ast.NamedExpr) and isinstance(call.target, ast.Name):
                self.writes.append(Write(call.target.id, "bind", statement, call.value, depth))
            if not isinstance(call, ast.Call):
                continue
            for changed in self._changed(call):
                found = self.path(changed)
                if found is not None:
                    value = ast.Tuple([*call.args, *(k.value for k in call.keywords)], ast.Load())
                    how = "replace" if isinstance(self.peek(changed), _CONTAINERS) and not self.in_device(found[0]) else "mutate"
                    self.writes.append(Write(found[0], how, call, value, depth))

    def _changed(self, call: ast.Call) -> Iterator[ast.expr]:
        func, opaque = call.func, id(call) in self.view.opaque
        if isinstance(func, ast.Attribute) and not self.is_held(func):
            owner = self.peek(func.value)
            if isinstance(owner, _GENERATORS) or func.attr in _READING:
                return
            if is_device_type(type(owner)) or isinstance(owner, FIXED):
                if isinstance(owner, torch.Tensor) and func.attr.endswith("_") and not func.attr.endswith("__"):
                    yield func.value
                elif isinstance(owner, types.ModuleType) and func.attr in _CHANGES_FIRST and call.args:
                    yield call.args[0]
            elif owner is not None or path_of(func.value) is not None:
                yield func.value
        elif isinstance(func, ast.Name) and func.id in {"next", "setattr", "delattr", *_CHANGES_FIRST} and call.args:
            yield call.args[0]
        if opaque:
            yield from (a.value if isinstance(a, ast.Starred) else a for a in call.args)
            yield from (k.value for k in call.keywords)

    # --- statements ---------------------------------------------------------------------------------------------

    def _expression(self, node: ast.AST | None, statement: ast.stmt, known: set[str] | None, depth: int) -> None:
        self._read(node, known)
        self._calls(node, statement, depth)
        if node is not None and known is not None:
            known |= {n.target.id for n in ast.walk(node) if isinstance(n, ast.NamedExpr) and isinstance(n.target, ast.Name)}

    def _block(self, statements: list[ast.stmt], known: set[str] | None, depth: int) -> set[str] | None:
        """Paths surely written after the statements; None when their end isn't reached."""
        known = None if known is None else set(known)
        for s in statements:
            known = self._statement(s, known, depth)
        return known

    def _statement(self, s: ast.stmt, known: set[str] | None, depth: int) -> set[str] | None:
        if isinstance(s, ast.Assign):
            self._expression(s.value, s, known, depth)
            for target in s.targets:
                self._write(target, s, s.value, depth, known)
        elif isinstance(s, ast.AnnAssign):
            self._expression(s.value, s, known, depth)
            if s.value is not None:
                self._write(s.target, s, s.value, depth, known)
        elif isinstance(s, ast.AugAssign):
            self._expression(s.value, s, known, depth)
            self._read(_loaded(s.target), known)
            found = (s.target.id, True) if isinstance(s.target, ast.Name) else self.path(s.target)
            if found is not None:
                self.writes.append(Write(found[0], "augment" if found[1] else "mutate", s, s.value, depth))
        elif isinstance(s, ast.Delete):
            for target in s.targets:
                found = self.path(target)
                if found is not None:
                    self.writes.append(Write(found[0], "mutate", s, None, depth))
        elif isinstance(s, ast.If):
            self._expression(s.test, s, known, depth)
            return _both(self._block(s.body, known, depth + 1), self._block(s.orelse, known, depth + 1))
        elif isinstance(s, (ast.For, ast.While)):
            return self._loop(s, known, depth)
        elif isinstance(s, ast.With):
            for item in s.items:
                self._expression(item.context_expr, s, known, depth)
                if item.optional_vars is not None:
                    self._write(item.optional_vars, s, item.context_expr, depth, known)
            return self._block(s.body, known, depth)
        elif isinstance(s, ast.Try):
            after = self._block(s.body, known, depth + 1)
            after = self._block(s.orelse, after, depth + 1)
            for handler in s.handlers:
                inner = known if known is None else known | ({handler.name} if handler.name else set())
                after = _both(after, self._block(handler.body, inner, depth + 1))
            final = self._block(s.finalbody, known, depth)
            return after if after is None or final is None else after | final
        elif isinstance(s, ast.Match):
            self._expression(s.subject, s, known, depth)
            for case in s.cases:
                names = {n.name for n in ast.walk(case.pattern) if isinstance(n, (ast.MatchAs, ast.MatchStar)) and n.name}
                self._expression(case.guard, s, known, depth)
                self._block(case.body, None if known is None else known | names, depth + 1)
        elif isinstance(s, (ast.Break, ast.Continue, ast.Raise, ast.Return)):
            for child in ast.iter_child_nodes(s):
                self._expression(child, s, known, depth)
            return None
        else:
            for child in ast.iter_child_nodes(s):
                self._expression(child, s, known, depth)
        return known

    def _loop(self, s: ast.For | ast.While, known: set[str] | None, depth: int) -> set[str] | None:
        self._expression(s.iter if isinstance(s, ast.For) else s.test, s, known, depth)
        inner = None if known is None else set(known)
        if isinstance(s, ast.For):
            for name in names_in(s.target):
                self.writes.append(Write(name, "bind", s, s.iter, depth + 1))
                if inner is not None:
                    inner.add(name)
            self._read_targets(s.target, inner)
        after = self._block(s.body, inner, depth + 1)
        self._block(s.orelse, known, depth + 1)
        leaves = any(isinstance(n, ast.Break) for b in s.body for n in ast.walk(b))
        if isinstance(s, ast.For) and not leaves and (static_length(s.iter, self.value) or 0) > 0 and after is not None:
            return after  # it surely runs
        return known

    def _read_targets(self, target: ast.expr, known: set[str] | None) -> None:
        for node in ast.walk(target):
            if isinstance(node, (ast.Attribute, ast.Subscript)):
                found = self.path(node)
                if found is not None:
                    self.writes.append(Write(found[0], "mutate", node, None, 1))


def _covered(path: str, known: set[str]) -> bool:
    return path in known or any(within(path, k) for k in known)


def _both(a: set[str] | None, b: set[str] | None) -> set[str] | None:
    return b if a is None else a if b is None else a & b


def _loaded(target: ast.expr) -> ast.expr:
    kind: dict[type, Any] = {ast.Name: lambda: ast.Name(target.id, ast.Load())}  # type: ignore[attr-defined]
    if type(target) in kind:
        return kind[type(target)]()
    if isinstance(target, ast.Attribute):
        return ast.Attribute(target.value, target.attr, ast.Load())
    assert isinstance(target, ast.Subscript)
    return ast.Subscript(target.value, target.slice, ast.Load())
