"""Whether two namespaces hold the same: everything that a cell leaves behind, through containers and the user's own objects."""

import collections
import io
import random
import re
import sys
import types
from enum import Enum

import numpy as np
import torch
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler

from depin_nb.loop.source import Remote
from depin_nb.loop.values import is_device_type

_NUMBERS = (bool, int, float, complex, str, bytes, type(None), np.generic, range, slice, torch.Size, torch.dtype, torch.device)
NOT_THE_CELLS = {"__builtins__", "__warningregistry__"}
_FROZEN = (tuple, frozenset, types.MappingProxyType)
_BAR = ("n", "total", "postfix", "desc")


def compare(ours, theirs, ignored=frozenset()):
    """Fails, naming the path, where a leased run's namespace differs from the local one: names, values, weights, generators, aliases."""
    ignored = {*ignored, *NOT_THE_CELLS}
    assert set(ours) - ignored == set(theirs) - ignored, set(ours) ^ set(theirs)
    _Walk(ours, ignored).each(ours, {n: theirs[n] for n in ours if n in theirs}, "", ignored)


def skeleton(value, depth=0):
    """A value without its numbers: types, lengths, keys, masked texts. What several workers have to leave as one does."""
    if isinstance(value, torch.Tensor):
        return "tensor", tuple(value.shape), str(value.dtype)
    if isinstance(value, np.ndarray):
        return "array", value.shape, str(value.dtype)
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, collections.Counter) or depth > 6:
        return type(value).__name__
    if isinstance(value, dict):
        return {masked(str(k)): skeleton(v, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple, collections.deque)):
        return type(value).__name__, [skeleton(v, depth + 1) for v in value]
    if is_users(type(value)) and hasattr(value, "__dict__") and not isinstance(value, (torch.nn.Module, Optimizer, Dataset)):
        return type(value).__name__, {k: skeleton(v, depth + 1) for k, v in vars(value).items()}
    return type(value).__name__


def masked(text):
    """A line with its numbers masked."""
    return re.sub(r"-?\d+(\.\d+)?(e[-+]?\d+)?|\bnan\b|-?\binf\b", "#", text)


def same_bits(a, b):
    """Bit for bit, so that NaN equals itself and -0.0 isn't 0.0."""
    if a.layout is not torch.strided:
        a, b = a.to_dense(), b.to_dense()
    a, b = a.detach().cpu().contiguous().reshape(-1), b.detach().cpu().contiguous().reshape(-1)
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8)) if a.numel() else a.shape == b.shape


def is_users(kind):
    """Whether a class is a cell's or a local file's: neither Python's nor an installed package's."""
    root = kind.__module__.split(".")[0]
    if root == "__main__":
        return True
    if root == "builtins" or root in sys.stdlib_module_names:
        return False
    return "-packages" not in (getattr(sys.modules.get(root), "__file__", None) or "")


def made_on_a_worker(value):
    """Whether a worker made it and it isn't a value: what the loop leaves of it in the notebook is a Remote that says so."""
    if isinstance(value, (torch.Tensor, torch.nn.Module, Optimizer, LRScheduler, GradScaler, torch.Generator)):
        return False
    parts = vars(value).values() if hasattr(value, "__dict__") else value if isinstance(value, tuple) else ()
    return is_device_type(type(value)) or any(isinstance(v, torch.Tensor) and v.grad_fn is not None for v in parts)


