"""What is device-side, what is plain, and whose function is called: the questions that both halves answer in the same way."""

from __future__ import annotations

import builtins
import functools
import io
import logging
import operator
import types
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

UNARY: dict[str, Callable[[Any], Any]] = {"neg": operator.neg, "pos": operator.pos, "invert": operator.invert}
BINARY = {
    "add": operator.add, "sub": operator.sub, "mult": operator.mul, "div": operator.truediv, "floordiv": operator.floordiv,
    "mod": operator.mod, "pow": operator.pow, "lshift": operator.lshift, "rshift": operator.rshift, "bitor": operator.or_,
    "bitxor": operator.xor, "bitand": operator.and_, "matmult": operator.matmul,
}  # fmt: skip
INPLACE = {
    "add": operator.iadd, "sub": operator.isub, "mult": operator.imul, "div": operator.itruediv, "floordiv": operator.ifloordiv,
    "mod": operator.imod, "pow": operator.ipow, "lshift": operator.ilshift, "rshift": operator.irshift, "bitor": operator.ior,
    "bitxor": operator.ixor, "bitand": operator.iand, "matmult": operator.imatmul,
}  # fmt: skip
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq, "noteq": operator.ne, "lt": operator.lt, "lte": operator.le, "gt": operator.gt, "gte": operator.ge,
    "is": operator.is_, "isnot": operator.is_not, "in": lambda a, b: a in b, "notin": lambda a, b: a not in b,
}  # fmt: skip

#: Modules whose functions act on the world beside the loop: run in the notebook only.
SINK_MODULES = (
    "matplotlib",
    "IPython",
    "logging",
    "wandb",
    "mlflow",
    "rich",
    "tqdm",
    "torch.utils.tensorboard",
    "tensorboardX",
    "warnings",
    "csv",
    "_csv",
    "shutil",
)
#: Functions of other modules that do so.
SINK_FUNCTIONS = {
    "numpy": {"save", "savez", "savez_compressed", "savetxt"},
    "json": {"dump"},
    "pickle": {"dump"},
    "_pickle": {"dump"},
    "joblib": {"dump"},
    "os": {"makedirs", "mkdir", "remove", "unlink", "rename", "replace", "rmdir", "system"},
    "posix": {"makedirs", "mkdir", "remove", "unlink", "rename", "replace", "rmdir", "system"},
    "nt": {"makedirs", "mkdir", "remove", "unlink", "rename", "replace", "rmdir", "system"},
    "pathlib": {"mkdir", "unlink", "rename", "replace", "rmdir", "touch", "write_text", "write_bytes", "open"},
}
#: Modules whose functions give another answer each time: run on the worker only, and recorded.
IMPURE_MODULES = ("random", "time", "secrets", "uuid", "numpy.random")
#: torch classes that are bookkeeping rather than device-side.
PLAIN_TORCH = (torch.Size,)


class Ghost:
    """Stands on a worker for an object that stays in the notebook (an open file, a progress bar, a writer). Every use of it is silent."""

    def __init__(self, name: str) -> None:
        self.__dict__["_name"] = name

    def __getattr__(self, attribute: str) -> Ghost:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return self

    def __setattr__(self, attribute: str, value: Any) -> None: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Ghost:
        return self

    def __getitem__(self, key: Any) -> Ghost:
        return self

    def __setitem__(self, key: Any, value: Any) -> None: ...
    def __enter__(self) -> Ghost:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def __reduce__(self) -> Any:
        return Ghost, (self._name,)

    def __repr__(self) -> str:
        return f"<{self.__dict__['_name']}: stays in the notebook>"


class _DeviceTypes(dict[type, bool]):
    def __missing__(self, kind: type) -> bool:
        self[kind] = known = _is_device_type(kind)
        return known


_DEVICE_TYPES = _DeviceTypes()


def is_device_type(kind: type) -> bool:
    """Whether instances of `kind` are device-side: tensors, modules, optimizers, schedulers, scalers, datasets, loaders, samplers."""
    return _DEVICE_TYPES[kind]


def _is_device_type(kind: type) -> bool:
    if issubclass(kind, (*PLAIN_TORCH, type, types.ModuleType, BaseException)) or is_metric_type(kind):
        return False
    if any(base.__module__.startswith("torch.utils.tensorboard") for base in kind.__mro__):
        return False
    return any(base.__module__ == "torch" or base.__module__.startswith("torch.") for base in kind.__mro__)


