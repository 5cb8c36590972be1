"""The notebook's own functions that a body calls: instrumented like the body, from sources that travel with the program."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import RefusedLoop
from .split import RUNTIME, Instrument, refuse_unsupported

Key = tuple[str, int, str]  # file name, first line, name: the same on both sides


def key_of(code: types.CodeType) -> Key:
    return code.co_filename, code.co_firstlineno, code.co_name


def is_user_code(code: types.CodeType) -> bool:
    """Whether a function is the user's own (a cell's or a local file's) and not an installed package's or Python's."""
    name = code.co_filename.replace("\\", "/")
    return "site-packages" not in name and "dist-packages" not in name and "/lib/python3" not in name and "<frozen" not in name


def underlying(function: Any) -> tuple[types.FunctionType | None, Any]:
    """The Python function behind a callable and the `self` it is bound to."""
    if isinstance(function, types.FunctionType):
        return function, None
    if isinstance(function, types.MethodType) and isinstance(function.__func__, types.FunctionType):
        return function.__func__, function.__self__
    call = vars(type(function)).get("__call__")  # an instance of a user's class
    if isinstance(call, types.FunctionType) and not isinstance(function, type):
        return call, function
    return None, None


@dataclass
class Callees:
    """Sources of the user's functions by key. A function of the user without one here runs whole, on the worker only ("opaque")."""

    sources: dict[Key, str] = field(default_factory=dict)
    _compiled: dict[types.CodeType, types.CodeType | None] = field(default_factory=dict, repr=False)
    _touched: dict[int, dict[str, Any]] = field(default_factory=dict, repr=False)

    def add(self, function: types.FunctionType) -> bool:
        """Takes a function up if its source is there and can be split; False when it stays opaque."""
        key = key_of(function.__code__)
        if key in self.sources:
            return True
        if function.__code__.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
            return False
        try:
            source = textwrap.dedent(inspect.getsource(function))
            tree = ast.parse(source)
            node = tree.body[0]
            if not isinstance(node, ast.FunctionDef) or "__class__" in function.__code__.co_freevars or _mangled(node):
                return False
            refuse_unsupported(node.body)
        except (OSError, TypeError, SyntaxError, IndexError, RefusedLoop):
            return False
        self.sources[key] = source
        return True

    def is_opaque(self, function: Any) -> bool:
        target, _ = underlying(function)
        if target is None or not is_user_code(target.__code__) or self.is_instrumented(target):
            return False
        return key_of(target.__code__) not in self.sources

    @staticmethod
    def is_instrumented(function: Any) -> bool:
        target, _ = underlying(function)
        return target is not None and RUNTIME in target.__code__.co_names

    def compiled(self, function: Any, runtime: Any) -> Any:
        """An instrumented twin of a user's function (bound like it), or None."""
        target, owner = underlying(function)
        if target is None or not is_user_code(target.__code__) or self.is_instrumented(target):
            return None
        code = self._code(target.__code__)
        if code is None:
            return None
        space = target.__globals__
        if space.get(RUNTIME) is not runtime:
            self._touched[id(space)] = space
            space[RUNTIME] = runtime
        twin = types.FunctionType(code, space, target.__name__, target.__defaults__, target.__closure__)
        twin.__kwdefaults__ = target.__kwdefaults__
        return twin if owner is None else types.MethodType(twin, owner)

    def release(self) -> None:
        """Takes the runtime out of the modules that it was put in."""
        for space in self._touched.values():
            space.pop(RUNTIME, None)
        self._touched.clear()

    def _code(self, code: types.CodeType) -> types.CodeType | None:
        if code not in self._compiled:
            source = self.sources.get(key_of(code))
            self._compiled[code] = None if source is None else _instrument(source, code)
        return self._compiled[code]


def _mangled(node: ast.AST) -> bool:
    """Whether a method uses private names (`self.__x`), which only mean something inside their class."""
    return any(isinstance(n, ast.Attribute) and n.attr.startswith("__") and not n.attr.endswith("__") for n in ast.walk(node))


def _instrument(source: str, code: types.CodeType) -> types.CodeType:
    tree = ast.parse(source)
    ast.increment_lineno(tree, code.co_firstlineno - 1)
    node = tree.body[0]
    assert isinstance(node, ast.FunctionDef)
    node.decorator_list = []
    node.body = Instrument(worker=False, function=True).body(node.body)
    # A factory gives the twin the same free variables, in the same order, as the original.
    factory = ast.parse("def __depin_factory__():\n    pass").body[0]
    assert isinstance(factory, ast.FunctionDef)
    cells: list[ast.stmt] = [ast.parse(f"{name} = None").body[0] for name in code.co_freevars]
    factory.body = [*cells, node]
    module = ast.fix_missing_locations(ast.Module(body=[factory], type_ignores=[]))
    outer = compile(module, code.co_filename, "exec", dont_inherit=True)
    outer_code = next(c for c in outer.co_consts if isinstance(c, types.CodeType))
    return next(c for c in outer_code.co_consts if isinstance(c, types.CodeType) and c.co_name == code.co_name)
