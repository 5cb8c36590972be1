"""What an expression in the user's text may stand for, and the scopes in which its names are looked up. Nothing is called.

A *thing* is a live object (`Live`), a function or class in a tree (`Function`, `Class`), or an instance that doesn't exist yet
(`Instance`).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


@dataclass(eq=False)
class Scope:
    """A module's, a function's or a class body's own names, then those around it."""

    node: ast.AST
    space: Mapping[str, Any]
    parent: Scope | None = None
    free: Mapping[str, Any] = field(default_factory=dict)
    owners: tuple[Thing, ...] = ()  # what `self` may be
    bound: dict[str, list[Thing]] = field(default_factory=dict)  # arguments, from the calls that were seen
    _stores: dict[str, list[Any]] | None = None

    def stores(self) -> dict[str, list[Any]]:
        """By name: the expressions and definitions that this scope's own statements bind it to."""
        if self._stores is None:
            self._stores = {}
            for node in own_nodes(self.node):
                for name, value in _bindings(node):
                    self._stores.setdefault(name, []).append(value)
        return self._stores


@dataclass(frozen=True)
class Live:
    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Live) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


@dataclass(frozen=True)
class Function:
    node: ast.FunctionDef | ast.Lambda
    scope: Scope  # the function's own


@dataclass(frozen=True)
class Class:
    node: ast.ClassDef
    scope: Scope


@dataclass(frozen=True)
class Instance:
    kind: Thing  # a Class, or Live with a type


Thing = Live | Function | Class | Instance


def own_nodes(root: ast.AST) -> Iterator[ast.AST]:
    """Nodes of a scope without those inside the functions and classes in it (which are yielded themselves)."""
    body = getattr(root, "body", [])
    stack: list[ast.AST] = list(reversed(body)) if isinstance(body, list) else [body]
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, _DEFINITIONS):
            stack += reversed(list(ast.iter_child_nodes(node)))


def _bindings(node: ast.AST) -> Iterator[tuple[str, Any]]:
    if isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Name):
                yield target.id, node.value
            elif isinstance(target, (ast.Tuple, ast.List)):
                parts = node.value.elts if isinstance(node.value, (ast.Tuple, ast.List)) else []
                for inner, part in zip(target.elts, parts, strict=False):
                    if isinstance(inner, ast.Name):
                        yield inner.id, part
    elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and isinstance(node.target, ast.Name) and node.value is not None:
        yield node.target.id, node.value
    elif isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name):
        yield node.optional_vars.id, node.context_expr
    elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name, node
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        for alias in node.names:
            yield alias.asname or alias.name.partition(".")[0], (node, alias)


def imported_value(node: ast.Import | ast.ImportFrom, alias: ast.alias) -> Any:
    """What an import statement binds, of a module that is loaded already; None for others."""
    if isinstance(node, ast.Import):
        return sys.modules.get(alias.name if alias.asname else alias.name.partition(".")[0])
    module = sys.modules.get(node.module or "") if not node.level else None
    found = vars(module).get(alias.name) if module is not None else None
    return found if found is not None else sys.modules.get(f"{node.module}.{alias.name}")


def arguments_of(node: ast.AST) -> list[str]:
    if not isinstance(node, (ast.FunctionDef, ast.Lambda)):
        return []
    return [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]


def default_of(node: Any, name: str) -> ast.expr | None:
    """The default of a positional argument."""
    arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
    return dict(zip(reversed(arguments), reversed(node.args.defaults), strict=False)).get(name)


def is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name
