"""Devices of the notebook on another machine: what the user's code asks of a device that isn't here goes to the worker's own."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

ACCELERATORS = ("cuda", "mps", "xpu")


def available(kind: str) -> bool:
    """Whether this process can use devices of that kind."""
    if kind in ("cpu", "meta"):
        return True
    if kind == "cuda":
        return torch.cuda.is_available()
    if kind == "mps":
        return torch.backends.mps.is_available()
    return kind == "xpu" and hasattr(torch, "xpu") and torch.xpu.is_available()


def own_device(kind: str, index: int | None = None) -> torch.device:
    """This process' counterpart of a device: the same kind where it is here (its first one), else another accelerator, else the CPU."""
    if kind in ("cpu", "meta"):
        return torch.device(kind)
    here = kind if available(kind) else next((k for k in ACCELERATORS if available(k)), "cpu")
    return torch.device(here) if here == "cpu" or index is None else torch.device(here, 0)


def mentioned(texts: Iterable[str], used: Iterable[str], loop: ast.For) -> set[str]:
    """Kinds of accelerators that a program may ask for: by text (`"cuda:0"`), or by a method's name (`.cuda()`)."""
    words = {t.split(":")[0] for t in texts} | set(used)
    for node in ast.walk(loop):
        if isinstance(node, ast.Attribute):
            words.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words.add(node.value.split(":")[0])
    return words & set(ACCELERATORS)


class _Elsewhere(TorchFunctionMode):
    """Sends every call that names an absent device to the worker's own."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ACCELERATORS and args and isinstance(args[0], torch.Tensor):  # x.cuda()
            if available(name):
                return func(*args, **kwargs)
            return args[0].to(own_device(name))
        if "device" in kwargs:
            kwargs["device"] = _own(kwargs["device"])
        if name in ("to", "pin_memory", "set_default_device"):
            args = tuple(_own(a) for a in args)
        if name == "pin_memory" and not torch.cuda.is_available():
            return args[0]
        return func(*args, **kwargs)


def _own(value: Any) -> Any:
    if isinstance(value, torch.device):
        return value if available(value.type) else own_device(value.type, value.index)
    if type(value) is str and value.split(":")[0] in ACCELERATORS:
        return value if available(value.split(":")[0]) else own_device(value.split(":")[0])
    return value


@contextlib.contextmanager
def following(kinds: Iterable[str]) -> Iterator[None]:
    """While it is entered, devices of these kinds that aren't here are the worker's own; costs nothing where all of them are."""
    if all(available(kind) for kind in kinds):
        yield
        return
    with _Elsewhere():
        yield
