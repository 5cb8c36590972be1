"""Tensors that leave a loop with a graph: the graph stays on the worker, but its name comes along, so that they print and behave
(`requires_grad`, `is_leaf`, `.numpy()`) as they would have here. A second `backward` raises, as it does here without `retain_graph`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import torch

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_MAX_STAND_INS = 256


def graph_names(value: Any) -> list[str]:
    """The names of the `grad_fn` of every tensor in `value`, in order; "" where it has none, "leaf" for a leaf that requires grad."""
    return [_name(tensor) for tensor in _tensors(value)]


def revived(value: Any, names: Any) -> Any:
    """`value`, with a stand-in graph of the given name on each of its tensors. `names` comes from a worker: what doesn't fit is ignored."""
    if not isinstance(names, list) or len(names) != sum(1 for _ in _tensors(value)) or not all(isinstance(n, str) for n in names):
        return value
    return _revive(value, iter(names))


def _name(tensor: torch.Tensor) -> str:
    if tensor.grad_fn is None:
        return "leaf" if tensor.requires_grad else ""
    return type(tensor.grad_fn).__name__


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)


def _revive(value: Any, names: Iterator[str]) -> Any:
    if isinstance(value, torch.Tensor):
        name = next(names)
        if not name or not (value.is_floating_point() or value.is_complex()):
            return value
        leaf = value.requires_grad_()
        return leaf if name == "leaf" or not _NAME.fullmatch(name) else _stand_in(name).apply(leaf)
    if type(value) in (list, tuple):
        return type(value)(_revive(part, names) for part in value)
    if type(value) is dict:
        return {key: _revive(part, names) for key, part in value.items()}
    return value


@functools.lru_cache(_MAX_STAND_INS)
def _stand_in(name: str) -> Any:
    """An autograd function whose nodes print as `name`."""

    def forward(_ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view_as(tensor)

    def backward(_ctx: Any, *_grads: torch.Tensor) -> Any:
        raise RuntimeError(
            "Trying to backward through the graph a second time: it stayed on the worker that ran the iteration. "
            "Call backward() inside the loop, or compute the value again."
        )

    function: Any = type("Left", (torch.autograd.Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)})
    function._backward_cls.__name__ = name
    return function
