"""What a value is to those who bring names back: which have an identity of their own, what they hold, how it is put in place."""

from __future__ import annotations

import collections
import random
import types
from typing import Any

import numpy as np
import torch
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..find.definitions import is_user_module

STATEFUL = ("optimizer", "scheduler", "scaler")
SCALARS = {int, float, bool, str, bytes, complex, type(None)}
TORCH_OWN = frozenset(vars(torch.nn.Module()))
_CONTAINERS = (("list", list), ("dict", dict), ("set", set), ("deque", collections.deque), ("bytearray", bytearray))
_GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)


def is_own(value: Any) -> bool:
    """Whether a function or class was defined by the user."""
    return isinstance(value, (types.FunctionType, type)) and is_user_module(getattr(value, "__module__", None) or "builtins")


def kind_of(value: Any) -> str:
    """What a value is to this module; "" for what has no identity of its own or can't be looked into."""
    if isinstance(value, torch.Tensor):
        return "tensor" if value.layout is torch.strided and type(value) in (torch.Tensor, torch.nn.Parameter) else ""
    if type(value) is np.ndarray:
        return "array" if value.dtype.kind in "biufc" else ""
    for name, kind in _CONTAINERS:
        if isinstance(value, kind):
            return name
    if isinstance(value, torch.nn.Module):
        return "module"
    if isinstance(value, Optimizer):
        return "optimizer"
    if isinstance(value, LRScheduler):
        return "scheduler"
    if isinstance(value, GradScaler):
        return "scaler"
    if isinstance(value, _GENERATORS):
        return "generator"
    if is_own(value):
        return "code"
    own = isinstance(value, types.SimpleNamespace) or (is_own(type(value)) and hasattr(value, "__dict__"))
    return "instance" if own and not isinstance(value, (type, BaseException)) else ""


# --- contents ---


def content(value: Any) -> Any:
    """What an object holds, shallowly, as plain containers; None for kinds that `Roots` reads or that never change."""
    kind = kind_of(value)
    if kind in ("tensor", "array"):
        return value
    if kind in ("list", "set", "deque"):
        return list(value)
    if kind == "dict":
        return [(k, v) for k, v in value.items()]
    if kind == "bytearray":
        return bytes(value)
    if kind == "instance":
        return dict(vars(value))
    if kind == "generator":
        return _generator_state(value)
    if kind == "module":
        return {
            "parameters": dict(value._parameters),
            "buffers": dict(value._buffers),
            "modules": dict(value._modules),
            "training": value.training,
            "own": {k: v for k, v in vars(value).items() if k not in TORCH_OWN},
        }
    return None


def put(value: Any, held: Any) -> None:
    """Makes `held` (as from `content`) the content of an object, in place. Raises what the object raises."""
    kind = kind_of(value)
    if kind == "tensor":
        _put_tensor(value, held)
    elif kind == "array":
        if value.shape != held.shape or value.dtype != held.dtype:
            raise ValueError(f"an array of {held.shape} can't become the content of one of {value.shape}")
        value[...] = held
    elif kind in ("list", "bytearray"):
        value[:] = held
    elif kind == "deque":
        value.clear()
        value.extend(held)
    elif kind == "set":
        value.clear()
        value.update(held)
    elif kind == "dict":
        value.clear()
        for key, part in held:  # a Counter's `update` would count
            value[key] = part
    elif kind == "instance":
        vars(value).clear()
        vars(value).update(held)
    elif kind == "generator":
        _set_generator(value, held)
    elif kind == "module":
        for name in ("parameters", "buffers", "modules"):
            inner = getattr(value, f"_{name}")
            inner.clear()
            inner.update(held[name])
        space = vars(value)
        for name in [k for k in space if k not in TORCH_OWN]:
            del space[name]
        space.update(held["own"])
        space["training"] = bool(held["training"])


def _put_tensor(tensor: torch.Tensor, held: torch.Tensor) -> None:
    with torch.no_grad():
        if tensor.shape == held.shape and tensor.dtype == held.dtype:
            tensor.copy_(held)
        else:
            tensor.data = held.detach().to(tensor.device, copy=True)
    if tensor.is_leaf and tensor.requires_grad != held.requires_grad:
        tensor.requires_grad_(held.requires_grad)


def _generator_state(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.random.Generator):
        return dict(value.bit_generator.state)
    return value.getstate() if isinstance(value, random.Random) else tuple(value.get_state())


def _set_generator(value: Any, state: Any) -> None:
    if isinstance(value, torch.Generator):
        value.set_state(state.clone())
    elif isinstance(value, np.random.Generator):
        value.bit_generator.state = state
    elif isinstance(value, random.Random):
        value.setstate((state[0], tuple(state[1]), state[2]))
    else:
        value.set_state(tuple(state))
