"""Between a program's objects and a `State`: which tensors and plain values training changes, by slot, read and written in place."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ...core.codec import can_encode, decode, encode
from ...core.errors import ReplayError
from ...core.state import BUFFER, CARRIED, COUNTER, INNER, PARAM, RNG, STEP, State
from . import beside
from .carry import read_carried, write_carried


@dataclass
class Roots:
    """The stateful objects of a program by label, in the same order on both sides, and the names of tensors carried between iterations.

    `watched`: tensors that are no part of these; what a solo worker changes in place among them comes back too. `marks`: on a worker.
    """

    modules: dict[str, torch.nn.Module] = field(default_factory=dict)
    optimizers: dict[str, Optimizer] = field(default_factory=dict)
    schedulers: dict[str, LRScheduler] = field(default_factory=dict)
    scalers: dict[str, GradScaler] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    carried: tuple[str, ...] = ()
    grads: bool = False
    watched: dict[str, torch.Tensor] = field(default_factory=dict)
    marks: beside.Marks | None = None

    def mark(self) -> None:
        """Notes how things stand as the program was opened: what differs from that is read."""
        self.marks = beside.mark(self.modules, self.watched)

    def beside(self) -> dict[str, Any]:
        """What differs from the mark beside weights and buffers: attributes and watched tensors, as copies."""
        if self.marks is None:
            return {}
        tensors = {f"tensors/{k}": t.detach().clone() for k, t in beside.changed_tensors(self.watched, self.marks).items()}
        return {**beside.read(self.modules, self.marks), **tensors}

    def kept_beside(self, before: dict[str, Any]) -> list[str]:
        """What another, equal iteration changed again, in plain words: it is handed from one iteration to the next."""
        return beside.kept(before, self.beside())

    # --- slots -----------------------------------------------------------------------------------

    def slots(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """(slot, kind, tensor) of every parameter, buffer and free tensor; a tied one appears once."""
        seen: set[int] = set()
        for label, module in self.modules.items():
            for name, parameter in module.named_parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield f"{label}/{name}", PARAM, parameter
            for name, buffer in module.named_buffers():
                if id(buffer) not in seen:
                    seen.add(id(buffer))
                    yield f"{label}/{name}", BUFFER if buffer.is_floating_point() else COUNTER, buffer
        for label, tensor in self.tensors.items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield label, PARAM if tensor.requires_grad else BUFFER if tensor.is_floating_point() else COUNTER, tensor

    def trainable(self) -> list[torch.Tensor]:
        return [t for _, kind, t in self.slots() if kind == PARAM and t.requires_grad]

    def sparse(self) -> set[int]:
        """Ids of parameters whose gradients are sparse: embeddings that were made so."""
        parts = (part for module in self.modules.values() for part in module.modules() if getattr(part, "sparse", False) is True)
        return {id(parameter) for part in parts for parameter in part.parameters(recurse=False)}

    # --- reading -----------------------------------------------------------------------------------

    def read(self, env: dict[str, Any], *, rng: bool, grads: bool | None = None) -> State:
        """A copy of everything that training changes; `rng`: also the generators and what iterations carry (solo)."""
        state = State()

        def put(slot: str, kind: str, tensor: torch.Tensor) -> None:
            state.tensors[slot] = tensor.detach().to("cpu", copy=True).contiguous()
            state.kinds[slot] = kind

        for slot, kind, tensor in self.slots():
            put(slot, kind, tensor)
            if (self.grads if grads is None else grads) and tensor.grad is not None:
                _read_grad(slot, tensor.grad, put)
        for label, optimizer in self.optimizers.items():
            self._read_optimizer(label, optimizer, put, state.plain)
        for label, scheduler in self.schedulers.items():
            state.plain[label] = {k: v for k, v in scheduler.state_dict().items() if can_encode(v)}
        for label, scaler in self.scalers.items():
            state.plain[label] = scaler.state_dict()
        for label, module in self.modules.items():
            state.plain[f"{label}/training"] = [part.training for part in module.modules()]
        if self.marks is not None:
            state.plain.update(beside.read(self.modules, self.marks))
        if rng:
            for label, tensor in beside.changed_tensors(self.watched, self.marks).items() if self.marks is not None else ():
                put(f"tensors/{label}", CARRIED, tensor)
            read_carried(env, self.carried, put, state)
            put("rng/torch", RNG, torch.get_rng_state())
            state.plain["rng/python"] = random.getstate()
            state.plain["rng/numpy"] = tuple(np.random.get_state())
        return state

    @staticmethod
    def _read_optimizer(label: str, optimizer: Optimizer, put: Any, plain: dict[str, Any]) -> None:
        others: dict[int, dict[str, Any]] = {}
        for index, parameter in enumerate(_parameters(optimizer)):
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    kind = STEP if key == "step" or not value.is_floating_point() else INNER
                    put(f"{label}/{index}/{key}", kind, value)
                elif can_encode(value):
                    others.setdefault(index, {})[key] = value
        plain[f"{label}/state"] = others
        plain[f"{label}/groups"] = [{k: v for k, v in g.items() if k != "params" and can_encode(v)} for g in optimizer.param_groups]

    # --- writing -----------------------------------------------------------------------------------

    def write(self, state: State, env: dict[str, Any], *, rng: bool) -> None:
        """Puts `state` into the objects, in place: ids, aliases and devices stay. Raises ReplayError before anything changes."""
        known = {slot: tensor for slot, _, tensor in self.slots()}
        for slot, tensor in known.items():
            if slot in state.tensors and state.tensors[slot].shape != tensor.shape:
                raise ReplayError(f"the trained {slot} has another shape than the notebook's", detail=slot)
        with torch.no_grad():
            for slot, tensor in known.items():
                if slot in state.tensors:
                    tensor.copy_(state.tensors[slot])
                grad = _written_grad(slot, tensor, state)
                if grad is not None or self.grads:  # where gradients travel, one that isn't there was cleared
                    tensor.grad = grad
            for label, tensor in self.watched.items():
                new = state.tensors.get(f"tensors/{label}")
                if new is not None and new.shape == tensor.shape:
                    tensor.copy_(new)
        for label, optimizer in self.optimizers.items():
            _write_optimizer(label, optimizer, state)
            if not rng:  # a worker that is in order sees for itself; elsewhere it has stepped, on a worker: schedulers ask for it
                optimizer._opt_called = True  # type: ignore[attr-defined]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for label, scheduler in self.schedulers.items():
                if label in state.plain:
                    scheduler.load_state_dict(dict(state.plain[label]))
            for label, scaler in self.scalers.items():
                if state.plain.get(label):
                    scaler.load_state_dict(dict(state.plain[label]))
        for label, module in self.modules.items():
            for part, training in zip(module.modules(), state.plain.get(f"{label}/training", ()), strict=False):
                part.training = bool(training)
        beside.write(self.modules, state.plain, self.marks)
        if rng:
            write_carried(env, self.carried, state)
            write_rng(state)


def _read_grad(slot: str, grad: torch.Tensor, put: Any) -> None:
    """A gradient by its own slot; a sparse one by two, as it is."""
    if grad.is_sparse:
        grad = grad.coalesce()
        put(f"{slot}.grad.indices", CARRIED, grad.indices())
        put(f"{slot}.grad.values", CARRIED, grad.values())
    else:
        put(f"{slot}.grad", CARRIED, grad)


def _written_grad(slot: str, tensor: torch.Tensor, state: State) -> torch.Tensor | None:
    grad, indices, values = (state.tensors.get(f"{slot}.grad{part}") for part in ("", ".indices", ".values"))
    if indices is not None and values is not None:
        try:
            return torch.sparse_coo_tensor(indices, values, tensor.shape, device=tensor.device, is_coalesced=True, check_invariants=True)
        except (RuntimeError, ValueError) as error:
            raise ReplayError(f"the gradient of {slot} is malformed", detail=f"{slot}: {error}") from None
    return None if grad is None else grad.to(tensor.device, copy=True)


def write_rng(state: State) -> None:
    """Sets the random number generators of torch, Python and numpy from a solo state."""
    if "rng/torch" in state.tensors:
        torch.set_rng_state(state.tensors["rng/torch"].clone())
        python, numpy = state.plain["rng/python"], state.plain["rng/numpy"]
        random.setstate((python[0], tuple(python[1]), python[2]))
        np.random.set_state(tuple(numpy))


def seed_iteration(seed: int, iteration: int) -> None:
    """Seeds every generator from (seed, iteration), so that a result doesn't depend on where leases happen to end."""
    mixed = (seed * 0x9E3779B97F4A7C15 + iteration * 0xBF58476D1CE4E5B9) % 2**63  # the constants of splitmix64
    torch.manual_seed(mixed)
    random.seed(mixed)
    np.random.seed(mixed % 2**32)


def _parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _write_optimizer(label: str, optimizer: Optimizer, state: State) -> None:
    parameters = _parameters(optimizer)
    slots: dict[int, dict[str, str]] = {}
    for slot in state.tensors:
        index, _, key = slot.removeprefix(f"{label}/").partition("/")
        if slot.startswith(f"{label}/") and index.isdigit() and int(index) < len(parameters):
            slots.setdefault(int(index), {})[key] = slot
    for number, keys in slots.items():
        parameter = parameters[number]
        if not optimizer.state.get(parameter) and all(state.kinds[slot] == STEP for slot in keys.values()):
            continue  # a merge had the counters but nobody's moments: half a state would break the next step
        for key, slot in keys.items():
            held, tensor = optimizer.state[parameter].get(key), state.tensors[slot]
            if isinstance(held, torch.Tensor) and held.shape == tensor.shape and held.dtype == tensor.dtype:
                with torch.no_grad():
                    held.copy_(tensor)
            else:
                device = parameter.device if state.kinds[slot] == INNER else "cpu"
                optimizer.state[parameter][key] = tensor.to(device, copy=True)
    for index, values in state.plain.get(f"{label}/state", {}).items():
        if isinstance(index, int) and index < len(parameters):
            # a copy: LBFGS changes its lists in place, and the probe must not change what is sent after it
            optimizer.state[parameters[index]].update(decode(encode(values)))
    for group, values in zip(optimizer.param_groups, state.plain.get(f"{label}/groups", ()), strict=False):
        group.update({k: _like(group.get(k), v) for k, v in values.items() if k != "params"})


def _like(old: Any, new: Any) -> Any:
    if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        with torch.no_grad():
            return old.copy_(new)
    return tuple(new) if isinstance(old, tuple) and isinstance(new, list) else new
