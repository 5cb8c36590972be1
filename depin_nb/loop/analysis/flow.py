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
from ..paths import is_inlined, look, path_of, peek, split, within
from ..values import is_device_type
from .inline import View

_READING = {
    "get", "items", "keys", "values", "copy", "index", "count", "most_common", "elements", "union", "intersection", "difference",
    "issubset", "issuperset", "isdisjoint", "state_dict", "total",
}  # fmt: skip
_WRITING = {"append", "appendleft", "extend", "extendleft", "insert", "add", "clear", "update", "subtract", "discard"}
_CHANGES_FIRST = {"shuffle", "heappush", "heappop", "heapify", "heappushpop", "heapreplace", "insort", "insort_left", "insort_right"}
_CONTAINERS = (list, dict, set, deque)
_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
_FIXED = (types.ModuleType, type, types.FunctionType, types.BuiltinFunctionType, str, bytes, int, float, complex, bool)


@dataclass(frozen=True)
class Write:
    """`how`: `bind` (the path is another object now), `augment` (`+=` and the like), `replace` (something in the plain container or object
    at the path is another one now) or `mutate` (the object at the path has changed in place)."""

    path: str
    how: str
    node: Any
    value: ast.expr | None
    depth: int


class Flow:
    """`first`: paths read before they are surely written, each with the parts of it that had been. `reads`: all that are read."""

    def __init__(self, view: View, resolve: Any, assigned: set[str]) -> None:
        self.view, self._outer = view, resolve
        self.first: dict[str, set[str]] = {}
        self.reads: set[str] = set()
        self.writes: list[Write] = []
        self.aliases: dict[str, tuple[str, bool]] = {}
        self._by_id: dict[int, str] = {}
        self._find_aliases()
        self._block(view.body, set(assigned), 0)

    def value(self, name: str) -> Any:
        if name in self.view.values:
            return self.view.values[name]
        if is_inlined(name):
            raise KeyError(name)
        return self._outer(name)

    def peek(self, node: ast.AST) -> Any:
        """The object behind an expression, or one like it; None when there is none yet."""
        try:
            return peek(node, self.value)
        except KeyError:
            return None

    def path(self, node: ast.AST) -> tuple[str, bool] | None:
        """The canonical path of an expression: aliases are what they stand for, and one object of the user's has one path."""
        found = path_of(node)
        return None if found is None else self._canonical(*found)

    def _canonical(self, path: str, exact: bool) -> tuple[str, bool]:
        for _ in range(8):
            root, _ = split(path)
            alias = self.aliases.get(root)
            if alias is None:
                break
            rest = path[len(root) :]
            path, exact = (alias[0] + rest, exact) if alias[1] else (alias[0], False)
        root, steps = split(path)
        try:
            value, text = self.value(root), root
        except KeyError:
            return path, exact
        text = self._named(value, text)
        for i, step in enumerate(steps):
            text += f"[{step[1]!r}]" if step[0] else f".{step[1]}"
            try:
                value = look(value, step)
            except KeyError:
                rest = "".join(f"[{key!r}]" if is_item else f".{key}" for is_item, key in steps[i + 1 :])
                return text + rest, exact
            text = self._named(value, text)
        return text, exact

    def _named(self, value: Any, text: str) -> str:
        if value is None or isinstance(value, (*_FIXED, tuple, frozenset, torch.Tensor, torch.Size)):
            return text
        return self._by_id.setdefault(id(value), text)

    def _find_aliases(self) -> None:
        """Names that are bound once, to an object that has a path: what happens to the one happens to the other."""
        bound: dict[str, list[tuple[ast.expr, bool]]] = {}
        for node in (n for s in self.view.body for n in ast.walk(s)):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    for name in _names(target):
                        bound.setdefault(name, []).append((node.value, isinstance(target, ast.Name)))
            elif isinstance(node, (ast.AugAssign, ast.AnnAssign, ast.NamedExpr)) and isinstance(node.target, ast.Name):
                bound.setdefault(node.target.id, []).append((node.target, False))
            elif isinstance(node, (ast.For, ast.comprehension)):
                for name, source in members_of(node.target, node.iter):
                    bound.setdefault(name, []).append((source, isinstance(node, ast.For)))
            elif isinstance(node, ast.withitem) and node.optional_vars is not None:
                for name in _names(node.optional_vars):
                    bound.setdefault(name, []).append((node.context_expr, False))
        for name, sources in bound.items():
            (source, whole), single = sources[0], len(sources) == 1
            found = path_of(source) if single and whole else None
            if found is None or split(found[0])[0] == name or is_device_type(type(self.peek(source))):
                continue
            member = any(isinstance(n, ast.For) and name in _names(n.target) for s in self.view.body for n in ast.walk(s))
            value = self.peek(source)
            if value is not None and not isinstance(value, (*_FIXED, tuple)):
                self.aliases[name] = (found[0], found[1] and not member)

    # --- reading ---------------------------------------------------------------------------------------------

    def paths_in(self, node: ast.AST | None) -> Iterator[tuple[str, ast.AST]]:
        """The longest paths that an expression reads, each with its node; names of its own (comprehensions, lambdas) are none."""
        if node is None:
            return
        own = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        own |= {a.arg for n in ast.walk(node) if isinstance(n, ast.Lambda) for a in ast.walk(n.args) if isinstance(a, ast.arg)}
        for path, at in self._paths(node):
            if split(path)[0] not in own:
                yield path, at

    def _paths(self, node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
        if isinstance(node, (ast.Name, ast.Attribute, ast.Subscript)):
            found = self.path(node)
            if found is not None:
                if not isinstance(getattr(node, "ctx", None), ast.Store):
                    yield found[0], node
                inner: ast.AST = node
                while isinstance(inner, (ast.Attribute, ast.Subscript)):
                    if isinstance(inner, ast.Subscript):
                        yield from self._paths(inner.slice)
                    inner = inner.value
                return
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not self._is_held(node.func):
            if not (node.func.attr in _WRITING and self._plain_owner(node.func.value)):
                yield from self._paths(node.func.value)
            for child in (*node.args, *node.keywords):
                yield from self._paths(child)
            return
        for child in ast.iter_child_nodes(node):
            yield from self._paths(child)

    def _read(self, node: ast.AST | None, known: set[str] | None) -> None:
        for path, _ in self.paths_in(node):
            self.reads.add(path)
            if known is not None and not _covered(path, known):
                parts = {k for k in known if within(k, path)}
                self.first[path] = self.first[path] & parts if path in self.first else parts

    def _is_held(self, func: ast.Attribute) -> bool:
        """Whether what is called is an object of its own that the owner holds (`self.model(x)`), not a method."""
        value = self.peek(func)
        return value is not None and not isinstance(value, (types.MethodType, types.BuiltinMethodType, types.MethodWrapperType))

    def _in_device(self, path: str) -> bool:
        """Whether a path leads through a model, an optimizer or a tensor, whose state is kept as such."""
        node: ast.AST = ast.parse(path, mode="eval").body
        while isinstance(node, (ast.Attribute, ast.Subscript)):
            node = node.value
            if is_device_type(type(self.peek(node))):
                return True
        return False

    def kept(self, path: str) -> bool:
        """Whether an iteration may read a path, or something that it is a part of, as an earlier one has left it."""
        return any(path == f or within(f, path) or (within(path, f) and path not in known) for f, known in self.first.items())

    def _plain_owner(self, node: ast.AST) -> bool:
        value = self.peek(node)
        return not is_device_type(type(value)) and not isinstance(value, _FIXED)

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
        inside = "replace" if owner is not None and self._plain_owner(owner) and not self._in_device(found[0]) else "mutate"
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
                    how = "replace" if isinstance(self.peek(changed), _CONTAINERS) and not self._in_device(found[0]) else "mutate"
                    self.writes.append(Write(found[0], how, call, value, depth))

    def _changed(self, call: ast.Call) -> Iterator[ast.expr]:
        func, opaque = call.func, id(call) in self.view.opaque
        if isinstance(func, ast.Attribute) and not self._is_held(func):
            owner = self.peek(func.value)
            if isinstance(owner, _GENERATORS) or func.attr in _READING:
                return
            if is_device_type(type(owner)) or isinstance(owner, _FIXED):
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
            for name in _names(s.target):
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


def members_of(target: ast.expr, iterable: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """(name, what it is a member of) for the names of a `for`'s target."""
    names: list[ast.expr] = list(target.elts) if isinstance(target, (ast.Tuple, ast.List)) else [target]
    sources = [iterable] * len(names)
    if isinstance(iterable, ast.Call):
        func = iterable.func
        if isinstance(func, ast.Name) and func.id in ("zip", "enumerate", "reversed", "list", "sorted") and iterable.args:
            names = names[1:] if func.id == "enumerate" else names
            sources = list(iterable.args) if func.id == "zip" else [iterable.args[0]] * len(names)
        elif isinstance(func, ast.Attribute) and func.attr in ("values", "items", "parameters", "named_parameters", "children", "modules"):
            sources = [func.value] * len(names)
    for name, source in zip(names, sources, strict=False):
        for each in _names(name):
            yield each, source


def _names(target: ast.AST) -> list[str]:
    return [n.id for n in ast.walk(target) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]


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
