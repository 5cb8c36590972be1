"""Exceptions between worker and notebook: described as data there, raised here as their own type, with the user's lines.

What comes from a worker makes only exception classes that this kernel already has, and never runs a constructor of the user's or reads a
file that isn't known to hold code.
"""

from __future__ import annotations

import builtins
import linecache
import sys
import traceback
import types
from typing import Any

from ...core import errors
from ...core.errors import RemoteError
from ..values import is_value

_MAX_TEXT = 10_000
_MAX_FRAMES = 20
_MAX_CHAIN = 4
_PACKAGE = __file__.replace("\\", "/").partition("/loop/halves/")[0] + "/"


def described(error: BaseException, depth: int = 0) -> dict[str, Any]:
    """An exception as data: its type's name, message, arguments, attributes, frames, and what it came from."""
    kind = type(error)
    args = error.args
    if isinstance(error, OSError) and error.filename is not None:  # not among its args, but among its constructor's
        args = (error.errno, error.strerror, error.filename)
    simple = [a for a in args if is_value(a) and not isinstance(a, set)]
    data: dict[str, Any] = {
        "type": kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}",
        "message": _cut(_text(error)),
        "args": [_cut(a) if isinstance(a, str) else a for a in simple] if len(simple) == len(args) <= 8 else None,
        "attributes": {k: v for k, v in list(vars(error).items())[:16] if k.isidentifier() and k != "__notes__" and _small(v)},
        "frames": _frames(error.__traceback__),
        "notes": [_cut(str(n)) for n in getattr(error, "__notes__", ())[:8]],
        "silent": error.__suppress_context__,
    }
    if depth < _MAX_CHAIN:
        for name, other in (("cause", error.__cause__), ("context", error.__context__)):
            if other is not None:
                data[name] = described(other, depth + 1)
        if isinstance(error, BaseExceptionGroup):
            data["group"] = [described(e, depth + 1) for e in error.exceptions[:16]]
    return data


def rebuilt(data: Any, namespace: dict[str, Any], depth: int = 0) -> BaseException:
    """A worker's exception as its own type where this kernel has that type, else a RemoteError that names it."""
    if type(data) is not dict or not all(type(data.get(k)) is str for k in ("type", "message")):
        return RemoteError("a worker failed and its report can't be read", type_name="?")
    error = _made(data, namespace, depth)
    for note in data.get("notes") or []:
        if type(note) is str:
            error.add_note(note)
    lines = _shown(data.get("frames"))
    if len(lines) > 1:
        error.add_note("On the worker, innermost last:\n" + "\n".join(lines))
    if depth < _MAX_CHAIN:
        if type(data.get("cause")) is dict:
            error.__cause__ = rebuilt(data["cause"], namespace, depth + 1)
        if type(data.get("context")) is dict and error.__cause__ is None:
            error.__context__ = rebuilt(data["context"], namespace, depth + 1)
    error.__suppress_context__ = data.get("silent") is True
    return error


def users_own(error: BaseException) -> BaseException:
    """`error` without the frames of this package between the user's line and the raise. Errors of this package keep theirs."""
    if isinstance(error, errors.DepinError):
        return error
    kept: list[types.TracebackType] = []
    trace = error.__traceback__
    while trace is not None:
        if not _is_ours(trace.tb_frame.f_code.co_filename):
            kept.append(trace)
        trace = trace.tb_next
    if not kept:
        return error
    for this, following in zip(kept, [*kept[1:], None], strict=True):
        this.tb_next = following
    return error.with_traceback(kept[0])


# --- on the worker ------------------------------------------------------------------------------------


def _frames(trace: types.TracebackType | None) -> list[list[Any]]:
    """[file, line, function, text] of the user's frames, and of a library's last one."""
    frames = [f for f in traceback.extract_tb(trace) if not _is_ours(f.filename)]
    users = [f for f in frames if is_user_file(f.filename)]
    if frames and frames[-1] not in users:
        users.append(frames[-1])
    return [[f.filename, f.lineno or 0, f.name, (f.line or "")[:200]] for f in users[-_MAX_FRAMES:]]


