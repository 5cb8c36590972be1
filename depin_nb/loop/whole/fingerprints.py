"""Digests of values: whether something has changed since, without keeping a copy."""

from __future__ import annotations

import hashlib
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..ship.objects import Roots
from .contents import SCALARS, STATEFUL, content, kind_of


def fingerprint(value: Any, number: Callable[[Any], int | None] = lambda value: None) -> bytes:
    """A digest of a value: tensors by their bytes, plain values by what they print, objects by what they hold.

    `number`: objects that it knows count by their number (the value itself is looked into all the same).
    """
    hasher = hashlib.sha256()
    _Feeder(hasher, number).feed(value, top=True)
    return hasher.digest()


@dataclass
class _Feeder:
    hasher: Any
    number: Callable[[Any], int | None]
    seen: dict[int, Any] = field(default_factory=dict)

    def say(self, text: str) -> None:
        self.hasher.update(text.encode(errors="surrogatepass"))
        self.hasher.update(b"\0")

    def feed(self, value: Any, *, top: bool = False) -> None:
        if type(value) in SCALARS:
            self.say(f"{type(value).__name__} {value!r}")
            return
        if not top and (number := self.number(value)) is not None:
            self.say(f"#{number}")
            return
        if id(value) in self.seen:
            self.say("again")
            return
        self.seen[id(value)] = value
        self.say(type(value).__qualname__)
        kind = kind_of(value)
        if kind in ("tensor", "array"):
            self._bytes(value)
        elif kind in STATEFUL:
            self._stateful(value, kind)
        elif kind == "code":
            self._code(value)
        elif kind in ("set",) or isinstance(value, frozenset):
            for digest in sorted(fingerprint(v, self.number) for v in value):
                self.hasher.update(digest)
        elif type(value) in (list, tuple) and all(type(part) in SCALARS for part in value):
            self.say(repr(value))
        elif kind == "module":
            for part in content(value).values():
                self._held(part)
        elif kind:
            self._held(content(value))
        elif isinstance(value, tuple):
            for part in value:
                self.feed(part)
        elif isinstance(value, (np.generic, range, slice, torch.dtype, torch.device, complex)):
            self.say(repr(value))
        elif isinstance(value, types.ModuleType):
            self.say(value.__name__)
        elif isinstance(value, types.MethodType):
            self.feed(value.__func__)
            self.feed(value.__self__)
        elif hasattr(value, "__dict__") and not isinstance(value, (type, types.FunctionType)):
            self._held(dict(vars(value)))

    def _held(self, held: Any) -> None:
        """A content's own containers are made anew each time, so they aren't remembered."""
        if isinstance(held, dict):
            for key, part in held.items():
                self.say(str(key))
                self.feed(part)
        elif isinstance(held, list):
            for part in held:
                for piece in part if isinstance(part, tuple) else (part,):
                    self.feed(piece)
                self.say(",")
        else:
            self.feed(held)

    def _bytes(self, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            self.say(f"{value.dtype} {tuple(value.shape)} {value.requires_grad}")
            flat = value.detach().cpu().contiguous().reshape(-1)
            self.hasher.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
        else:
            self.say(f"{value.dtype} {value.shape}")
            self.hasher.update(np.ascontiguousarray(value).data if value.size else b"")

    def _stateful(self, value: Any, kind: str) -> None:
        roots = Roots()
        getattr(roots, f"{kind}s")["_"] = value
        state = roots.read({}, rng=False)
        for slot in sorted(state.tensors):
            self.say(slot)
            self._bytes(state.tensors[slot])
        self.say(repr(state.plain))

    def _code(self, value: Any) -> None:
        if isinstance(value, types.FunctionType):
            self._text(value.__code__)
        else:
            for name, part in sorted((n, p) for n, p in vars(value).items() if isinstance(p, types.FunctionType)):
                self.say(name)
                self._text(part.__code__)

    def _text(self, code: types.CodeType) -> None:
        self.hasher.update(code.co_code)
        self.say(repr(code.co_names))
        for constant in code.co_consts:
            self._text(constant) if isinstance(constant, types.CodeType) else self.say(repr(constant))
