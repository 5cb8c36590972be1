"""A view of the loop's body in which calls of the user's own functions and methods are expanded, for the analysis to read.

Nothing of it is ever run. Parameters are renamed apart, `self` becomes the caller's expression, returns are assigned; `continue` and
early returns become branches, so that what follows them is seen as conditional. Nodes keep the user's lines; a node of a callee says
whose it is (`inside`). What can't be expanded stays a call.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from ..find.definitions import is_user_code, parse_function
from ..find.syntax import names_in, stored_names
from ..paths import is_inlined, member, path_of, peek, renamed
from .inlining import Bound, Rename, at, bind, body_of, converted, free_of, user_function

MAX_DEPTH = 12
MAX_NODES = 30_000


@dataclass
class View:
    """`body`: the expanded statements. `values`: names of callees that have a value of their own. `given`: names that a call hands in,
    so that they may be anything on a device. `opaque`: calls of the user's own code that could not be expanded."""

    body: list[ast.stmt]
    values: dict[str, Any] = field(default_factory=dict)
    given: set[str] = field(default_factory=set)
    opaque: set[int] = field(default_factory=set)  # ids of Call nodes


def expand(body: list[ast.stmt], resolve: Callable[[str], Any]) -> View:
    """The view of a loop's body. `resolve(name)`: a name's present value in the loop's frame (KeyError where it has none)."""
    expander = _Expander(resolve)
    copied = converted(copy.deepcopy(body), ast.Continue)
    expander.view.body = expander.block(copied, ())
    return expander.view


def where(node: ast.AST, default: int = 0) -> str:
    """`line 7`, or `line 3 of step()` for a callee's."""
    inside = getattr(node, "inside", "")
    return f"line {getattr(node, 'lineno', default)}" + (f" of {inside}()" if inside else "")


