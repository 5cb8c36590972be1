"""Which functions of the user's a piece of code can reach: by name, through other functions, as methods of objects. Nothing is called."""

from __future__ import annotations

import ast
import functools
import types
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from .codes import names_of
from .definitions import is_user_code, is_user_module

_MAX_PARTS = 256  # of a container are looked at
_ATOMS = (str, bytes, int, float, complex, type(None), torch.Tensor, np.ndarray, torch.device, torch.dtype)


class Reach:
    """Collects the user's functions, in the order in which they are met. `owners`: by function, the classes that have it as a method.

    `whole`: also the `forward` of modules, which is never split.
    """

    def __init__(self, *, whole: bool = False) -> None:
        self.whole = whole
        self.functions: list[types.FunctionType] = []
        self.owners: dict[types.FunctionType, list[type]] = {}
        self.objects: dict[type, list[Any]] = {}
        self._seen: dict[int, Any] = {}

    def visit(self, values: Iterable[Any], names: frozenset[str] = frozenset()) -> Reach:
        """`names`: those that the code mentions, for what it takes from modules."""
        queue: list[tuple[Any, frozenset[str]]] = [(value, names) for value in values]
        while queue:
            value, names = queue.pop(0)
            if isinstance(value, types.ModuleType):
                if is_user_module(value.__name__):
                    queue += [(vars(value)[n], names) for n in sorted(names) if n in vars(value)]
            elif not isinstance(value, _ATOMS) and id(value) not in self._seen:
                self._seen[id(value)] = value
                queue += self._parts(value, names)
        return self

    def _parts(self, value: Any, names: frozenset[str]) -> Iterator[tuple[Any, frozenset[str]]]:
        if isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, types.MethodType):
            yield from ((part, names) for part in (value.__func__, value.__self__))
        elif isinstance(value, (functools.partial, functools.partialmethod)):
            yield from ((part, names) for part in (value.func, *value.args, *value.keywords.values()))
        elif isinstance(value, (staticmethod, classmethod)):
            yield value.__func__, names
        elif isinstance(value, property):
            yield from ((part, names) for part in (value.fget, value.fset))
        elif isinstance(value, functools.cached_property):
            yield value.func, names
        elif isinstance(value, type):
            yield from self._class(value, names)
        elif isinstance(value, (list, tuple, set, frozenset, dict)) and type(value).__module__ in ("builtins", "collections"):
            parts = list(value.values()) if isinstance(value, dict) else list(value)
            yield from ((part, names) for part in parts[:_MAX_PARTS])
        elif is_user_module(type(value).__module__):
            self.objects.setdefault(type(value), []).append(value)
            yield type(value), names
            yield from ((part, names) for part in list(getattr(value, "__dict__", {}).values()))
        elif "__wrapped__" in getattr(value, "__dict__", {}):
            yield vars(value)["__wrapped__"], names

    def _function(self, function: types.FunctionType) -> Iterator[tuple[Any, frozenset[str]]]:
        names = frozenset(names_of(function.__code__))
        cells = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
        if not is_user_code(function.__code__):  # an installed decorator's: what it wraps may be the user's
            wrapped = [vars(function).get("__wrapped__"), *cells]
            yield from ((part, names) for part in wrapped if isinstance(part, (types.FunctionType, types.MethodType)))
            return
        self.functions.append(function)
        yield from ((part, names) for part in (*cells, *vars(function).values(), *(function.__defaults__ or ())))
        yield from ((part, names) for part in (function.__kwdefaults__ or {}).values())
        yield from ((function.__globals__[n], names) for n in sorted(names) if n in function.__globals__)

    def _class(self, kind: type, names: frozenset[str]) -> Iterator[tuple[Any, frozenset[str]]]:
        for base in kind.__mro__:
            if not is_user_module(base.__module__):
                continue
            for name, part in list(vars(base).items()):
                if name == "forward" and issubclass(base, torch.nn.Module) and not self.whole:
                    continue  # runs whole, on the worker
                function = part.__func__ if isinstance(part, (staticmethod, classmethod)) else part
                if isinstance(function, types.FunctionType):
                    self.owners.setdefault(function, []).append(kind)
                yield part, names


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - an empty cell raises
    except ValueError:
        return False
    return True


def mentioned(node: ast.AST) -> frozenset[str]:
    """Names and attribute names in a tree."""
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} | {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
    return frozenset(names)


def functions_within(names: dict[str, Any], loop: ast.AST) -> Iterable[types.FunctionType]:
    """Every function of the user's that the body of `loop` can reach through `names`, by whatever name it is called there."""
    return Reach().visit(names.values(), mentioned(loop)).functions


def global_names(names: dict[str, Any], loop: ast.AST) -> set[str]:
    """Names that functions of the user's, as far as the body of `loop` can reach them, may look up in their module."""
    reach = Reach(whole=True).visit(names.values(), mentioned(loop))
    return {name for function in reach.functions for name in names_of(function.__code__)}