class _Walk:
    def __init__(self, ours, ignored):
        self.ignored = ignored
        self.met = {}  # id of ours -> theirs: an alias here has to be one there
        owners = [v for v in ours.values() if isinstance(v, (torch.nn.Module, Optimizer))]
        groups = [g["params"] for o in owners if isinstance(o, Optimizer) for g in o.param_groups]
        groups += [m.parameters() for m in owners if isinstance(m, torch.nn.Module)]
        self.owned = {id(p) for group in groups for p in group}

    def each(self, ours, theirs, path, ignored=frozenset()):
        assert list(ours) == list(theirs) or path == "", f"{path}: {list(ours)} is not {list(theirs)}"
        for key, value in ours.items():
            if key not in ignored:
                self.same(value, theirs[key], f"{path}.{key}" if path else str(key))

    def same(self, a, b, path):
        if isinstance(b, Remote) and "." not in path and "[" not in path:
            assert made_on_a_worker(a), f"{path}: {a!r} here, {b!r} leased"
            return
        if id(a) in self.owned and path.isidentifier():
            a, b = a.detach(), b.detach()  # `for p in model.parameters():` may leave a copy of the last one
        if path.isidentifier() and type(a) is dict and "params" in a:
            a, b = ({k: v for k, v in group.items() if k != "params"} for group in (a, b))  # so may `for group in opt.param_groups:`
        assert type(a) is type(b) or self.twins(type(a), type(b)), f"{path}: {a!r} here, {b!r} leased"
        if isinstance(a, (*_NUMBERS, Enum)):
            assert repr(a) == repr(b), f"{path}: {a!r} here, {b!r} leased"
        elif isinstance(a, torch.Tensor):
            self.tensor(a, b, path)
        elif isinstance(a, np.ndarray):
            assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes(), path  # noqa: PT018
        elif id(a) in self.met and not isinstance(a, _FROZEN) and not self.of_tensors(a):
            assert self.met[id(a)][1] is b, f"{path}: no longer an alias of {self.met[id(a)][2]}"
        else:
            self.met[id(a)] = a, b, path
            self.inside(a, b, path)

    @staticmethod
    def twins(a, b):
        """The same class of the two runs, each of which defined it anew."""
        return (a.__module__, a.__qualname__) == (b.__module__, b.__qualname__)

    @staticmethod
    def of_tensors(value):
        """Lists of tensors under two names come back by value, each by itself."""
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return any(isinstance(part, torch.Tensor) for part in parts)

    def tensor(self, a, b, path):
        assert (a.dtype, a.shape, a.device, a.layout) == (b.dtype, b.shape, b.device, b.layout), f"{path}: {a!r} here, {b!r} leased"
        assert same_bits(a, b), f"{path}: {a!r} here, {b!r} leased"
        assert not a.is_leaf or a.requires_grad == b.requires_grad, f"{path}: requires_grad"

    def inside(self, a, b, path):
        if isinstance(a, torch.nn.Module):
            self.module(a, b, path)
        elif isinstance(a, Optimizer):
            self.optimizer(a, b, path)
        elif isinstance(a, (LRScheduler, GradScaler)):
            self.each(a.state_dict(), b.state_dict(), path)
        elif isinstance(a, (list, tuple, collections.deque)):
            assert len(a) == len(b), f"{path}: {len(a)} items here, {len(b)} leased"
            for i, (x, y) in enumerate(zip(a, b, strict=True)):
                self.same(x, y, f"{path}[{i}]")
        elif isinstance(a, (dict, types.MappingProxyType)):
            self.each(a, b, path)
        elif isinstance(a, (set, frozenset)):
            assert sorted(map(repr, a)) == sorted(map(repr, b)), path
        else:
            self.thing(a, b, path)
        if isinstance(a, collections.deque):
            assert a.maxlen == b.maxlen, path
        if isinstance(a, (list, dict, tuple)) and hasattr(a, "__dict__"):
            self.each(vars(a), vars(b), path)

    def module(self, a, b, path):
        self.each(dict(a.state_dict()), dict(b.state_dict()), path)
        self.each(dict(a.named_parameters()), dict(b.named_parameters()), path)
        assert [m.training for m in a.modules()] == [m.training for m in b.modules()], f"{path}: training"
        for (name, x), (_, y) in zip(a.named_modules(), b.named_modules(), strict=True):
            if is_users(type(x)):
                own = {k: v for k, v in vars(x).items() if not k.startswith("_") and not isinstance(v, (torch.Tensor, torch.nn.Module))}
                self.each(own, {k: vars(y)[k] for k in own if k in vars(y)}, f"{path}.{name}" if name else path)

    def optimizer(self, a, b, path):
        for i, (x, y) in enumerate(zip(a.param_groups, b.param_groups, strict=True)):
            self.same({k: v for k, v in x.items() if k != "params"}, {k: y[k] for k in x if k != "params"}, f"{path}.param_groups[{i}]")
            for j, (p, q) in enumerate(zip(x["params"], y["params"], strict=True)):
                mine, other = a.state.get(p, {}), b.state.get(q, {})
                self.each(dict(sorted(mine.items())), dict(sorted(other.items())), f"{path}.state[{i}][{j}]")

    def thing(self, a, b, path):
        if isinstance(a, torch.Generator):
            assert torch.equal(a.get_state(), b.get_state()), f"{path}: the generator stands elsewhere"
        elif isinstance(a, random.Random):
            assert a.getstate() == b.getstate(), f"{path}: the generator stands elsewhere"
        elif isinstance(a, (np.random.Generator, np.random.RandomState)):
            bits = [g.bit_generator if isinstance(g, np.random.Generator) else g._bit_generator for g in (a, b)]
            assert repr(bits[0].state) == repr(bits[1].state), f"{path}: the generator stands elsewhere"
        elif isinstance(a, (DataLoader, Sampler)):
            names = ("generator", "sampler", "batch_sampler")
            self.each(*({n: vars(v)[n] for n in names if n in vars(v)} for v in (a, b)), path)
        elif isinstance(a, BaseException):
            assert str(a) == str(b), f"{path}: {a!r} here, {b!r} leased"
        elif isinstance(a, io.StringIO):
            assert a.closed == b.closed and (a.closed or a.getvalue() == b.getvalue()), path  # noqa: PT018
        elif any(base.__name__ == "tqdm" for base in type(a).__mro__):
            self.each(*({n: getattr(v, n, None) for n in _BAR} for v in (a, b)), path)
        elif isinstance(a, types.FunctionType):
            self.function(a, b, path)
        elif isinstance(a, types.MethodType):
            self.same(a.__self__, b.__self__, f"{path}.__self__")
        elif isinstance(a, type):
            if is_users(a):
                kept = (*_NUMBERS, list, dict)
                self.each(*({k: v for k, v in vars(c).items() if isinstance(v, kept) and k[:2] != "__"} for c in (a, b)), path)
        elif isinstance(a, types.ModuleType):
            if is_users(type("_", (), {"__module__": a.__name__})):
                self.each(*({k: v for k, v in vars(m).items() if not k.startswith("__")} for m in (a, b)), path)
        elif isinstance(a, types.SimpleNamespace) or (is_users(type(a)) and not isinstance(a, Dataset) and hasattr(a, "__dict__")):
            self.each(*({k: v for k, v in vars(o).items() if k not in self.ignored} for o in (a, b)), path)

    def function(self, a, b, path):
        self.each(vars(a), vars(b), path)
        self.same(a.__defaults__, b.__defaults__, f"{path}.__defaults__")
        for name, x, y in zip(a.__code__.co_freevars, a.__closure__ or (), b.__closure__ or (), strict=False):
            try:
                self.same(x.cell_contents, y.cell_contents, f"{path}.<{name}>")
            except ValueError:  # an empty cell
                continue