class _Expander:
    def __init__(self, resolve: Callable[[str], Any]) -> None:
        self.outer, self.view = resolve, View([])
        self.functions: dict[str, ast.FunctionDef | ast.Lambda] = {}  # defined in the view itself
        self.number = self.nodes = 0
        self._parsed: dict[types.CodeType, ast.FunctionDef | None] = {}

    def resolve(self, name: str) -> Any:
        if name in self.view.values:
            return self.view.values[name]
        if is_inlined(name):
            raise KeyError(name)
        return self.outer(name)

    def parsed(self, function: types.FunctionType) -> ast.FunctionDef | None:
        code = function.__code__
        if code not in self._parsed:
            found = parse_function(function)
            self._parsed[code] = found[0] if found else None
        return self._parsed[code]

    def fresh(self, name: str) -> str:
        self.number += 1
        return renamed(name, self.number)

    # --- statements --------------------------------------------------------------------------------------

    def block(self, statements: list[ast.stmt], stack: tuple[Any, ...]) -> list[ast.stmt]:
        result: list[ast.stmt] = []
        for statement in statements:
            result += self.statement(statement, stack)
        return result

    def statement(self, node: ast.stmt, stack: tuple[Any, ...]) -> list[ast.stmt]:
        before: list[ast.stmt] = []
        calls = _Calls(self, before, stack)
        if isinstance(node, ast.FunctionDef):
            self.functions[node.name] = node
            return []
        if isinstance(node, ast.For):
            node.iter = calls.visit(node.iter)
            self._members(node.target, node.iter)
            node.body, node.orelse = self.block(node.body, stack), self.block(node.orelse, stack)
        elif isinstance(node, (ast.If, ast.While)):
            if isinstance(node.test, ast.Constant) and not node.test.value:
                return self.block(node.orelse, stack)
            node.test = calls.visit(node.test)
            node.body, node.orelse = self.block(node.body, stack), self.block(node.orelse, stack)
        elif isinstance(node, ast.With):
            for item in node.items:
                item.context_expr = calls.visit(item.context_expr)
            node.body = self.block(node.body, stack)
        elif isinstance(node, ast.Try):
            node.body, node.orelse = self.block(node.body, stack), self.block(node.orelse, stack)
            node.finalbody = self.block(node.finalbody, stack)
            for handler in node.handlers:
                handler.body = self.block(handler.body, stack)
        elif isinstance(node, ast.Match):
            node.subject = calls.visit(node.subject)
            for case in node.cases:
                case.body = self.block(case.body, stack)
        else:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda) and isinstance(node.targets[0], ast.Name):
                self.functions[node.targets[0].id] = node.value
            for name, value in ast.iter_fields(node):
                if isinstance(value, ast.expr):
                    setattr(node, name, calls.visit(value))
                elif isinstance(value, list):
                    setattr(node, name, [calls.visit(v) if isinstance(v, ast.expr) else v for v in value])
            self._alias(node)
        return [*before, node]

    def _alias(self, node: ast.stmt) -> None:
        """`meter = self.meters["loss"]`: the callee behind `meter.update` is known then too."""
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if (name in self.view.values or self._absent(name)) and not isinstance(node.value, ast.Constant):
                try:
                    self.view.values[name] = peek(node.value, self.resolve)
                except KeyError:
                    self.view.values.pop(name, None)

    def _absent(self, name: str) -> bool:
        try:
            self.resolve(name)
        except KeyError:
            return True
        return False

    def _members(self, target: ast.expr, iterable: ast.expr) -> None:
        """What a `for` over a container of the user's hands out, by any of its members."""
        names = [target] if isinstance(target, ast.Name) else list(target.elts) if isinstance(target, (ast.Tuple, ast.List)) else []
        sources: list[ast.expr] = [iterable]
        if (
            isinstance(iterable, ast.Call)
            and isinstance(iterable.func, ast.Name)
            and iterable.func.id in ("zip", "enumerate", "reversed", "list")
        ):
            sources = list(iterable.args)
            names = names[1:] if iterable.func.id == "enumerate" else names
        elif isinstance(iterable, ast.Call) and isinstance(iterable.func, ast.Attribute) and iterable.func.attr in ("values", "items"):
            names, sources = names[1:] if iterable.func.attr == "items" else names, [iterable.func.value]
        for name, source in zip(names, sources, strict=False):
            if isinstance(name, ast.Name) and (is_inlined(name.id) or self._absent(name.id)):
                try:
                    self.view.values[name.id] = member(peek(source, self.resolve))
                except KeyError:
                    continue

    # --- calls ---------------------------------------------------------------------------------------------

    def call(self, node: ast.Call, before: list[ast.stmt], stack: tuple[Any, ...]) -> ast.expr:
        """The expanded call: its statements go to `before`, its result is the answer. A call that stays is the answer itself."""
        local = self.functions.get(node.func.id) if isinstance(node.func, ast.Name) else None
        if local is not None:
            return self._local(node, local, before, stack)
        found = self._callee(node.func)
        if found is None:
            self._callbacks(node, before, stack)
            return node
        function, receiver, extra = found
        parsed = self.parsed(function)
        bound = None
        if parsed is not None and function.__code__ not in stack and len(stack) < MAX_DEPTH and self.nodes < MAX_NODES:
            bound = bind(parsed, function, node, receiver, extra)
        if parsed is None or bound is None or any(isinstance(n, (ast.Yield, ast.YieldFrom)) for n in ast.walk(parsed)):
            self.view.opaque.add(id(node))
            return node
        body = copy.deepcopy(parsed.body)
        return self._inlined(node, body, bound, free_of(function), function.__name__, before, (*stack, function.__code__), function)

    def _local(self, node: ast.Call, local: ast.FunctionDef | ast.Lambda, before: list[ast.stmt], stack: tuple[Any, ...]) -> ast.expr:
        bound = bind(local, None, node, None, ()) if id(local) not in stack and len(stack) < MAX_DEPTH else None
        if bound is None or self.nodes > MAX_NODES:
            self.view.opaque.add(id(node))
            return node
        name = local.name if isinstance(local, ast.FunctionDef) else ""
        return self._inlined(node, body_of(local), bound, {}, name, before, (*stack, id(local)), None)

    def _inlined(
        self,
        node: ast.Call,
        body: list[ast.stmt],
        bound: Bound,
        free: dict[str, Any],
        name: str,
        before: list[ast.stmt],
        stack: tuple[Any, ...],
        function: types.FunctionType | None,
    ) -> ast.expr:
        kept = {n for s in body for d in ast.walk(s) if isinstance(d, (ast.Global, ast.Nonlocal)) for n in d.names}
        stored = {n for s in body for n in (*stored_names(s), *(d.name for d in ast.walk(s) if isinstance(d, ast.FunctionDef)))} - kept
        mapping: dict[str, ast.expr] = {n: ast.Name(self.fresh(n), ast.Load()) for n in sorted(stored)}
        for parameter, value in bound.items():
            path = path_of(value)
            if parameter not in stored and (isinstance(value, ast.Constant) or (path is not None and path[1])):
                mapping[parameter] = value
                continue
            target = mapping.setdefault(parameter, ast.Name(self.fresh(parameter), ast.Load()))
            assert isinstance(target, ast.Name)
            before += self.statement(at(ast.Assign([ast.Name(target.id, ast.Store())], value), node), stack)
        for parameter, default in bound.defaults.items():
            target = mapping.setdefault(parameter, ast.Name(self.fresh(parameter), ast.Load()))
            assert isinstance(target, ast.Name)
            self.view.values[target.id] = default
            literal = ast.Constant(default) if isinstance(default, (int, float, str, bool, type(None))) else ast.Name(target.id, ast.Load())
            before.append(at(ast.Assign([ast.Name(target.id, ast.Store())], literal), node))
        for parameter in bound.unknown:
            target = mapping.setdefault(parameter, ast.Name(self.fresh(parameter), ast.Load()))
            assert isinstance(target, ast.Name)
            self.view.given.add(target.id)
        self._free(free, {n for s in body for n in names_in(s)} | kept, mapping)
        result = self.fresh("result")
        returned = converted(body, ast.Return, result)
        for statement in returned:
            Rename(mapping, name, function, self.view.values).visit(statement)
            self.nodes += sum(1 for _ in ast.walk(statement))
        before += self.block(returned, stack)
        return at(ast.Name(result, ast.Load()), node)

    def _free(self, free: dict[str, Any], read: Iterable[str], mapping: dict[str, ast.expr]) -> None:
        """Names from elsewhere stay what they are where the loop's frame has the same object under them; others get a name of their own."""
        for name in read:
            if name in mapping or name not in free:
                continue
            try:
                if self.outer(name) is free[name]:
                    continue
            except KeyError:
                pass
            own = renamed(name, abs(hash((name, id(free[name])))) % 10**9)
            self.view.values[own] = free[name]
            mapping[name] = ast.Name(own, ast.Load())

    def _callee(self, func: ast.expr) -> tuple[types.FunctionType, ast.expr | None, tuple[Any, ...]] | None:
        """(function, what it is bound to, arguments that a partial adds) of the user's own code; None for any other callee."""
        if isinstance(func, ast.Attribute):
            try:
                owner = peek(func.value, self.resolve)
            except KeyError:
                return None
            if not isinstance(owner, (types.ModuleType, type)):
                if isinstance(owner, torch.nn.Module) and func.attr == "forward":
                    return None
                return user_function(owner, func.attr, func.value)
        try:
            value = peek(func, self.resolve)
        except KeyError:
            return None
        if isinstance(value, functools.partial) and not value.keywords:
            inner = inspect.unwrap(value.func)
            if isinstance(inner, types.FunctionType) and is_user_code(inner.__code__):
                return inner, None, value.args
            return None
        if isinstance(value, types.MethodType) and isinstance(value.__func__, types.FunctionType) and is_user_code(value.__func__.__code__):
            own = renamed("self", id(value.__self__) % 10**9)
            self.view.values[own] = value.__self__
            return value.__func__, ast.Name(own, ast.Load()), ()
        if isinstance(value, types.FunctionType):
            value = inspect.unwrap(value)
            return (value, None, ()) if isinstance(value, types.FunctionType) and is_user_code(value.__code__) else None
        if isinstance(value, (type, torch.nn.Module)):
            return None
        return user_function(value, "__call__", func)

    def _callbacks(self, node: ast.Call, before: list[ast.stmt], stack: tuple[Any, ...]) -> None:
        """A function of the user's that is handed to somebody else's: it may be called, `optimizer.step(closure)`'s certainly is."""
        certain = False
        if isinstance(node.func, ast.Attribute) and node.func.attr == "step":
            try:
                certain = isinstance(peek(node.func.value, self.resolve), Optimizer)
            except KeyError:
                certain = True
        for argument in (*node.args, *(k.value for k in node.keywords)):
            inner: list[ast.stmt] = []
            if isinstance(argument, ast.Lambda):
                if argument.args.args:
                    continue
                _Calls(self, inner, stack).visit(argument.body)
            elif isinstance(argument, ast.Name):
                local = self.functions.get(argument.id)
                if local is None:
                    found = self._callee(argument)
                    if found is None or found[0].__code__ in stack or self.nodes > MAX_NODES:
                        continue
                    parsed = self.parsed(found[0])
                    if parsed is None or found[1] is not None:
                        continue
                    blank = Bound(unknown=[a.arg for a in (*parsed.args.posonlyargs, *parsed.args.args)])
                    body, code, name = copy.deepcopy(parsed.body), found[0].__code__, found[0].__name__
                    self._inlined(node, body, blank, free_of(found[0]), name, inner, (*stack, code), found[0])
                elif id(local) not in stack:
                    blank = Bound(unknown=[a.arg for a in (*local.args.posonlyargs, *local.args.args)])
                    name = local.name if isinstance(local, ast.FunctionDef) else ""
                    self._inlined(node, body_of(local), blank, {}, name, inner, (*stack, id(local)), None)
            if inner:
                before += inner if certain else [at(ast.If(ast.Constant(True), inner, []), node)]


