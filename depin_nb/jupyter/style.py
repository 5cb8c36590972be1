"""The style sheets under `static/`, read once. One sheet serves the tier 1 output, the tables of the magics and the panel."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files


@cache
def asset(name: str) -> str:
    """The text of a file under `depin_nb/jupyter/static`."""
    return (files(__package__) / "static" / name).read_text(encoding="utf-8")


@cache
def style() -> str:
    """The shared sheet as a `<style>` element, without the blanks that only its readers need."""
    return f"<style>{squeezed(asset('view.css'))}</style>"


def squeezed(css: str) -> str:
    """CSS without comments and needless blanks (it has no strings that hold any)."""
    css = re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)
    css = re.sub(r"\s+", " ", css)
    return re.sub(r" ?([{};,>]) ?| ?(:) (?=[^{}]*;)", lambda m: m.group(1) or m.group(2), css).replace(";}", "}").strip()
