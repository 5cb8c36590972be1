"""Hooks that the user has put on models and tensors: they run on the worker, and so do the containers that they fill."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

_ON_MODULES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_SIMPLE = (str, bytes, int, float, bool, complex, tuple, type(None))
_PLAIN = (*_SIMPLE, type, types.ModuleType, types.FunctionType, torch.Tensor, torch.nn.Module)


def filled_by_hooks(modules: Iterable[torch.nn.Module], names: dict[str, Any]) -> dict[str, Any]:
    """Containers and objects among `names` that a hook of the models reaches: device-side, as what a hook puts there is."""
    by_id = {id(value): name for name, value in names.items() if not isinstance(value, _PLAIN)}
    found: dict[str, Any] = {}
    for module in modules:
        for part in module.modules():
            for kind in _ON_MODULES:
                for hook in vars(part).get(kind, {}).values():
                    found.update({by_id[id(v)]: v for v in _reached(hook) if id(v) in by_id})
    return found


def _reached(hook: Any) -> Iterator[Any]:
    if isinstance(hook, functools.partial):
        yield from (*hook.args, *hook.keywords.values())
        hook = hook.func
    if isinstance(hook, types.MethodType):
        yield hook.__self__
        yield from vars(hook.__self__).values() if hasattr(hook.__self__, "__dict__") else ()
        hook = hook.__func__
    if isinstance(hook, types.FunctionType):
        bound = inspect.getclosurevars(hook)
        yield from (*bound.nonlocals.values(), *bound.globals.values())
    elif hasattr(hook, "__dict__"):
        yield hook
        yield from vars(hook).values()


def hooks_of(tensors: Iterable[torch.Tensor]) -> list[tuple[torch.Tensor, list[Any], list[Any]]]:
    """(tensor, its gradient hooks, its hooks after accumulation) of those that have some."""
    found = []
    for tensor in tensors:
        before = list((tensor._backward_hooks or {}).values()) if tensor.is_leaf else []
        after = list((getattr(tensor, "_post_accumulate_grad_hooks", None) or {}).values())
        if before or after:
            found.append((tensor, before, after))
    return found


def put_hooks(found: Iterable[tuple[torch.Tensor, list[Callable[..., Any]], list[Callable[..., Any]]]]) -> None:
    """On a worker: the same hooks on its own tensors."""
    for tensor, before, after in found:
        for hook in before:
            tensor.register_hook(hook)
        for hook in after:
            tensor.register_post_accumulate_grad_hook(hook)


def put_back(container: Any, values: Any) -> None:
    """What hooks have left in a container on the worker, into the notebook's own, in place; other objects stay as they are."""
    if isinstance(container, dict) and type(values) is dict:
        container.clear()
        container.update(values)
    elif isinstance(container, list) and type(values) is list:
        container[:] = values
