"""What must not leave the notebook: passwords, tokens and keys, told by their names or by how they look. They arrive as `Withheld`."""

from __future__ import annotations

import ast
import copy
import dis
import os
import re
import types
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from ...core.errors import WithheldError
from ..find.codes import codes_in
from ..values import Ghost

MIN_NAMED = 4  # characters: shorter texts under a telling name are settings such as "no"
MIN_SOFT = 16  # `token` and `auth` name many harmless things; a key is at least so long
_TELLING = {"password", "passwd", "passphrase", "secret", "secrets", "credential", "credentials", "apikey", "mnemonic"}
_TELLING_PAIRS = {("api", "key"), ("access", "key"), ("private", "key"), ("secret", "key"), ("signing", "key"), ("seed", "phrase")}
_SOFT = {"token", "auth", "bearer"}
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
#: How keys look: PEM, AWS, GitHub, OpenAI-like, Hugging Face, Slack, JSON web tokens. Each needs its whole length, so prose never fits.
_PATTERN = (
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_[A-Za-z0-9_]{22,}"
    r"|\bsk-[A-Za-z0-9_-]{20,}|\bhf_[A-Za-z0-9]{30,}|\bxox[abprs]-[A-Za-z0-9-]{10,}|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+"
)
_KEY, _KEY_BYTES = re.compile(_PATTERN), re.compile(_PATTERN.encode())
_BASE58_KEYPAIR = re.compile(r"[1-9A-HJ-NP-Za-km-z]{86,88}")  # 64 bytes in base58
_IN_SOURCE = re.compile(rf"{_PATTERN}|(?<=[\"']){_BASE58_KEYPAIR.pattern}(?=[\"'])")


class Withheld(Ghost):
    """Stands on a worker for a value that stayed in the notebook because it looks like a secret. Any use of it raises WithheldError."""

    def __init__(self, name: str) -> None:
        super().__init__(name)

    def _refuse(self, *_: Any, **__: Any) -> Any:
        name = self.__dict__["_name"]
        raise WithheldError(f"the loop uses `{name}` on a worker, and that looks like a secret", name=name)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return self._refuse()

    __setattr__ = __call__ = __getitem__ = __setitem__ = __enter__ = __exit__ = _refuse
    __str__ = __format__ = __bytes__ = __bool__ = __len__ = __iter__ = __contains__ = _refuse
    __add__ = __radd__ = __mod__ = __rmod__ = __lt__ = __gt__ = __le__ = __ge__ = _refuse

    def __eq__(self, other: object) -> bool:
        return self is other or bool(self._refuse())

    __hash__ = object.__hash__

    def __reduce__(self) -> Any:
        return Withheld, (self.__dict__["_name"],)

    def __repr__(self) -> str:
        return f"<{self.__dict__['_name']}: withheld, it looks like a secret>"


def telling_name(name: Any, value: Any) -> bool:
    """Whether a text under this name (a variable, a key, an attribute) is taken for a secret."""
    if type(name) is not str or type(value) not in (str, bytes) or len(value) < MIN_NAMED:
        return False
    words = [w.lower() for w in _WORDS.findall(name)]
    if _TELLING.intersection(words) or _TELLING_PAIRS.intersection(pairwise(words)):
        return True
    space = " " if isinstance(value, str) else b" "
    return bool(_SOFT.intersection(words)) and len(value) >= MIN_SOFT and space not in value


def looks_secret(value: Any) -> bool:
    """Whether a value looks like a key by itself, whatever it is called; also the process' environment and wallets."""
    kind = type(value)
    if kind is str:
        return len(value) >= MIN_SOFT and (_KEY.search(value) is not None or _BASE58_KEYPAIR.fullmatch(value) is not None)
    if kind is bytes:
        return (len(value) == 64 and _is_keypair(value)) or (MIN_SOFT <= len(value) <= 1 << 20 and _KEY_BYTES.search(value) is not None)
    if kind is list or kind is tuple:
        return len(value) == 64 and all(type(v) is int and 0 <= v < 256 for v in value) and _is_keypair(bytes(value))
    if isinstance(value, os._Environ):
        return True
    if kind is dict:
        return len(value) >= 4 and "PATH" in value and "HOME" in value and all(type(v) is str for v in value.values())
    module = kind.__module__
    return (module.startswith("solders") and kind.__name__ == "Keypair") or module.startswith("depin_nb.ledger.")


def _is_keypair(data: bytes) -> bool:
    """Whether 64 bytes are an ed25519 seed and its public key, so that a list of 64 labels isn't taken for one."""
    try:
        from solders.keypair import Keypair
    except ImportError:
        return False
    return bytes(Keypair.from_seed(data[:32]).pubkey()) == data[32:]


def named_secrets(values: Mapping[Any, Any]) -> list[tuple[str, Any]]:
    """(name, value) of the entries of a mapping that are secrets by their name."""
    return [(key, value) for key, value in values.items() if telling_name(key, value)]


def redacted(source: str) -> str:
    """Source text with what looks like a key in it blanked."""
    return _IN_SOURCE.sub(lambda found: "*" * len(found.group()), source)


def keys_in(source: str, first: int) -> list[int]:
    """Lines at which `redacted` blanks something; the text's own first line is `first`."""
    return [first + source.count("\n", 0, found.start()) for found in _IN_SOURCE.finditer(source)]


def without_secrets(loop: ast.For) -> tuple[ast.For, list[int]]:
    """The loop as it is, or a copy in which what looks like a key is blanked; and the lines where."""
    if not any(isinstance(n, ast.Constant) and looks_secret(n.value) for n in ast.walk(loop)):
        return loop, []
    loop, lines = copy.deepcopy(loop), []
    for node in ast.walk(loop):
        if isinstance(node, ast.Constant) and looks_secret(node.value):
            lines.append(node.lineno)
            node.value = _blanked(node.value) if isinstance(node.value, str) else None
    return loop, lines


def _blanked(text: str) -> str:
    return "*" * len(text) if _BASE58_KEYPAIR.fullmatch(text) else redacted(text)


def in_code(code: types.CodeType) -> list[tuple[Any, str]]:
    """(constant, how it is called in the plan) of what looks like a key in a function's code and in that of the functions in it."""
    found = []
    for each in codes_in(code):
        for constant in each.co_consts:
            if isinstance(constant, (str, bytes)) and looks_secret(constant):
                lines = [i.positions.lineno for i in dis.get_instructions(each) if i.argval is constant and i.positions]
                line = next((line for line in lines if line), each.co_firstlineno)
                found.append((constant, text_in(f"{code.co_name}()", line)))
    return found


def text_in(where: str, line: int) -> str:
    """What the plan calls a key that stands in the user's source."""
    return f"a text in {where}, line {line}"