def is_metric_type(kind: type) -> bool:
    """Whether instances gather figures over batches (`update`, `compute`, `reset`): bookkeeping, even if they are modules with buffers."""
    known = _METRICS.get(kind)
    if known is None:
        methods = all(callable(getattr(kind, name, None)) for name in ("update", "compute", "reset"))
        known = _METRICS[kind] = methods and not issubclass(kind, type) and kind.__module__.partition(".")[0] != "torch"
    return known


_METRICS: dict[type, bool] = {}


def is_value(value: Any, depth: int = 0) -> bool:
    """Whether `value` is plain by nature, so that it travels from a worker into the notebook: numbers, text, arrays, containers of them."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, np.generic)):
        return True
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biufc"
    if isinstance(value, (torch.Size,)) or type(value) in (list, tuple, set):
        return depth < 8 and all(is_value(v, depth + 1) for v in value)
    if type(value) is dict:
        return depth < 8 and all(is_value(k, depth + 1) and is_value(v, depth + 1) for k, v in value.items())
    return False


def owner_module(function: Any) -> str:
    """The module that a callable comes from, "" when it can't be told."""
    function = getattr(function, "__func__", function)
    if isinstance(function, functools.partial):
        return owner_module(function.func)
    code = getattr(function, "__code__", None)
    if code is not None and "/torch/" in code.co_filename.replace("\\", "/") and "site-packages" in code.co_filename:
        return "torch"  # a user's function behind a torch decorator such as @torch.no_grad()
    module = getattr(function, "__module__", None)
    if module:
        return str(module)
    owner = getattr(function, "__self__", None)
    if owner is not None:
        return owner.__name__ if isinstance(owner, types.ModuleType) else type(owner).__module__
    return str(getattr(getattr(function, "__objclass__", None), "__module__", ""))


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def is_torch(function: Any) -> bool:
    module = owner_module(function)
    if isinstance(function, type):
        return is_device_type(function) or (within(module, ("torch",)) and not within(module, SINK_MODULES))
    return (within(module, ("torch", "torchvision", "torchaudio", "torchmetrics")) or module == "torch._C") and not within(
        module, SINK_MODULES
    )


def is_impure(function: Any) -> bool:
    owner = getattr(function, "__self__", None)
    if owner is not None and isinstance(owner, (np.random.RandomState, np.random.Generator)):
        return True
    if within(owner_module(function), ("datetime",)) or (type(owner) is type and owner.__module__ == "datetime"):
        return getattr(function, "__name__", "") in ("now", "utcnow", "today")
    return within(owner_module(function), IMPURE_MODULES) or (
        owner is not None and not isinstance(owner, types.ModuleType) and within(type(owner).__module__, ("random",))
    )


def is_sink(function: Any) -> bool:
    """Whether a call acts on the notebook's own world: print, plots, logs, displays, files."""
    if function is torch.save or (isinstance(function, types.BuiltinFunctionType) and function in (print, open, builtins.input)):
        return True
    owner = getattr(function, "__self__", None)
    if owner is not None and not isinstance(owner, types.ModuleType):
        if within(type(owner).__module__, (*SINK_MODULES, "_io", "ipykernel")):
            return True
        if isinstance(owner, io.IOBase) and not isinstance(owner, (io.BytesIO, io.StringIO)):
            return True
    module = owner_module(function)
    return within(module, SINK_MODULES) or getattr(function, "__name__", "") in SINK_FUNCTIONS.get(module.partition(".")[0], ())


def speaks(function: Any) -> bool:
    """Whether a sink only says something: print, a stream of Python's own, warnings, logging."""
    owner = getattr(function, "__self__", None)
    if isinstance(owner, logging.Logger) or function is print:
        return True
    return within(owner_module(function), ("warnings", "logging")) or type(owner).__module__ == "depin_nb.loop.output"


def stays(function: Any) -> bool:
    """Whether a call only happens in the notebook."""
    return isinstance(function, Ghost) or is_sink(function)


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Every tensor in a value, through containers."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple, deque)) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def detached(value: Any) -> Any:
    """`value` with every tensor in it copied, without its graph, to the CPU; raises TypeError where something else isn't plain."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, torch.Size):
        return tuple(value)
    if type(value) in (list, tuple):
        return type(value)(detached(v) for v in value)
    if isinstance(value, tuple):  # a named tuple, such as torch.max returns
        return tuple(detached(v) for v in value)
    if isinstance(value, dict):
        return {k: detached(v) for k, v in value.items()}
    if is_value(value):
        return value
    raise TypeError(f"a {type(value).__name__} can't be handed to the notebook")