class _Calls(ast.NodeTransformer):
    """Expands the calls of one expression; statements that come before it go to `before`."""

    def __init__(self, expander: _Expander, before: list[ast.stmt], stack: tuple[Any, ...]) -> None:
        self.expander, self.before, self.stack = expander, before, stack

    def visit_Call(self, node: ast.Call) -> Any:
        self.generic_visit(node)
        return self.expander.call(node, self.before, self.stack)

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        """A property of the user's is a call."""
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load):
            try:
                found = getattr(type(peek(node.value, self.expander.resolve)), node.attr, None)
            except KeyError:
                return node
            if isinstance(found, property) and isinstance(found.fget, types.FunctionType) and is_user_code(found.fget.__code__):
                own = renamed(node.attr, id(found.fget) % 10**9)
                self.expander.view.values[own] = found.fget
                call = at(ast.Call(at(ast.Name(own, ast.Load()), node), [node.value], []), node)
                result = self.expander.call(call, self.before, self.stack)
                return node if result is call else result
        return node

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        node.test = self.visit(node.test)
        body, orelse = self._apart(node, "body"), self._apart(node, "orelse")
        if body or orelse:
            self.before.append(at(ast.If(node.test, body or [ast.Pass()], orelse), node))
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        node.values[0] = self.visit(node.values[0])
        for i, value in enumerate(node.values[1:], 1):
            inner: list[ast.stmt] = []
            node.values[i] = _Calls(self.expander, inner, self.stack).visit(value)
            if inner:
                self.before.append(at(ast.If(node.values[0], inner, []), node))
        return node

    def _apart(self, node: Any, name: str) -> list[ast.stmt]:
        inner: list[ast.stmt] = []
        setattr(node, name, _Calls(self.expander, inner, self.stack).visit(getattr(node, name)))
        return inner

    def visit_Lambda(self, node: ast.Lambda) -> Any:
        return node

    def _comprehension(self, node: Any) -> Any:
        """`[f(v) for v in xs]` with an expanded `f` is a `for` before the statement."""
        for generator in node.generators:
            generator.iter = self.visit(generator.iter)
        targets = {n for g in node.generators for n in stored_names(g.target)}
        rename: dict[str, ast.expr] = {n: ast.Name(self.expander.fresh(n), ast.Load()) for n in targets}
        trial = copy.deepcopy(node)
        Rename(rename, "", None, self.expander.view.values).generic_visit(trial)
        inner: list[ast.stmt] = []
        for generator in trial.generators:
            self.expander._members(generator.target, generator.iter)
        for name in ("elt", "key", "value"):
            if hasattr(trial, name):
                _Calls(self.expander, inner, self.stack).visit(getattr(trial, name))
        if not inner:
            return node
        for generator in reversed(trial.generators):
            for test in generator.ifs:
                inner = [at(ast.If(test, inner, []), node)]
            inner = [at(ast.For(generator.target, generator.iter, inner, []), node)]
        self.before += inner
        return node

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension
