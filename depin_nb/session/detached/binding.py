"""Brings results into a notebook: everything is read and checked first, then put in place; if that fails midway, it is taken back."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ...core.errors import BindError
from ...core.state import State
from ...loop.ship.objects import Roots, write_rng
from ...loop.whole.anchors import Anchors
from ...loop.whole.contents import content, put
from .results import Left

_ABSENT = object()


@dataclass
class Undo:
    """What was there before: `back()` puts it there again."""

    namespace: dict[str, Any]
    names: dict[str, Any] = field(default_factory=dict)
    contents: list[tuple[Any, Any]] = field(default_factory=list)
    roots: Roots = field(default_factory=Roots)
    state: State = field(default_factory=State)
    generators: State | None = None
    grads: list[tuple[torch.Tensor, torch.Tensor | None]] = field(default_factory=list)

    def back(self) -> None:
        for obj, held in reversed(self.contents):
            put(obj, held)
        self.roots.write(self.state, {}, rng=False)
        _drop_new_moments(self.roots, self.state)
        for tensor, grad in self.grads:
            tensor.grad = grad
        if self.generators is not None:
            write_rng(self.generators)
        for name, value in self.names.items():
            if value is _ABSENT:
                self.namespace.pop(name, None)
            else:
                self.namespace[name] = value


def bind(left: Left, namespace: dict[str, Any], *, anchors: Anchors | None, roots: Roots | None) -> Undo:
    """Puts everything in place. Raises BindError, and then nothing has changed."""
    if left.anew:
        return _bind_anew(left, namespace)
    assert anchors is not None
    assert roots is not None
    try:
        objects = [(anchors.objects[number], held) for number, held in left.contents.items()]
    except IndexError:
        raise BindError("the results name an object that the notebook never had") from None
    own = _labelled(roots, left.state)
    undo = _noted(namespace, left, [obj for obj, _ in objects], own)
    with _taken_back(undo):
        for obj, held in objects:
            put(obj, held)
        own.write(left.state, {}, rng=False)
        write_rng(left.generators)
        namespace.update(left.names)
        for name in left.deleted:
            namespace.pop(name, None)
    return undo


def _bind_anew(left: Left, namespace: dict[str, Any]) -> Undo:
    """In a kernel that has none of the objects: names are made; a module of the same shape that is there takes the weights."""
    names, values = dict(left.names), []
    for name, tensors in left.modules.items():
        here = namespace.get(name)
        if isinstance(here, torch.nn.Module) and name in names:
            state = here.state_dict(keep_vars=True)
            if set(state) == set(tensors) and all(state[k].shape == t.shape for k, t in tensors.items()):
                values += [(state[k], t) for k, t in tensors.items()]
                names[name] = here
    undo = Undo(namespace, {n: namespace.get(n, _ABSENT) for n in names}, [(t, t.detach().clone()) for t, _ in values])
    for tensor, before in undo.contents:
        before.requires_grad_(tensor.requires_grad)
    with _taken_back(undo):
        for tensor, value in values:
            put(tensor, value)
        namespace.update(names)
    return undo


def bind_state(state: State, namespace: dict[str, Any]) -> Undo:
    """Weights of a merge alone, by the names that they had: for a run whose process was killed."""
    labels = {slot.partition("/")[0] for slot in state.tensors} | {key.partition("/")[0] for key in state.plain}
    roots = Roots()
    for label in sorted(labels & namespace.keys()):
        value = namespace[label]
        if isinstance(value, torch.nn.Module):
            roots.modules[label] = value
        elif isinstance(value, torch.optim.Optimizer):
            roots.optimizers[label] = value
        elif isinstance(value, torch.optim.lr_scheduler.LRScheduler):
            roots.schedulers[label] = value
        elif isinstance(value, torch.Tensor) and label in state.tensors:
            roots.tensors[label] = value
    if not (roots.modules or roots.tensors):
        raise BindError(
            f"none of {', '.join(sorted(labels - {'rng', 'names'}))} is in this notebook",
            hint="Make the model first, under the name that it had; or take `depin_nb.attach(RUN).state_dict()`.",
        )
    undo = Undo(namespace, roots=roots, state=roots.read({}, rng=False))
    with _taken_back(undo):
        roots.write(state, {}, rng=False)
    return undo


class _taken_back:
    """Whatever goes wrong inside: all is put back as it was."""

    def __init__(self, undo: Undo) -> None:
        self.undo = undo

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        self.undo.back()
        if isinstance(error, Exception):
            raise BindError(f"the results don't fit into this notebook: {type(error).__name__}: {error}; nothing was changed") from error


def _noted(namespace: dict[str, Any], left: Left, objects: list[Any], roots: Roots) -> Undo:
    return Undo(
        namespace,
        {n: namespace.get(n, _ABSENT) for n in (*left.names, *left.deleted)},
        [(obj, _kept(content(obj))) for obj in objects],
        roots,
        roots.read({}, rng=False),
        Roots().read({}, rng=True),
        [(t, None if t.grad is None else t.grad.clone()) for _, _, t in roots.slots() if t.is_leaf],
    )


def _kept(held: Any) -> Any:
    if isinstance(held, torch.Tensor):
        return held.detach().clone().requires_grad_(held.requires_grad and held.is_leaf)
    return held.copy() if isinstance(held, np.ndarray) else held


def _labelled(roots: Roots, state: State) -> Roots:
    """Those of the roots that the state speaks of."""
    labels = {key.partition("/")[0] for key in (*state.plain, *state.tensors)}
    return Roots(
        modules={k: v for k, v in roots.modules.items() if k in labels},
        optimizers={k: v for k, v in roots.optimizers.items() if k in labels},
        schedulers={k: v for k, v in roots.schedulers.items() if k in labels},
        scalers={k: v for k, v in roots.scalers.items() if k in labels},
        tensors={k: v for k, v in roots.tensors.items() if k in labels},
        watched=roots.watched,
        grads=roots.grads,
    )


def _drop_new_moments(roots: Roots, state: State) -> None:
    """Optimizer state that did not exist before goes again: a write only adds."""
    for label, optimizer in roots.optimizers.items():
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, parameter in enumerate(parameters):
            prefix = f"{label}/{index}/"
            plain = state.plain.get(f"{label}/state", {}).get(index, {})
            held = optimizer.state.get(parameter)
            if held and not plain and not any(slot.startswith(prefix) for slot in state.tensors):
                del optimizer.state[parameter]


def warn_changed(names: list[str], run_id: str) -> None:
    """Says, once, which names the user has changed since the capture."""
    if names:
        warnings.warn(
            f"{', '.join(names)} changed here since {run_id} was detached; what the run left is bound all the same"
            " (`run.unbind()` puts it back)",
            stacklevel=3,
        )
