"""What kind of function is called, the same on both sides: device-side, the user's own, a sink of the notebook's, or impure.

The answer depends on the function alone, so it is kept by function (by type and name for bound methods).
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import sys
import types
import warnings
from collections.abc import Iterable
from typing import Any

from ..find.definitions import is_user_code
from ..values import Ghost, is_device_type, is_impure, is_metric_type, is_sink, is_torch

SINK, IMPURE, TORCH, USER, RECORD, PLAIN = range(6)
_KNOWN: dict[Any, int] = {}
_MOST = 4096
_LOGGING = frozenset({"debug", "info", "warning", "warn", "error", "critical", "exception", "log"})


def kind_of(function: Any) -> int:
    """SINK: acts on the notebook's world. IMPURE: another answer each time. TORCH: device-side. USER: has the user's code.
    RECORD: makes a plain record (dataclass, namedtuple, SimpleNamespace). PLAIN: anything else."""
    key = _key(function)
    if key is None:
        return _classify(function)
    kind = _KNOWN.get(key)
    if kind is None:
        if len(_KNOWN) >= _MOST:
            _KNOWN.clear()
        kind = _KNOWN[key] = _classify(function)
    return kind


def _key(function: Any) -> Any:
    kind = type(function)
    if kind is types.FunctionType:
        return function.__code__, function.__module__
    if kind is types.BuiltinFunctionType:  # also a builtin's bound methods
        owner = function.__self__
        return function if owner is None or type(owner) is types.ModuleType else (type(owner), function.__name__)
    if kind is types.MethodType:
        owner = function.__self__
        inner = function.__func__
        return (type(owner), inner.__code__) if type(inner) is types.FunctionType and not isinstance(owner, type) else None
    return None


def _classify(function: Any) -> int:
    if isinstance(function, Ghost) or is_sink(function):
        return SINK
    if is_impure(function):
        return IMPURE
    if isinstance(function, functools.partial):
        return _classify(function.func)
    owner = getattr(function, "__self__", None)
    if is_metric_type(type(owner)) or is_metric_type(type(function)):
        code = getattr(getattr(function, "__func__", None), "__code__", None)
        return USER if code is not None and is_user_code(code) else SINK
    if is_torch(function):
        return TORCH
    if isinstance(function, type):
        return RECORD if _makes_a_record(function) else PLAIN if function.__module__ == "builtins" else USER
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is None:
        return PLAIN if isinstance(function, (types.BuiltinFunctionType, types.MethodWrapperType)) else USER
    return USER if is_user_code(code) else PLAIN


def _makes_a_record(kind: type) -> bool:
    """Whether a class only keeps what it is given: its `__init__` is generated, not written."""
    if is_device_type(kind):
        return False
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return True
    if kind is types.SimpleNamespace:
        return True
    return dataclasses.is_dataclass(kind) and "__post_init__" not in dir(kind) and kind.__init__.__code__.co_filename == "<string>"


def calls_back(values: Iterable[Any]) -> bool:
    """Whether a device-side evaluation that gets `values` may call one: a function of the body's (a closure for LBFGS, say)."""
    return types.FunctionType in map(type, values)


def with_caller(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """`warnings.warn` and the logging calls say where they stand: the user's line, not ours."""
    if function is warnings.warn:
        if len(args) < 3 and not isinstance(args[0] if args else None, Warning):
            return {**kwargs, "stacklevel": max(1, kwargs.get("stacklevel", 1)) + _own_frames()}
    elif getattr(function, "__name__", "") in _LOGGING:
        owner = getattr(function, "__self__", None)
        if isinstance(owner, logging.Logger) or getattr(function, "__module__", "") == "logging":
            return {**kwargs, "stacklevel": max(1, kwargs.get("stacklevel", 1)) + _own_frames()}
    return kwargs


def _own_frames() -> int:
    """How many of our frames stand between the user's code and the caller of `with_caller`."""
    package = (__package__ or "").rpartition(".")[0]  # all of loop leasing
    frame: types.FrameType | None = sys._getframe(2)
    count = 0
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith(package):
        count, frame = count + 1, frame.f_back
    return count
