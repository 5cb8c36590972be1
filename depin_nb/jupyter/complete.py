"""Completion of subcommands, options, choices and run ids behind `%depin` and `%%depin`."""

from __future__ import annotations

import re
import sys
from typing import Any

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher

from .commands import COMMANDS, RUN, Argument, Command, command

_LINE = re.compile(r"^\s*(%{1,2})depin\s(.*)$")


@context_matcher(priority=200)  # type: ignore[untyped-decorator,unused-ignore]
def depin_matcher(context: CompletionContext) -> SimpleMatcherResult:
    """Completes a `%depin` line, or the first line of a `%%depin` cell."""
    match = _LINE.match(context.text_until_cursor)
    if match is None or (match[1] == "%%" and context.cursor_line != 0):
        return SimpleMatcherResult(completions=[])
    before = match[2].split()
    fragment = before.pop() if before and not match[2][-1:].isspace() else ""
    words = [w for w in candidates(before, cell=match[1] == "%%") if w.startswith(fragment)]
    found = [SimpleCompletion(w, type="keyword") for w in words]
    return SimpleMatcherResult(completions=found, matched_fragment=fragment, suppress=True, ordered=True)


def candidates(before: list[str], *, cell: bool) -> list[str]:
    """The words that may follow `before` (the complete words after the magic's name)."""
    if not before:
        return [c.name for c in COMMANDS if c.cell == cell]
    found = command(before[0])
    if found is None or found.cell != cell:
        return []
    options = {a.name: a for a in found.arguments if a.is_option}
    last = options.get(before[-1])
    if last is not None and not last.flag:
        values = _values(last)
        return values if last.bare is None else [*values, *(o for o in options if o not in before)]
    place = _place(found, before[1:], options)
    return [*(_values(place) if place is not None else []), *(o for o in options if o not in before)]


def _place(found: Command, words: list[str], options: dict[str, Argument]) -> Argument | None:
    """The positional argument that comes next."""
    taken, skip = 0, False
    for word in words:
        if skip:
            skip = False
        elif word.startswith("--"):
            skip = word in options and not options[word].flag
        else:
            taken += 1
    places = [a for a in found.arguments if not a.is_option]
    return places[taken] if taken < len(places) else None


def _values(argument: Argument) -> list[str]:
    if argument.metavar != RUN:
        return list(argument.choices)
    wiring: Any = sys.modules.get("depin_nb.wiring")
    if wiring is None:  # nothing ran in this kernel yet: not worth an import while somebody types
        return []
    try:
        runs = [run for run in wiring.runs() if argument.bare is None or run["resumable"]]
        return [str(run["run_id"]) for run in runs[:20]]
    except Exception:
        return []
