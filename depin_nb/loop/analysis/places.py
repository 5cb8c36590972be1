"""What an expression of a view stands for: the object behind it, and the one path by which that object goes."""

from __future__ import annotations

import ast
import types
from collections.abc import Iterator
from typing import Any

import torch

from ..paths import is_inlined, look, path_of, peek, split
from ..values import is_device_type
from .inline import View

WRITING = {"append", "appendleft", "extend", "extendleft", "insert", "add", "clear", "update", "subtract", "discard"}
FIXED = (types.ModuleType, type, types.FunctionType, types.BuiltinFunctionType, str, bytes, int, float, complex, bool)


class Places:
    """`aliases`: names that stand for another path, and whether they are bound to it exactly (not to a member of it)."""

    def __init__(self, view: View, resolve: Any) -> None:
        self.view, self._outer = view, resolve
        self.aliases: dict[str, tuple[str, bool]] = {}
        self._by_id: dict[int, str] = {}
        self._find_aliases()

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
        if value is None or isinstance(value, (*FIXED, tuple, frozenset, torch.Tensor, torch.Size)):
            return text
        return self._by_id.setdefault(id(value), text)

    def _find_aliases(self) -> None:
        """Names that are bound once, to an object that has a path: what happens to the one happens to the other."""
        bound: dict[str, list[tuple[ast.expr, bool]]] = {}
        for node in (n for s in self.view.body for n in ast.walk(s)):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    for name in names_in(target):
                        bound.setdefault(name, []).append((node.value, isinstance(target, ast.Name)))
            elif isinstance(node, (ast.AugAssign, ast.AnnAssign, ast.NamedExpr)) and isinstance(node.target, ast.Name):
                bound.setdefault(node.target.id, []).append((node.target, False))
            elif isinstance(node, (ast.For, ast.comprehension)):
                for name, source in members_of(node.target, node.iter):
                    bound.setdefault(name, []).append((source, isinstance(node, ast.For)))
            elif isinstance(node, ast.withitem) and node.optional_vars is not None:
                for name in names_in(node.optional_vars):
                    bound.setdefault(name, []).append((node.context_expr, False))
        for name, sources in bound.items():
            (source, whole), single = sources[0], len(sources) == 1
            found = path_of(source) if single and whole else None
            if found is None or split(found[0])[0] == name or is_device_type(type(self.peek(source))):
                continue
            member = any(isinstance(n, ast.For) and name in names_in(n.target) for s in self.view.body for n in ast.walk(s))
            value = self.peek(source)
            if value is not None and not isinstance(value, (*FIXED, tuple)):
                self.aliases[name] = (found[0], found[1] and not member)

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
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not self.is_held(node.func):
            if not (node.func.attr in WRITING and self.is_plain(node.func.value)):
                yield from self._paths(node.func.value)
            for child in (*node.args, *node.keywords):
                yield from self._paths(child)
            return
        for child in ast.iter_child_nodes(node):
            yield from self._paths(child)

    def is_held(self, func: ast.Attribute) -> bool:
        """Whether what is called is an object of its own that the owner holds (`self.model(x)`), not a method."""
        value = self.peek(func)
        return value is not None and not isinstance(value, (types.MethodType, types.BuiltinMethodType, types.MethodWrapperType))

    def in_device(self, path: str) -> bool:
        """Whether a path leads through a model, an optimizer or a tensor, whose state is kept as such."""
        node: ast.AST = ast.parse(path, mode="eval").body
        while isinstance(node, (ast.Attribute, ast.Subscript)):
            node = node.value
            if is_device_type(type(self.peek(node))):
                return True
        return False

    def is_plain(self, node: ast.AST) -> bool:
        """Whether it is a container or an object of the user's, not a model, a tensor or something fixed."""
        value = self.peek(node)
        return not is_device_type(type(value)) and not isinstance(value, FIXED)


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
        for each in names_in(name):
            yield each, source


def names_in(target: ast.AST) -> list[str]:
    """The names that a target binds."""
    return [n.id for n in ast.walk(target) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
