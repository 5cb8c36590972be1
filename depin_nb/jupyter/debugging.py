"""`%depin debug`: the newest failing iterations again in this kernel, then the shell's own debugger at the user's line."""

from __future__ import annotations

import sys
from typing import Any

from depin_nb.loop import debug


def post_mortem(shell: Any, pdb: Any = None) -> BaseException | None:
    """Opens the debugger (`pdb`, or a new one of the shell's kind) on the newest failure; says so when it doesn't repeat here.

    Raises UsageError when nothing has failed.
    """
    error = debug.rerun()
    if error is None:
        print(
            "The failure doesn't repeat here: the same iterations ran without an error on copies. It may need the worker's device or files."
        )
        return None
    print(f"{type(error).__name__}: {error}")
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    pdb = pdb or shell.debugger_cls()
    pdb.reset()
    pdb.interaction(None, error.__traceback__)
    return error
