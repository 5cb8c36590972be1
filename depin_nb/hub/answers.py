"""What a caller is told when something goes wrong: errors as plain data, since exceptions through Dask would be pickled."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import Any

from depin_nb.core import errors
from depin_nb.core.errors import DepinError, HubError
from depin_nb.network.frames import beside, unframed

log = logging.getLogger(__name__)


def error_of(error: BaseException) -> dict[str, Any]:
    """`{"type", "message", "hint", "fields"}` of an error; the nearest type of core/errors.py where it is none of those."""
    if not isinstance(error, DepinError):
        error = HubError(f"the hub met {type(error).__name__}: {error}", hint="The hub's log has the details; `%depin up` starts it again.")
    kind = next((k.__name__ for k in type(error).__mro__ if getattr(errors, k.__name__, None) is k), "HubError")
    return {"type": kind, "message": error.message, "hint": error.hint, "fields": {str(k): _plain(v) for k, v in error.fields.items()}}


def error_answer(error: BaseException) -> dict[str, Any]:
    """The whole answer to a call that failed. Errors that nobody expected go to the log with their traceback."""
    if not isinstance(error, DepinError):
        log.error("an operation failed", exc_info=error)
    return {"error": error_of(error)}


def answering(operation: Callable[..., Any]) -> Callable[..., Any]:
    """An operation as Dask may call it: never raises, for exceptions would be pickled."""

    signature = inspect.signature(operation)  # once: it takes longer than many an operation

    async def handler(**request: Any) -> Any:
        try:
            signature.bind(**request)
            if "data" in request:
                request["data"] = unframed(request["data"])
            answer = operation(**request)
            return beside(await answer if inspect.isawaitable(answer) else answer)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            return error_answer(error)

    handler.__name__ = f"depin_{operation.__name__}"
    return handler


def _plain(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if type(value) in (list, tuple):
        return [_plain(v) for v in value]
    if type(value) is dict:
        return {str(k): _plain(v) for k, v in value.items()}
    return str(value)
