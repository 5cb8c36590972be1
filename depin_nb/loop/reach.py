"""Which functions of the user's a piece of code can reach: by name, through other functions, as methods of plain objects."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from collections.abc import Iterator
from typing import Any

from .callees import Callees, is_user_code
from .values import is_device_type, owner_module, within


def parse_function(function: types.FunctionType) -> tuple[ast.FunctionDef, str] | None:
    """A user's function as a tree with the line numbers of its file, and its source; None when there is no source."""
    if not is_user_code(function.__code__):
        return None
    try:
        source = textwrap.dedent(inspect.getsource(function))
        tree = ast.parse(source)
    except (OSError, TypeError, SyntaxError):
        return None
    if not tree.body or not isinstance(tree.body[0], ast.FunctionDef):
        return None
    ast.increment_lineno(tree, function.__code__.co_firstlineno - 1)
    return tree.body[0], source


def reachable(tree: ast.AST, namespace: dict[str, Any]) -> Iterator[tuple[types.FunctionType, ast.FunctionDef, str]]:
    """Functions and methods of the notebook that the code may call, transitively."""
    seen: set[types.CodeType] = set()
    defined = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    queue: list[tuple[ast.AST, dict[str, Any]]] = [(tree, namespace)]
    while queue:
        node, space = queue.pop()
        for name in {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}:
            if (name in defined and space is namespace) or name not in space:
                continue
            for function in functions_of(space[name]):
                if function.__code__ in seen:
                    continue
                seen.add(function.__code__)
                parsed = parse_function(function)
                if parsed is not None:
                    yield function, *parsed
                    queue.append((parsed[0], function.__globals__))


def functions_of(value: Any) -> list[types.FunctionType]:
    if isinstance(value, types.MethodType):
        value = value.__func__
    if isinstance(value, types.FunctionType):
        return [value]
    kind = value if isinstance(value, type) else type(value)
    if kind.__module__.split(".")[0] in ("torch", "numpy", "builtins"):
        return []
    return [
        f
        for base in kind.__mro__
        if base is not object
        for f in vars(base).values()
        if isinstance(f, types.FunctionType) and f.__name__ != "forward" and is_user_code(f.__code__)
    ]


def add_callees(callees: Callees, names: dict[str, Any]) -> None:
    """Takes up every function of the user's that the body can reach: by name, through other functions, as methods of plain objects."""
    queue = list(names.values())
    seen: set[int] = set()
    while queue:
        value = queue.pop()
        if id(value) in seen or is_device_type(type(value)) or (isinstance(value, type) and is_device_type(value)):
            continue
        seen.add(id(value))
        if isinstance(value, types.FunctionType) and within(owner_module(value), ("torch",)):
            continue
        for function in functions_of(value):
            if parse_function(function) is not None and callees.add(function):
                queue += [function.__globals__[n] for n in function.__code__.co_names if n in function.__globals__]
