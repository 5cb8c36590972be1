"""What expanding a call takes: its callee, its arguments by parameter, and its returns (or the loop's `continue`) as branches."""

from __future__ import annotations

import ast
import copy
import inspect
import types
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from ..find.definitions import is_user_code
from ..paths import renamed

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


@dataclass
class Bound:
    """A call's arguments by parameter: expressions of the caller's, defaults as values, and parameters that aren't known."""

    given: dict[str, ast.expr] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def items(self) -> list[tuple[str, ast.expr]]:
        return list(self.given.items())


def bind(
    node: ast.FunctionDef | ast.Lambda,
    function: types.FunctionType | None,
    call: ast.Call,
    receiver: ast.expr | None,
    extra: tuple[Any, ...],
) -> Bound | None:
    """Which parameter gets what, as Python binds it; a starred argument stands for all that it may fill. None: it can't be told."""
    spec, bound = node.args, Bound()
    positional = [a.arg for a in (*spec.posonlyargs, *spec.args)]
    names = {*positional, *(a.arg for a in spec.kwonlyargs)}
    given: list[ast.expr] = [receiver] if receiver is not None else []
    if extra:
        if len(extra) > len(positional):
            return None
        bound.defaults.update(zip(positional, extra, strict=False))
        positional = positional[len(extra) :]
    given += call.args
    rest: list[ast.expr] = []
    spread: list[ast.expr] = []
    for argument in given:
        if isinstance(argument, ast.Starred):
            spread.append(argument.value)
            for name in positional:
                bound.given[name] = argument.value
            positional = []
        elif positional:
            bound.given[positional.pop(0)] = argument
        else:
            rest.append(argument)
    more: list[ast.expr] = []
    for keyword in call.keywords:
        if keyword.arg is None:
            more.append(keyword.value)
        elif keyword.arg in names:
            bound.given[keyword.arg] = keyword.value
        elif spec.kwarg is not None:
            more.append(keyword.value)
        else:
            return None
    if (rest and spec.vararg is None and not spread) or (more and spec.kwarg is None and not any(k.arg is None for k in call.keywords)):
        return None
    if spec.vararg is not None:
        bound.given[spec.vararg.arg] = ast.Tuple([*rest, *spread], ast.Load())
    if spec.kwarg is not None:
        bound.given[spec.kwarg.arg] = ast.Tuple(more, ast.Load())
    _defaults(spec, function, bound, more)
    missing = names - bound.given.keys() - bound.defaults.keys() - set(bound.unknown)
    return None if missing and function is not None else _unknown(bound, missing)


def _unknown(bound: Bound, missing: set[str]) -> Bound:
    bound.unknown += sorted(missing)
    return bound


def _defaults(spec: ast.arguments, function: types.FunctionType | None, bound: Bound, more: list[ast.expr]) -> None:
    positional = [a.arg for a in (*spec.posonlyargs, *spec.args)]
    if function is not None:
        defaults = dict(zip(reversed(positional), reversed(function.__defaults__ or ()), strict=False))
        defaults.update(function.__kwdefaults__ or {})
        bound.defaults.update({k: v for k, v in defaults.items() if k not in bound.given and k not in bound.defaults})
    else:
        nodes = dict(zip(reversed(positional), reversed(spec.defaults), strict=False))
        nodes.update({a.arg: d for a, d in zip(spec.kwonlyargs, spec.kw_defaults, strict=True) if d is not None})
        bound.given.update({k: copy.deepcopy(v) for k, v in nodes.items() if k not in bound.given})
    for value in more:  # `**options` may fill any parameter that has nothing else
        for name in [n for n in (*positional, *(a.arg for a in spec.kwonlyargs)) if n not in bound.given]:
            bound.defaults.pop(name, None)
            bound.given[name] = value


def user_function(owner: Any, attribute: str, receiver: ast.expr) -> tuple[types.FunctionType, ast.expr | None, tuple[Any, ...]] | None:
    """A method of the user's own code on an object, with what it is bound to."""
    own = getattr(owner, "__dict__", {}).get(attribute) if not isinstance(owner, (torch.nn.Module, Optimizer)) else None
    if isinstance(own, types.FunctionType):
        return (own, None, ()) if is_user_code(own.__code__) else None
    raw = next((vars(base)[attribute] for base in type(owner).__mro__ if attribute in vars(base)), None)
    bound: ast.expr | None = receiver
    if isinstance(raw, staticmethod):
        raw, bound = raw.__func__, None
    elif isinstance(raw, classmethod):
        raw = raw.__func__
    if not isinstance(raw, types.FunctionType):
        return None
    function = inspect.unwrap(raw)
    return (function, bound, ()) if isinstance(function, types.FunctionType) and is_user_code(function.__code__) else None


def free_of(function: types.FunctionType) -> dict[str, Any]:
    """What a function's names from elsewhere mean now: its globals and its closure."""
    found = {n: function.__globals__[n] for n in function.__code__.co_names if n in function.__globals__}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            found[name] = cell.cell_contents
        except ValueError:
            continue
    return found


# --- leaving early --------------------------------------------------------------------------------------------


