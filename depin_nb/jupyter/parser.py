"""A magic's line as values. Anything not understood is a UsageError with the usage line and the nearest word that exists."""

from __future__ import annotations

import argparse
import difflib
import shlex
from collections.abc import Iterable
from typing import Any, NoReturn

from depin_nb.core.errors import UsageError

from .commands import COMMANDS, Command, command


def parse(line: str, *, cell: bool) -> argparse.Namespace:
    """`line` after `%depin` (or `%%depin` when `cell`): `command` (a Command, None for an empty line), `help` and the arguments' values.

    Raises UsageError, and AmountError for an amount that isn't one.
    """
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise UsageError(f"the line can't be read: {str(error).lower()}") from None
    if not words or words[0] in ("help", "--help", "-h"):
        return argparse.Namespace(command=None, help=True)
    found = command(words[0])
    if found is None:
        names = [c.name for c in COMMANDS if c.cell == cell]
        raise UsageError(f"there is no command {words[0]!r}", hint=f"{_nearest(words[0], names)}Commands: {', '.join(names)}.")
    if set(words[1:]) & {"--help", "-h"}:
        return argparse.Namespace(command=found, help=True)
    if found.cell != cell:
        raise UsageError(
            f"`{found.name}` is {'a cell magic: it goes above the code that it runs' if found.cell else 'for one line, not for a cell'}",
            hint=f"Write `{found.brief}`; `%depin {found.name} --help` lists them."
            if found.brief.endswith("[options]")
            else f"Write `{found.usage}`.",
        )
    return _read(found, words[1:])


def _read(found: Command, words: list[str]) -> argparse.Namespace:
    options = [a.name for a in found.arguments if a.is_option]
    for word in words:
        name = word.split("=", 1)[0]
        if word.startswith("-") and not _is_number(word) and name not in options:
            raise UsageError(f"`{found.name}` has no option {name}", hint=_nearest(name, options) + _usage(found))
    values, left = _argparser(found).parse_known_args(words)
    if left:
        raise UsageError(f"`{found.name}` does not take {' '.join(left)!r}", hint=_usage(found))
    return argparse.Namespace(command=found, help=False, **vars(values))


class _Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would exit (it does so even with `exit_on_error=False`)."""

    def __init__(self, found: Command) -> None:
        super().__init__(add_help=False, allow_abbrev=False, exit_on_error=False)
        self.found = found

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "), hint=_usage(self.found))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(c) for c in action.choices]
            name = (action.option_strings or [action.dest])[0]
            raise UsageError(f"{name} can't be {str(value)!r}", hint=f"{_nearest(str(value), choices)}Choose {' or '.join(choices)}.")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        try:
            return super().parse_known_args(args, namespace)
        except argparse.ArgumentError as error:
            self.error(str(error))


def _argparser(found: Command) -> _Parser:
    parser = _Parser(found)
    for a in found.arguments:
        if a.flag:
            parser.add_argument(a.name, action="store_true")
            continue
        given: dict[str, Any] = {"type": _kind(a.kind), "default": a.default}
        if a.choices:
            given["choices"] = [a.kind(c) for c in a.choices]
        if a.metavar:
            given["metavar"] = a.metavar
        if (not a.is_option and not a.required) or a.bare is not None:
            given["nargs"] = "?"
        if a.bare is not None:
            given["const"] = a.bare
        parser.add_argument(a.name, **given)
    return parser


def _kind(kind: Any) -> Any:
    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            return text  # the check against the choices says what is possible

    return read


def _nearest(word: str, among: Iterable[str]) -> str:
    found = difflib.get_close_matches(word, list(among), 1, 0.5)
    return f"Did you mean {found[0]}? " if found else ""


def _usage(found: Command) -> str:
    return f"Usage: {found.usage}"


def _is_number(word: str) -> bool:
    return word[1:].replace(".", "", 1).isdigit()
