"""Models that pickle alone can't carry: compiled, scripted and parametrized ones travel as what they were made from, and are made again."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn.utils import parametrize
from torch.optim import Optimizer

_COMPILING: ContextVar[bool] = ContextVar("compiling", default=True)
_NEEDS_COMPILER = "inductor"


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """What is opened meanwhile runs uncompiled: the probe's one iteration isn't worth a compiler's minutes."""
    token = _COMPILING.set(False)
    try:
        yield
    finally:
        _COMPILING.reset(token)


def can_compile() -> bool:
    """Whether torch's default compiler finds what it needs here: a C++ compiler, or a GPU that Triton writes for."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return torch.cuda.is_available() or any(name and shutil.which(name) for name in names)


def reduced(obj: Any) -> Any:
    """How `obj` is pickled where its own way fails or loses something; None for everything else."""
    if isinstance(obj, Optimizer):
        return _reduce_optimizer(obj)
    if isinstance(obj, torch.nn.Module):
        return _reduce_module(obj)
    original = getattr(obj, "_torchdynamo_orig_callable", None) if callable(obj) and hasattr(obj, "__code__") else None
    if original is not None:
        return _compile, (original, _options(_context_of(obj)))
    return None


def compiled_with(obj: Any) -> str:
    """The backend that a compiled model or function was made with, "" for anything else."""
    context = getattr(obj, "dynamo_ctx", None)
    if context is None and getattr(obj, "_compiled_call_impl", None) is not None:
        context = _context_of(obj._compiled_call_impl)
    if context is None and callable(obj) and hasattr(obj, "_torchdynamo_orig_callable"):
        context = _context_of(obj)
    if context is None:
        return ""
    backend = _options(context)["backend"]
    return backend if isinstance(backend, str) else getattr(backend, "__name__", type(backend).__name__)


# --- optimizers ------------------------------------------------------------------------------------


def _reduce_optimizer(optimizer: Optimizer) -> Any:
    """`Optimizer.__getstate__` drops attributes (LBFGS breaks): its `__dict__` travels, without a scheduler's patch of `step`."""
    state = {k: v for k, v in optimizer.__dict__.items() if k != "step" and not (k.endswith("_hooks") and not v)}
    return _bare, (type(optimizer),), state, None, None, _restore_optimizer


def _bare(kind: Any) -> Any:
    return kind.__new__(kind)


def _restore_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    Optimizer.__setstate__(optimizer, state)


# --- modules ---------------------------------------------------------------------------------------


def _reduce_module(module: torch.nn.Module) -> Any:
    if isinstance(module, torch.jit.ScriptModule):
        buffer = io.BytesIO()
        with _no_warnings():
            torch.jit.save(module, buffer)
        tensors = [*module.named_parameters(), *module.named_buffers()]
        return _unscript, (buffer.getvalue(), dict(tensors), [part.training for part in module.modules()])
    if hasattr(module, "dynamo_ctx") and hasattr(module, "_orig_mod"):
        return _compile, (module._orig_mod, _options(module.dynamo_ctx))
    if parametrize.is_parametrized(module):
        state = {k: v for k, v in module.__dict__.items() if k != "_compiled_call_impl"}
        return _bare, (type(module).__bases__[0],), state, None, None, _restore_parametrized
    call = getattr(module, "_compiled_call_impl", None)
    if call is not None:
        made: Any = module.__reduce_ex__(5)
        return made[0], made[1], (made[2], _options(_context_of(call))), None, None, _restore_compiled
    return None


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """torch calls its own format deprecated: that is no word for the user's cell."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _unscript(data: bytes, tensors: dict[str, torch.Tensor], training: list[bool]) -> Any:
    """A scripted module from its own format, holding the very tensors that optimizers and the run's state know."""
    with _no_warnings():
        module = torch.jit.load(io.BytesIO(data))
    parts = dict(module.named_modules())
    for name, tensor in tensors.items():
        owner, _, attribute = name.rpartition(".")
        setattr(parts[owner], attribute, tensor)
    for part, mode in zip(module.modules(), training, strict=False):
        part.train(mode)
    return module


def _restore_parametrized(module: torch.nn.Module, state: dict[str, Any]) -> None:
    module.__dict__.update(state)
    parametrize._inject_new_class(module)
    for name in module.parametrizations:  # type: ignore[union-attr]
        parametrize._inject_property(module, name)


def _restore_compiled(module: torch.nn.Module, parts: tuple[Any, dict[str, Any]]) -> None:
    state, options = parts
    module.__setstate__(state)
    usable = _usable(options)
    if usable is not None:
        module.compile(**usable)


# --- torch.compile ---------------------------------------------------------------------------------


def _context_of(function: Callable[..., Any]) -> Any:
    """The compiler's own context behind a function that torch.compile returned."""
    names = getattr(function, "__code__", None)
    cells = dict(zip(names.co_freevars, function.__closure__ or (), strict=False)) if names is not None else {}
    return cells["self"].cell_contents if "self" in cells else None


def _options(context: Any) -> dict[str, Any]:
    """The arguments of torch.compile that made this, as far as torch keeps them."""
    if context is None:
        return {"backend": _NEEDS_COMPILER}
    inner = context.callback
    while True:
        deeper = getattr(inner, "_torchdynamo_orig_backend", None) or getattr(inner, "_torchdynamo_orig_callable", None)
        if deeper is None:
            break
        inner = deeper
    options: dict[str, Any] = {"fullgraph": bool(context.fullgraph), "dynamic": getattr(context, "_dynamic", None)}
    wrapper = type(inner).__name__
    if wrapper == "_TorchCompileInductorWrapper":
        return {**options, "backend": _NEEDS_COMPILER, "options": dict(inner.config) or None}
    if wrapper == "_TorchCompileWrapper":
        registered = inner.compiler_name in torch._dynamo.list_backends(exclude_tags=())
        return {**options, "backend": inner.compiler_name if registered else inner.compiler_fn}
    return {**options, "backend": inner}


def _usable(options: dict[str, Any]) -> dict[str, Any] | None:
    """The options as this process can use them; None where it must run uncompiled."""
    if not _COMPILING.get() or (options["backend"] == _NEEDS_COMPILER and not can_compile()):
        return None
    return options


def _compile(original: Any, options: dict[str, Any]) -> Any:
    usable = _usable(options)
    if usable is not None:
        return torch.compile(original, **usable)
    if isinstance(original, torch.nn.Module):  # the same wrapper and the same names of its weights, without a compiler's work
        return torch._dynamo.eval_frame.OptimizedModule(original, torch._dynamo.eval_frame.DisableContext())
    return original
