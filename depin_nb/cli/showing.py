"""One answer, as JSON or as text."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any


def show(arguments: argparse.Namespace, data: Any, text: Callable[[], str]) -> None:
    """Prints `data` where `--json` was given, else `text()`."""
    print(json.dumps(data, indent=1, default=str) if arguments.json else text())
