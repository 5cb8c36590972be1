"""What training changes beside weights and buffers: modules' own plain attributes, `requires_grad`, tensors changed in place.

A worker marks how they stand when a program is opened; what differs later is part of the state, and is written back in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ...core.codec import can_encode, encode

MAX_ATTRIBUTE_BYTES = 1 << 20  # longer lists and texts that a module gathers stay where they are
_TORCHS_OWN = frozenset(vars(torch.nn.Module())) | {"training", "_forward_hooks_with_kwargs", "_compiled_call_impl"}
_SIMPLE = (bool, int, float, complex, str, bytes, type(None))


@dataclass
class Marks:
    """How attributes and tensors stood; `touched`: what has differed since, or was written from a state; `large`: those of it that
    are too large to travel, with their bytes."""

    attributes: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    trains: dict[str, bool] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)
    large: dict[str, int] = field(default_factory=dict)


def attributes(modules: Mapping[str, torch.nn.Module]) -> Iterator[tuple[str, torch.nn.Module, str, Any]]:
    """(path, module, name, value) of the plain values that modules keep as attributes: `net/encoder.steps`."""
    for label, root in modules.items():
        for path, module in root.named_modules():
            for name, value in vars(module).items():
                if name not in _TORCHS_OWN and _plain(value):
                    yield f"{label}/{path + '.' if path else ''}{name}", module, name, value


def _plain(value: Any) -> bool:
    if isinstance(value, _SIMPLE):
        return True
    if isinstance(value, torch.Tensor):
        return not value.requires_grad and can_encode(value)
    return type(value) in (list, tuple, dict) and can_encode(value) and not _holds_trained(value)


def _holds_trained(value: Any) -> bool:
    """Whether weights are in it, as in an RNN's list of its own: they are state already."""
    if isinstance(value, torch.Tensor):
        return value.requires_grad or isinstance(value, torch.nn.Parameter)
    return isinstance(value, (list, tuple, dict)) and any(map(_holds_trained, value.values() if isinstance(value, dict) else value))


def _sign(value: Any) -> Any:
    """A value's mark: equal as long as it is the same."""
    if isinstance(value, _SIMPLE):
        return type(value), value
    if isinstance(value, torch.Tensor):
        return id(value), _version(value)
    return id(value), len(value), encode(value) if len(value) <= 256 else b""


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def mark(modules: Mapping[str, torch.nn.Module], watched: Mapping[str, torch.Tensor]) -> Marks:
    return Marks(
        {path: _sign(value) for path, _, _, value in attributes(modules)},
        {label: _version(tensor) for label, tensor in watched.items()},
        {path: p.requires_grad for path, p in _parameters(modules)},
    )


def read(modules: Mapping[str, torch.nn.Module], marks: Marks) -> dict[str, Any]:
    """Plain entries of the state: attributes and `requires_grad` that differ from how they stood at the mark."""
    plain: dict[str, Any] = {}
    for path, _, _, value in attributes(modules):
        if path in marks.touched or marks.attributes.get(path, marks) != _sign(value):
            marks.touched.add(path)
            size = _size(value)
            if size > MAX_ATTRIBUTE_BYTES:
                marks.large[path] = size
            else:
                plain[f"{path}/attribute"] = value.clone() if isinstance(value, torch.Tensor) else _copied(value)
    for path, parameter in _parameters(modules):
        key = f"{path}/trains"
        if key in marks.touched or marks.trains.get(path, parameter.requires_grad) != parameter.requires_grad:
            marks.touched.add(key)
            plain[key] = parameter.requires_grad
    return plain


def changed_tensors(watched: Mapping[str, torch.Tensor], marks: Marks) -> dict[str, torch.Tensor]:
    """Tensors that were changed in place since the mark."""
    for label, tensor in watched.items():
        if marks.versions.get(label) != _version(tensor):
            marks.touched.add(f"tensors/{label}")
    return {label: tensor for label, tensor in watched.items() if f"tensors/{label}" in marks.touched}


def kept(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names, in plain words, of what two equal iterations left differently, and of every tensor that was changed in place."""
    said = []
    for key, value in after.items():
        name = key.removesuffix("/attribute").removesuffix("/trains").removeprefix("tensors/").replace("/", ".")
        if key.startswith("tensors/"):
            said.append(f"`{name}` is changed in place")
        elif key not in before or encode([before[key]]) != encode([value]):
            said.append(f"`{name}` is kept by the model from one iteration to the next")
    return said


def stays(marks: Marks) -> tuple[str, ...]:
    """Sentences for the plan: attributes that are changed and too large to come back."""
    return tuple(
        f"`{path.replace('/', '.')}` is changed on the worker and stays there: it has {size / 1e6:.1f} MB, and what a model keeps beside "
        f"weights and buffers comes back up to {MAX_ATTRIBUTE_BYTES / 1e6:.0f} MB (make it a buffer: `self.register_buffer(...)`)"
        for path, size in sorted(marks.large.items())
    )


def write(modules: Mapping[str, torch.nn.Module], plain: Mapping[str, Any], marks: Marks | None) -> None:
    """Puts the entries of `read` into the modules: containers and tensors in place, so that the user's other names for them see it."""
    for path, parameter in _parameters(modules):
        trains = plain.get(f"{path}/trains")
        if type(trains) is bool and (parameter.is_leaf and (trains is False or parameter.is_floating_point() or parameter.is_complex())):
            parameter.requires_grad_(trains)
    wanted = {key.removesuffix("/attribute"): value for key, value in plain.items() if key.endswith("/attribute")}
    if not wanted:
        return
    for label, root in modules.items():
        for path, module in root.named_modules():
            prefix = f"{label}/{path + '.' if path else ''}"
            for key in [k for k in wanted if k.startswith(prefix) and "." not in k[len(prefix) :]]:
                name = key[len(prefix) :]
                if name in _TORCHS_OWN or name.startswith("__") or (hasattr(type(module), name) and not hasattr(module, name)):
                    continue
                _put(module, name, wanted[key])
                if marks is not None:
                    marks.touched.add(key)


def _put(module: torch.nn.Module, name: str, value: Any) -> None:
    held = vars(module).get(name)
    if isinstance(held, torch.Tensor) and isinstance(value, torch.Tensor) and held.shape == value.shape and held.dtype == value.dtype:
        with torch.no_grad():
            held.copy_(value)
    elif type(held) is list and type(value) is list:
        held[:] = value
    elif type(held) is dict and type(value) is dict:
        held.clear()
        held.update(value)
    elif name not in module._parameters and name not in module._modules:
        vars(module)[name] = value.clone() if isinstance(value, torch.Tensor) else value


def _parameters(modules: Mapping[str, torch.nn.Module]) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for label, root in modules.items():
        for path, parameter in root.named_parameters():
            yield f"{label}/{path}", parameter


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if type(value) in (list, tuple):
        return type(value)(_copied(v) for v in value)
    if type(value) is dict:
        return {k: _copied(v) for k, v in value.items()}
    return value


def _size(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, dict):
        return sum(8 + _size(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return sum(8 + _size(v) for v in value)
    return 8
