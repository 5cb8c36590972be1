"""What a body's device-side evaluations print, warn and log: taken on the worker, shown in the notebook once, in its place.

Only what the lease's own thread says is taken; a worker's other threads keep their streams. In the notebook it is text: warnings go through
the user's filters and once-only registries, log records to the loggers that exist there.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

OUT, ERR, WARN, LOG = "out", "err", "warn", "log"
MAX_ITERATION_BYTES = 64 << 10
MAX_LEASE_BYTES = 1 << 20
CUT = "\n... cut: more was printed here than is sent\n"
_MAX_NAME = 200

Said = Callable[[str, Any], None]  # (channel, payload): data only

_outlets: dict[int, Said] = {}  # by thread: the lease that runs in it
_installed = threading.RLock()
_originals: list[Any] = []


class Stream(io.TextIOBase):
    """Stands for stdout or stderr while leases run: what a lease's own thread writes goes to its log, all else where it went before."""

    def __init__(self, channel: str, original: Any) -> None:
        self.channel, self.original = channel, original

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self.original, "encoding", None) or "utf-8"

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> int:
        said = _outlets.get(threading.get_ident())
        if said is None:
            return int(self.original.write(text) or 0)
        said(self.channel, str(text))
        return len(text)

    def flush(self) -> None:
        if threading.get_ident() not in _outlets:
            self.original.flush()

    def fileno(self) -> int:
        return int(self.original.fileno())


def surroundings() -> dict[str, Any]:
    """What the kernel's own settings are: loggers' levels, warning filters, and how its clocks stand to each other. Data."""
    levels = {"": logging.root.level}
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level and len(levels) < 500 and len(name) <= _MAX_NAME:
            levels[name] = logger.level
    wall = time.time()
    return {
        "levels": levels,
        "disabled": logging.root.manager.disable,
        "filters": [[a, _pattern(m), _full_name(c), _pattern(mod), n] for a, m, c, mod, n in warnings.filters[:200]],
        "clocks": {name: getattr(time, name)() - wall for name in ("perf_counter", "monotonic")},
    }


def _pattern(pattern: Any) -> str | None:
    return pattern if pattern is None or isinstance(pattern, str) else str(pattern.pattern)


def _full_name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


@contextlib.contextmanager
def listening(said: Said, settings: dict[str, Any]) -> Iterator[None]:
    """Everything that this thread prints, warns or logs goes to `said`, filtered by the kernel's own settings."""
    me, levels = threading.get_ident(), settings.get("levels", {"": logging.WARNING})
    before = _outlets.get(me), _levels.get(me)
    with _streams(), warnings.catch_warnings():
        shown = warnings.showwarning
        _set_filters(settings.get("filters", ()))
        warnings.showwarning = lambda *args, **kwargs: _warned(shown, *args, **kwargs)
        _outlets[me], _levels[me] = said, (levels, int(settings.get("disabled", 0)))
        try:
            yield
        finally:
            held: Any
            for held, value in ((_outlets, before[0]), (_levels, before[1])):
                held.pop(me)
                if value is not None:
                    held[me] = value


@contextlib.contextmanager
def _streams() -> Iterator[None]:
    """The process' streams and loggers, told apart by thread while at least one lease listens."""
    with _installed:
        _originals.append((sys.stdout, sys.stderr, logging.Logger.isEnabledFor, logging.Logger.callHandlers))
        first = len(_originals) == 1
        if first or not isinstance(sys.stdout, Stream):
            sys.stdout, sys.stderr = Stream(OUT, sys.stdout), Stream(ERR, sys.stderr)
        if first:
            logging.Logger.isEnabledFor = _is_enabled_for  # type: ignore[method-assign,assignment]
            logging.Logger.callHandlers = _call_handlers  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        with _installed:
            out, err, enabled, handlers = _originals.pop()
            if not _originals or not isinstance(out, Stream):
                sys.stdout, sys.stderr = out, err
            if not _originals:
                logging.Logger.isEnabledFor = enabled  # type: ignore[method-assign]
                logging.Logger.callHandlers = handlers  # type: ignore[method-assign]


# --- on the worker ------------------------------------------------------------------------------------

_levels: dict[int, tuple[dict[str, int], int]] = {}
_is_enabled_before = logging.Logger.isEnabledFor
_call_handlers_before = logging.Logger.callHandlers


def _is_enabled_for(logger: logging.Logger, level: int) -> bool:
    settings = _levels.get(threading.get_ident())
    if settings is None:
        return _is_enabled_before(logger, level)
    levels, disabled = settings
    name = logger.name if logger is not logging.root else ""
    while name and not levels.get(name):
        name = name.rpartition(".")[0]
    return level > disabled and level >= levels.get(name, logging.WARNING)


