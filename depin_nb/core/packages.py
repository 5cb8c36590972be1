"""Packages by name and version, as workers tell them and programs need them. Pure; names compare as the package index does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MAX_PACKAGES = 2000
MAX_NAME, MAX_VERSION = 128, 64  # characters


def checked(value: Any) -> dict[str, str] | None:
    """{distribution: version} as far as it is well-formed and bounded; None for anything but a mapping."""
    if not isinstance(value, dict):
        return None
    given = list(value.items())[:MAX_PACKAGES]
    return {
        name: version
        for name, version in given
        if isinstance(name, str) and isinstance(version, str) and 0 < len(name) <= MAX_NAME and len(version) <= MAX_VERSION
    }


def normal(name: str) -> str:
    """The name by which distributions are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lacking(needed: Mapping[str, str], have: Mapping[str, str]) -> list[str]:
    """Names of `needed` that aren't in `have`."""
    known = {normal(name) for name in have}
    return [name for name in needed if normal(name) not in known]


def other_versions(needed: Mapping[str, str], have: Mapping[str, str]) -> list[str]:
    """`torch 2.12.0` and so on: what `have` holds of `needed` in another version."""
    known = {normal(name): version for name, version in have.items()}
    return [f"{name} {known[normal(name)]}" for name, version in needed.items() if known.get(normal(name), version) != version]