def is_user_file(filename: str) -> bool:
    name = filename.replace("\\", "/")
    return "site-packages" not in name and "/lib/python3" not in name and "<frozen" not in name and not _is_ours(name)


def _is_ours(filename: str) -> bool:
    return filename.replace("\\", "/").startswith(_PACKAGE)


def _text(error: BaseException) -> str:
    try:
        return str(error.args[0] if isinstance(error, BaseExceptionGroup) else error)
    except Exception:
        return "its message can't be made"


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + " ... cut"


def _small(value: Any) -> bool:
    return is_value(value) and not isinstance(value, set) and len(repr(value)) < 1000


# --- in the notebook ------------------------------------------------------------------------------------


def _made(data: dict[str, Any], namespace: dict[str, Any], depth: int) -> BaseException:
    name, message, args = data["type"], data["message"], data.get("args")
    kind = known(name, namespace)
    if kind is None:
        return RemoteError(f"{name}: {message}", type_name=name)
    try:
        if type(data.get("group")) is list and issubclass(kind, ExceptionGroup) and depth < _MAX_CHAIN:
            inner = [e for e in (rebuilt(d, namespace, depth + 1) for d in data["group"]) if isinstance(e, Exception)]
            return kind(message, inner)
        if issubclass(kind, errors.DepinError):
            return kind(message.partition("\n  -> ")[0], hint=message.partition("\n  -> ")[2])
        if not isinstance(args, list):
            error: BaseException = kind(message)
        elif isinstance(kind.__init__, types.FunctionType) or isinstance(kind.__new__, types.FunctionType):
            error = Exception.__new__(kind, *args)  # the user's own constructor isn't run on a worker's word
            attributes = data.get("attributes")
            error.__dict__.update({k: v for k, v in attributes.items() if type(k) is str} if type(attributes) is dict else {})
            if _cut(str(error)) != message:
                raise ValueError(message)
        else:
            error = kind(*args)
    except Exception:
        return RemoteError(f"{name}: {message}", type_name=name)
    return error


def known(name: str, namespace: dict[str, Any]) -> type[Exception] | None:
    """An exception class by its full name: Python's, one of a module that is imported already, or the user's own."""
    if "." not in name:
        found: Any = getattr(builtins, name, None)
    else:
        parts = name.split(".")
        module = next((".".join(parts[:i]) for i in range(len(parts) - 1, 0, -1) if ".".join(parts[:i]) in sys.modules), "")
        rest = parts[len(module.split(".")) :] if module else parts[1:]
        found = types.SimpleNamespace(**{rest[0]: _in(namespace if module in ("", "__main__") else vars(sys.modules[module]), rest[0])})
        for part in rest:
            found = vars(found).get(part) if isinstance(found, (type, types.SimpleNamespace)) else None
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def _in(space: dict[str, Any], name: str) -> Any:
    return space.get(name)


def _shown(frames: Any) -> list[str]:
    lines = []
    for frame in frames if isinstance(frames, list) else []:
        if isinstance(frame, list) and len(frame) == 4 and [type(part) for part in frame] == [str, int, str, str]:
            filename, number, name, text = frame
            text = (_line(filename, number) or text).strip()
            where = f"{name}, line {number}" if is_user_file(filename) else f"{filename.replace(chr(92), '/').rpartition('/')[2]}, {name}"
            lines.append(f"  {where}: {text}" if text else f"  {where}")
    return lines[-_MAX_FRAMES:]


def _line(filename: str, number: int) -> str:
    """A line of a file that is known to hold code: a cell, or the file of a module that is imported."""
    if filename not in linecache.cache and not any(getattr(m, "__file__", None) == filename for m in list(sys.modules.values())):
        return ""
    return linecache.getline(filename, number)
