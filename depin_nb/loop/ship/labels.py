"""The user's own names for objects: `model`, `trainer.optimizer`, `params['w1']`; a number is added where two would be alike."""

from __future__ import annotations

import types
from typing import Any

_DEPTH = 3
_MOST = 512  # entries of one container that are looked at for names
_PLAIN = (str, bytes, int, float, bool, complex, type(None), type, types.ModuleType, types.FunctionType)


class Labels:
    """Names by identity, from the loop's own names first and then from the globals around it. Each label is given once."""

    def __init__(self, names: dict[str, Any], space: dict[str, Any]) -> None:
        self._known: dict[int, str] = {}
        self._given: dict[int, str] = {}
        self._counts: dict[str, int] = {}
        self._used: set[str] = set()
        for source in (names, {n: v for n, v in space.items() if not n.startswith("_")}):
            for name, value in source.items():
                if not isinstance(value, _PLAIN):
                    self._known.setdefault(id(value), name)
        for name, value in names.items():
            self._inside(name, value, 0)

    def _inside(self, path: str, value: Any, depth: int) -> None:
        if depth >= _DEPTH or isinstance(value, _PLAIN):
            return
        parts: list[tuple[str, Any]] = []
        if type(value) is dict:
            parts = [(f"{path}[{key!r}]", part) for key, part in list(value.items())[:_MOST]]
        elif type(value) in (list, tuple):
            parts = [(f"{path}[{place}]", part) for place, part in enumerate(value[:_MOST])]
        elif isinstance(getattr(value, "__dict__", None), dict) and not type(value).__module__.startswith("torch"):
            parts = [(f"{path}.{key}", part) for key, part in vars(value).items() if not key.startswith("_")]
        for name, part in parts:
            if not isinstance(part, _PLAIN) and id(part) not in self._known:
                self._known[id(part)] = name
                self._inside(name, part, depth + 1)

    def known(self, key: int) -> str | None:
        """The name of the object with that id, if there is one."""
        return self._known.get(key)

    def of(self, obj: Any) -> str:
        """The label of an object, the same whenever it is asked for."""
        if id(obj) not in self._given:
            base = self._known.get(id(obj), type(obj).__name__.lower())
            name, count = base, self._counts.get(base, 1)
            while name in self._used:
                count += 1
                name = f"{base}#{count}"
            self._counts[base] = count
            self._used.add(name)
            self._given[id(obj)] = name
        return self._given[id(obj)]
