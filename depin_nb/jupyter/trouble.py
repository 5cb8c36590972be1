"""How IPython shows a DepinError: its message and what to do next instead of our frames. The cell fails all the same."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

from depin_nb.core.errors import DepinError

_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep
_RED, _PLAIN = "\x1b[31m", "\x1b[0m"


def compact(error: DepinError, *, colour: bool = True) -> list[str]:
    """The lines shown: type and message, the cell's own line where the error has it, the hint, and what it came from."""
    red, plain = (_RED, _PLAIN) if colour else ("", "")
    lines = [f"{red}{type(error).__name__}{plain}: {error.message}"]
    source, line = error.fields.get("source"), error.fields.get("line")
    if isinstance(source, str) and source.strip() and source.strip() not in error.message:
        where = f"line {line}: " if isinstance(line, int) else ""
        lines += [f"    {where}{part.rstrip()}" for part in source.strip("\n").splitlines()[:6]]
    if error.hint:
        lines.append(f"  -> {error.hint}")
    cause = error.__cause__
    if cause is not None:
        lines.append(f"  (from {type(cause).__name__}: {cause})")
    return lines


def users_frames(error: BaseException) -> TracebackType | None:
    """The traceback from the first frame that isn't ours on, which is where the user's code begins; all of it when every frame is ours."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OURS):
        trace = trace.tb_next
    return trace or error.__traceback__


def install() -> None:
    """Gives DepinError the method that IPython asks an exception for its rendering. `%xmode Verbose` still shows every frame."""
    DepinError._render_traceback_ = _render  # type: ignore[attr-defined]


def _render(error: DepinError) -> list[str]:
    from IPython import get_ipython  # type: ignore[attr-defined,unused-ignore]

    ip: Any = get_ipython()  # type: ignore[no-untyped-call,unused-ignore]
    tb = getattr(ip, "InteractiveTB", None)
    if tb is not None and getattr(tb, "mode", "") in ("Verbose", "Docs"):
        return list(tb.structured_traceback(type(error), error, error.__traceback__))
    return compact(error, colour=getattr(ip, "colors", "").lower() != "nocolor")