def converted(body: list[ast.stmt], leaving: type[ast.stmt], result: str = "") -> list[ast.stmt]:
    """`body` without `return` (or the leased loop's `continue`): what follows one is in the other branch, or in one that may be taken."""
    out: list[ast.stmt] = []
    for i, statement in enumerate(body):
        if isinstance(statement, leaving):
            return [*out, *_left(statement, result)]
        if not _leaves(statement, leaving):
            out.append(statement)
            continue
        rest = body[i + 1 :]
        if isinstance(statement, ast.If):
            ends, else_ends = _ends(statement.body, leaving), _ends(statement.orelse, leaving)
            if ends or else_ends:
                statement.body = converted(statement.body if ends else [*statement.body, *rest], leaving, result)
                statement.orelse = converted(statement.orelse if else_ends else [*statement.orelse, *rest], leaving, result)
                return [*out, statement]
        for name in ("body", "orelse", "finalbody"):
            if getattr(statement, name, None):
                setattr(statement, name, converted(getattr(statement, name), leaving, result))
        for handler in getattr(statement, "handlers", ()):
            handler.body = converted(handler.body, leaving, result)
        for case in getattr(statement, "cases", ()):
            case.body = converted(case.body, leaving, result)
        out.append(statement)
        if rest and isinstance(statement, ast.With):
            return [*out, *converted(rest, leaving, result)]
        if rest:
            maybe = ast.If(ast.Constant(True), converted(rest, leaving, result), [])
            return [*out, ast.fix_missing_locations(ast.copy_location(maybe, statement))]
        return out
    return out


def _left(statement: Any, result: str) -> list[ast.stmt]:
    value = getattr(statement, "value", None)
    marker = ast.copy_location(ast.Pass(), statement)
    marker.leaves = True  # type: ignore[attr-defined]
    if not result:
        return [marker]
    assign = ast.Assign([ast.Name(result, ast.Store())], value or ast.Constant(None))
    return [ast.fix_missing_locations(ast.copy_location(assign, statement)), marker]


def _leaves(node: ast.AST, leaving: type[ast.stmt]) -> bool:
    if isinstance(node, leaving):
        return True
    stops = (*_SCOPES, ast.For, ast.While) if leaving is ast.Continue else _SCOPES
    return not isinstance(node, stops) and any(_leaves(child, leaving) for child in ast.iter_child_nodes(node))


def _ends(body: list[ast.stmt], leaving: type[ast.stmt]) -> bool:
    """Whether the statements surely end in leaving, or in what goes even further."""
    if not body:
        return False
    last = body[-1]
    if isinstance(last, (leaving, ast.Return, ast.Raise)) or (leaving is ast.Continue and isinstance(last, ast.Break)):
        return True
    return isinstance(last, ast.If) and _ends(last.body, leaving) and _ends(last.orelse, leaving)


# --- names apart ------------------------------------------------------------------------------------------------


class Rename(ast.NodeTransformer):
    """Puts a callee's names apart and says on each node whose it is."""

    def __init__(self, mapping: dict[str, ast.expr], inside: str, function: types.FunctionType | None, values: dict[str, Any]) -> None:
        self.mapping, self.inside, self.function, self.values = mapping, inside, function, values

    def visit(self, node: ast.AST) -> Any:
        if self.inside and "lineno" in node._attributes:
            node.inside = self.inside  # type: ignore[attr-defined]
        return super().visit(node)

    def visit_Name(self, node: ast.Name) -> Any:
        new = self.mapping.get(node.id)
        if new is None:
            return node
        if isinstance(new, ast.Name):
            renamed_node = ast.copy_location(ast.Name(new.id, node.ctx), node)
            renamed_node.inside = getattr(node, "inside", "")  # type: ignore[attr-defined]
            return renamed_node
        return at(copy.deepcopy(new), node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        if isinstance(new := self.mapping.get(node.name), ast.Name):
            node.name = new.id
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> Any:
        """`super().method(...)` is the function that it finds."""
        func = node.func
        if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Call) and isinstance(func.value.func, ast.Name):
            inner = func.value.func
            if inner.id == "super" and self.function is not None:
                free = inspect.getclosurevars(self.function).nonlocals if "__class__" in self.function.__code__.co_freevars else {}
                owner, first = free.get("__class__"), self.function.__code__.co_varnames[:1]
                for base in owner.__mro__[1:] if isinstance(owner, type) else ():
                    found = vars(base).get(func.attr)
                    if isinstance(found, types.FunctionType) and first:
                        own = renamed(func.attr, id(found) % 10**9)
                        self.values[own] = found
                        node.func = at(ast.Name(own, ast.Load()), node)
                        node.args = [at(ast.Name(first[0], ast.Load()), node), *node.args]
                        break
        return self.generic_visit(node)


def body_of(local: ast.FunctionDef | ast.Lambda) -> list[ast.stmt]:
    if isinstance(local, ast.FunctionDef):
        return copy.deepcopy(local.body)
    value = copy.deepcopy(local.body)
    return [at(ast.Return(value), value)]


def at(node: Any, like: ast.AST) -> Any:
    for child in ast.walk(node):
        if "lineno" in child._attributes and not hasattr(child, "lineno"):
            ast.copy_location(child, like)
            child.inside = getattr(like, "inside", "")  # type: ignore[attr-defined]
    return node