def _call_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
    said = _outlets.get(threading.get_ident())
    if said is None:
        _call_handlers_before(logger, record)
        return
    trace = logging.Formatter().formatException(record.exc_info) if record.exc_info and record.exc_info[0] else None
    said(LOG, [record.name, record.levelno, record.getMessage(), record.pathname, record.lineno, record.funcName, trace])


def _set_filters(filters: Any) -> None:
    """The kernel's filters, so that "error" raises and "ignore" is silent there as here; everything else is sent each time."""
    warnings.resetwarnings()
    warnings.simplefilter("always")
    for action, message, category, module, line in reversed(filters):
        found = _class(category, Warning)
        if found is not None:
            known: Any = action if action in ("error", "ignore") else "always"
            warnings.filterwarnings(known, message or "", found, module or "", line)


def _warned(shown: Any, message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    said = _outlets.get(threading.get_ident())
    if said is None:
        shown(message, category, filename, lineno, file, line)
        return
    module, frame = "", sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == filename and frame.f_lineno == lineno:
            module = str(frame.f_globals.get("__name__", ""))
            break
        frame = frame.f_back  # type: ignore[assignment]
    said(WARN, [_full_name(category), str(message), filename, lineno, module])


# --- in the notebook ------------------------------------------------------------------------------------


def show(channel: Any, payload: Any, namespace: dict[str, Any]) -> None:
    """Shows what a worker said. Its payload is data: what doesn't fit is shown as nothing. A filter of the user's may raise a warning."""
    if channel in (OUT, ERR) and type(payload) is str:
        (sys.stdout if channel == OUT else sys.stderr).write(payload)
    elif channel == WARN and _fits(payload, (str, str, str, int, str)):
        _show_warning(namespace, *payload)
    elif channel == LOG and _fits(payload, (str, int, str, str, int, str, (str, type(None)))):
        _show_record(*payload)


def _fits(payload: Any, kinds: tuple[Any, ...]) -> bool:
    return type(payload) is list and len(payload) == len(kinds) and all(isinstance(p, k) for p, k in zip(payload, kinds, strict=True))


def _show_warning(namespace: dict[str, Any], category: str, text: str, filename: str, lineno: int, module: str) -> None:
    kind = _class(category, Warning, namespace)
    if kind is None:
        kind, text = UserWarning, f"{category[:_MAX_NAME]}: {text}"
    space = namespace if module == "__main__" else getattr(sys.modules.get(module), "__dict__", None)
    registry = _registry if space is None else space.setdefault("__warningregistry__", {})
    warnings.warn_explicit(text, kind, filename, max(0, lineno), module=module or None, registry=registry)


_registry: dict[Any, Any] = {}


def _show_record(name: str, level: int, text: str, path: str, line: int, function: str, trace: str | None) -> None:
    known = logging.root.manager.loggerDict.get(name)
    parent = name
    while parent and not isinstance(known, logging.Logger):  # no logger is made because a worker said so
        parent = parent.rpartition(".")[0]
        known = logging.root.manager.loggerDict.get(parent)
    logger = known if isinstance(known, logging.Logger) else logging.root
    level = min(max(level, 0), 1000)
    if not logger.isEnabledFor(level):
        return
    record = logging.LogRecord(name[:_MAX_NAME], level, path, line, text, None, None, function)
    record.exc_text = trace
    logger.handle(record)


def _class(name: str, base: type, namespace: dict[str, Any] | None = None) -> Any:
    """A class that is already there, by its full name; nothing is imported for it."""
    module, _, rest = name.rpartition(".")
    space: Any = namespace if module == "__main__" and namespace is not None else getattr(sys.modules.get(module), "__dict__", {})
    found = space.get(rest)
    return found if isinstance(found, type) and issubclass(found, base) else None


def cut(channel: str, payload: Any, room: int) -> tuple[Any, int]:
    """(`payload` cut to about `room` bytes, its size); (None, 0) where nothing of it fits."""
    text = payload if isinstance(payload, str) else payload[2] if channel == LOG else payload[1]
    size = len(text.encode("utf-8", "replace"))
    if size <= room:
        return payload, size
    if room <= 0 or not isinstance(payload, str):
        return None, 0
    return payload[: room // 4], room


__all__ = [
    "CUT",
    "ERR",
    "LOG",
    "MAX_ITERATION_BYTES",
    "MAX_LEASE_BYTES",
    "OUT",
    "WARN",
    "Stream",
    "cut",
    "listening",
    "show",
    "surroundings",
]
