"""Installed packages that a program refers to: named with their versions when it is shipped, checked before it is opened."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version

from ...core.errors import MissingPackage

_OURS = {"depin_nb", "__main__", "builtins", ""}


@cache
def _by_root() -> Mapping[str, list[str]]:
    return packages_distributions()  # reads every installed package's file list: 0.2 s, once


@lru_cache(maxsize=4096)
def distribution_of(root: str) -> tuple[str, str] | None:
    """(distribution, version) of a top-level module, None for Python's own, the user's and what no package owns."""
    if root in _OURS or root in sys.stdlib_module_names:
        return None
    for name in [root, *_by_root().get(root, ())] if root not in ("torch", "numpy") else [root]:
        found = version_of(name)
        if found is not None:
            return name, found
    return None


@lru_cache(maxsize=4096)
def version_of(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def needed(roots: Iterable[str]) -> dict[str, str]:
    """{distribution: version} of the packages that these top-level modules belong to, by name; torch first of all, as all need it."""
    found = dict(filter(None, (distribution_of(root) for root in {"torch", *roots})))
    return dict(sorted(found.items()))


def check(packages: Mapping[str, str]) -> None:
    """Raises MissingPackage, naming all of those that this process lacks."""
    version_of.cache_clear()  # a package may have been installed since
    missing = sorted(name for name in packages if version_of(name) is None)
    if missing:
        raise MissingPackage(f"this worker lacks {', '.join(missing)}", packages=missing)
