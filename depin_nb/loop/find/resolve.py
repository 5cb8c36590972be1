"""What an expression of the user's may stand for, as far as text and live objects tell. Nothing is called, no property is read."""

from __future__ import annotations

import ast
import functools
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

from .definitions import is_user_code, is_user_module, parse_function
from .reach import Reach
from .things import Class, Function, Instance, Live, Scope, Thing, arguments_of, default_of, imported_value, is_name, own_nodes

_MAX_DEPTH = 12
_MAX_PARTS = 32  # of a list or dict that a body takes its function from
_MAX_OWNERS = 4  # live instances of a class that `self` is taken for


class Resolver:
    """Resolves expressions over a cell's tree and the live objects that it reaches. An empty answer: the text doesn't tell."""

    def __init__(self, tree: ast.Module, namespace: Mapping[str, Any], reached: Reach) -> None:
        self.reached = reached
        self.cell = Scope(tree, namespace)
        self._made: dict[int, Scope] = {id(tree): self.cell}
        self._live: dict[types.FunctionType, Function | None] = {}
        self._active: set[tuple[int, str]] = set()

    # --- scopes ------------------------------------------------------------------------------------

    def function(self, value: types.FunctionType) -> Function | None:
        """A live function of the user's as a tree with its scope."""
        if value not in self._live:
            parsed = parse_function(value)
            self._live[value] = None
            if parsed is not None:
                owners: list[Thing] = []
                for kind in self.reached.owners.get(value, ()):
                    live = self.reached.objects.get(kind, ())[:_MAX_OWNERS]
                    owners += [Live(o) for o in live] or [Instance(Live(kind))]
                scope = Scope(parsed[0], value.__globals__, None, _free(value), tuple(owners))
                self._made[id(parsed[0])] = scope
                self._live[value] = Function(parsed[0], scope)
        return self._live[value]

    def scope_of(self, node: Any, parent: Scope) -> Scope:
        """The scope of a function or class in a tree."""
        if id(node) not in self._made:
            owners: tuple[Thing, ...] = ()
            if isinstance(parent.node, ast.ClassDef) and not isinstance(node, ast.ClassDef):
                owners = (Instance(Class(parent.node, parent)),)
            self._made[id(node)] = Scope(node, parent.space, parent, owners=owners)
        return self._made[id(node)]

    # --- names ---------------------------------------------------------------------------------------

    def resolve(self, node: ast.AST | None, scope: Scope, depth: int = 0) -> list[Thing]:
        """What an expression may stand for."""
        if node is None or depth > _MAX_DEPTH:
            return []
        if isinstance(node, ast.Name):
            return self.name(node.id, scope, depth)
        if isinstance(node, ast.Attribute):
            return [t for base in self.resolve(node.value, scope, depth + 1) for t in self.attribute(base, node.attr, depth + 1)]
        if isinstance(node, ast.Call):
            return self._result(node, scope, depth + 1)
        if isinstance(node, ast.Subscript):
            return [
                t
                for part in self._elements(node.value, scope)
                for t in (self.resolve(part, scope, depth + 1) if isinstance(part, ast.expr) else [part])
            ]
        if isinstance(node, ast.IfExp):
            return [t for part in (node.body, node.orelse) for t in self.resolve(part, scope, depth + 1)]
        if isinstance(node, ast.BoolOp):
            return [t for part in node.values for t in self.resolve(part, scope, depth + 1)]
        if isinstance(node, ast.NamedExpr):
            return self.resolve(node.value, scope, depth + 1)
        if isinstance(node, ast.Lambda):
            return [Function(node, self.scope_of(node, scope))]
        return []

    def name(self, name: str, scope: Scope, depth: int = 0) -> list[Thing]:
        key = id(scope), name
        if key in self._active:  # `model = wrap(model)`: what it was before
            return [Live(scope.space[name])] if name in scope.space else []
        self._active.add(key)
        try:
            return self._name(name, scope, depth)
        finally:
            self._active.discard(key)

    def _name(self, name: str, scope: Scope, depth: int) -> list[Thing]:
        if name in scope.bound:
            return scope.bound[name]
        arguments = arguments_of(scope.node)
        if arguments and name == arguments[0] and scope.owners:
            return list(scope.owners)
        if name in arguments:
            default = default_of(scope.node, name)
            return self.resolve(default, scope.parent, depth + 1) if default is not None and scope.parent is not None else []
        found = scope.stores().get(name)
        if found:
            return [t for value in found for t in self._bound(value, scope, depth + 1)]
        if name in scope.free:
            return [Live(scope.free[name])]
        for node, _ in scope.stores().get("*", ()):
            module = sys.modules.get(node.module or "")
            if module is not None and name in vars(module):
                return [Live(vars(module)[name])]
        parent = scope.parent
        while parent is not None and isinstance(parent.node, ast.ClassDef):
            parent = parent.parent  # a class body's names aren't its methods'
        if parent is not None:
            return self.name(name, parent, depth + 1)
        return [Live(scope.space[name])] if name in scope.space else []

    def _bound(self, value: Any, scope: Scope, depth: int) -> list[Thing]:
        if isinstance(value, ast.FunctionDef):
            return [Function(value, self.scope_of(value, scope))]
        if isinstance(value, ast.ClassDef):
            return [Class(value, self.scope_of(value, scope))]
        if isinstance(value, tuple):
            imported = imported_value(*value)
            return [] if imported is None else [Live(imported)]
        return self.resolve(value, scope, depth)

    # --- attributes and results ---------------------------------------------------------------------------

    def attribute(self, base: Thing, name: str, depth: int = 0) -> list[Thing]:
        if depth > _MAX_DEPTH:
            return []
        if isinstance(base, Live):
            return _live_attribute(base.value, name)
        if isinstance(base, Class):
            own = base.scope.stores().get(name)
            if own:
                return [t for value in own for t in self._bound(value, base.scope, depth + 1)]
            return [t for kind in self._bases(base, depth + 1) for t in self.attribute(kind, name, depth + 1)]
        if isinstance(base, Instance):
            return self.attribute(base.kind, name, depth + 1) or self._made_attribute(base, name, depth + 1)
        return []

    def _elements(self, node: ast.expr, scope: Scope) -> list[Any]:
        """What `steps["a"]` may be: any part of a list or dict, live or written out."""
        texts = scope.stores().get(node.id, []) if isinstance(node, ast.Name) else [node]
        found: list[Any] = [v for t in texts if isinstance(t, ast.Dict) for v in t.values]
        found += [v for t in texts if isinstance(t, (ast.List, ast.Tuple)) for v in t.elts]
        for thing in self.resolve(node, scope, _MAX_DEPTH // 2):
            if isinstance(thing, Live) and type(thing.value) in (list, tuple, dict):
                parts = list(thing.value.values() if isinstance(thing.value, dict) else thing.value)
                found += [Live(part) for part in parts[:_MAX_PARTS]]
        return found

    def _bases(self, kind: Class, depth: int) -> list[Thing]:
        return [t for base in kind.node.bases for t in self.resolve(base, kind.scope.parent or self.cell, depth)]

    def _made_attribute(self, base: Instance, name: str, depth: int) -> list[Thing]:
        """`self.name = ...` in the methods of an instance's class."""
        found: list[Thing] = []
        for method in self._methods(base.kind, depth):
            first = (arguments_of(method.node) or [""])[0]
            for node in own_nodes(method.node):
                if not isinstance(node, ast.Assign):
                    continue
                pairs = [(t, node.value) for t in node.targets]
                if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(node.targets[0].elts, node.value.elts, strict=False))
                for target, value in pairs:
                    if isinstance(target, ast.Attribute) and target.attr == name and is_name(target.value, first):
                        found += self.resolve(value, method.scope, depth + 1)
        return found

    def _methods(self, kind: Thing, depth: int) -> Iterator[Function]:
        if isinstance(kind, Class):
            for node in kind.node.body:
                if isinstance(node, ast.FunctionDef):
                    yield Function(node, self.scope_of(node, kind.scope))
            for base in self._bases(kind, depth + 1) if depth < _MAX_DEPTH else ():
                yield from self._methods(base, depth + 1)
        elif isinstance(kind, Live) and isinstance(kind.value, type):
            for parent in kind.value.__mro__:
                for value in vars(parent).values():
                    if isinstance(value, types.FunctionType) and is_user_code(value.__code__):
                        made = self.function(value)
                        if made is not None:
                            yield made

    def _result(self, node: ast.Call, scope: Scope, depth: int) -> list[Thing]:
        """What a call gives: an instance, a partial's function, what a factory returns."""
        if depth > _MAX_DEPTH:
            return []
        if is_name(node.func, "super") and len(node.args) == 2:
            return [t for owner in self.resolve(node.args[1], scope, depth) for t in self._above(owner, node.args[0], scope, depth)]
        if is_name(node.func, "getattr") and len(node.args) >= 2 and isinstance(node.args[1], ast.Constant):
            return [t for owner in self.resolve(node.args[0], scope, depth) for t in self.attribute(owner, str(node.args[1].value), depth)]
        found: list[Thing] = []
        for thing in self.resolve(node.func, scope, depth):
            if isinstance(thing, Class) or (isinstance(thing, Live) and isinstance(thing.value, type)):
                partial = isinstance(thing, Live) and thing.value is functools.partial
                found += self.resolve(node.args[0], scope, depth) if partial and node.args else [Instance(thing)]
            else:
                function = self.callable(thing)
                if function is not None:
                    self.bind(function, node, scope)
                    found += self._returned(function, depth)
        return found

    def _above(self, owner: Thing, kind: ast.expr, scope: Scope, depth: int) -> list[Thing]:
        """The classes that `super()` looks in."""
        thing = owner.kind if isinstance(owner, Instance) else owner
        if isinstance(thing, Class):
            return self._bases(thing, depth)
        value = thing.value if isinstance(thing, Live) else None
        mro = value.__mro__ if isinstance(value, type) else type(value).__mro__
        here = [t.value for t in self.resolve(kind, scope, depth) if isinstance(t, Live)]
        start = mro.index(here[0]) + 1 if here and here[0] in mro else 1
        return [Live(k) for k in mro[start:]]

    def _returned(self, function: Function, depth: int) -> list[Thing]:
        key = id(function.node), "return"
        if key in self._active or depth > _MAX_DEPTH:
            return []
        if isinstance(function.node, ast.Lambda):
            return self.resolve(function.node.body, function.scope, depth + 1)
        self._active.add(key)
        try:
            returns = [n.value for n in own_nodes(function.node) if isinstance(n, ast.Return)]
            return [t for value in returns for t in self.resolve(value, function.scope, depth + 1)]
        finally:
            self._active.discard(key)

    # --- calls -------------------------------------------------------------------------------------------

    def callable(self, thing: Thing) -> Function | None:
        """The function of the user's that calling a thing runs."""
        if isinstance(thing, Function):
            return thing
        if isinstance(thing, Live):
            value = thing.value
            while isinstance(value, (functools.partial, types.MethodType)):
                value = value.func if isinstance(value, functools.partial) else value.__func__
            if isinstance(value, types.FunctionType):
                inner = vars(value).get("__wrapped__")
                if inner is not None:  # a decorator's wrapper: what it wraps is what it is about
                    return self.callable(Live(inner))
                return self.function(value) if is_user_code(value.__code__) else None
            if isinstance(value, type) or not is_user_module(type(value).__module__):
                return None
            return next((f for t in _live_attribute(value, "__call__") if (f := self.callable(t)) is not None), None)
        if isinstance(thing, Instance):
            return next((f for t in self.attribute(thing, "__call__") if (f := self.callable(t)) is not None), None)
        return None

    def bind(self, function: Function, call: ast.Call, scope: Scope) -> None:
        """Notes what a call gives to a function's arguments."""
        names = arguments_of(function.node)
        static = any(is_name(d, "staticmethod") for d in getattr(function.node, "decorator_list", ()))
        if function.scope.owners and not static:
            names = names[1:]
        given: list[tuple[str, ast.expr]] = list(zip(names, call.args, strict=False))
        given += [(k.arg, k.value) for k in call.keywords if k.arg in names]
        for name, value in given:
            if isinstance(value, ast.Starred):
                return
            known = function.scope.bound.get(name, [])
            new = [t for t in self.resolve(value, scope, _MAX_DEPTH // 2) if t not in known]
            if new:
                function.scope.bound[name] = [*known, *new]


def _live_attribute(value: Any, name: str) -> list[Thing]:
    if isinstance(value, types.ModuleType):
        return [Live(vars(value)[name])] if name in vars(value) else []
    if not isinstance(value, type) and name in getattr(value, "__dict__", {}):
        return [Live(vars(value)[name])]
    for kind in value.__mro__ if isinstance(value, type) else type(value).__mro__:
        if name in vars(kind):
            found = vars(kind)[name]
            found = found.__func__ if isinstance(found, (staticmethod, classmethod)) else found
            return [Live(found.fget if isinstance(found, property) else found)]
    return []


def _free(function: types.FunctionType) -> dict[str, Any]:
    free: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            free[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return free
