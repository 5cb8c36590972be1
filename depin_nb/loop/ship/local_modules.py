"""The user's own `.py` files beside the notebook: what they define travels by value, for no worker can import it."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import cloudpickle

from ..find.definitions import is_user_file


def is_local(module: types.ModuleType) -> bool:
    """Whether a module is a file of the user's (not installed, not Python's, not ours)."""
    name, file = getattr(module, "__name__", ""), getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py") or name == "__main__" or name.split(".")[0] == "depin_nb":
        return False
    return is_user_file(file)


def local_modules() -> dict[str, types.ModuleType]:
    """All that are imported now, by name."""
    return {name: m for name, m in list(sys.modules.items()) if type(m) is types.ModuleType and is_local(m)}


@contextlib.contextmanager
def by_value(modules: dict[str, types.ModuleType]) -> Iterator[None]:
    """Has cloudpickle write what these modules define instead of naming it, for the time of a dump."""
    registered = set(cloudpickle.list_registry_pickle_by_value())
    mine = [m for name, m in modules.items() if name not in registered and sys.modules.get(m.__name__) is m]
    for module in mine:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in mine:
            if module.__name__ in cloudpickle.list_registry_pickle_by_value():
                cloudpickle.unregister_pickle_by_value(module)


def made_module(name: str, made: dict[str, types.ModuleType]) -> types.ModuleType:
    """On a worker: the empty module of that name which a program's functions fill; importable there by the user's own `import`."""
    if name not in made:
        module = made[name] = types.ModuleType(name)
        module.__dict__["__depin_made__"] = True
        known = sys.modules.get(name)
        if known is None or "__depin_made__" in vars(known):
            sys.modules[name] = module
    return made[name]


def contents(module: types.ModuleType, used: set[str]) -> dict[str, Any]:
    """What of a module's names the program mentions anywhere."""
    return {name: value for name, value in vars(module).items() if name in used and not name.startswith("__")}
