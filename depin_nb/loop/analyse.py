"""Reads a loop's body, before anything is spent: what it keeps from one iteration to the next, and whether that forbids several workers.

Conservative on purpose: where it can't tell, one worker does the loop, and the plan says why.
"""

from __future__ import annotations

import ast
import builtins
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .syntax import names_in, own_stores, read_first, root_name, some, stored_names, with_depth
from .values import is_device_type, is_sink, is_torch

_PLAIN_METHODS = {"item", "tolist", "size", "numel", "nelement", "dim", "ndimension", "numpy", "get_last_lr", "get_scale", "is_contiguous"}
_PLAIN_ATTRIBUTES = {"shape", "ndim", "dtype", "requires_grad", "training", "is_cuda", "batch_size"}
_PLAIN_CALLS = {"float", "int", "bool", "len", "str", "repr", "format", "round", "range", "isinstance", "print", "type", "id", "hasattr"}


@dataclass
class Facts:
    """What the body does with names. `solo` holds the reasons, in plain words with lines, why one worker must do the loop."""

    reads: set[str] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)
    conditional: set[str] = field(default_factory=set)
    accumulators: set[str] = field(default_factory=set)
    counters: dict[str, Any] = field(default_factory=dict)
    carried: set[str] = field(default_factory=set)
    stepped: set[str] = field(default_factory=set)
    device: set[str] = field(default_factory=set)
    grads: bool = False
    solo: list[str] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)


def analyse(loop: ast.For, resolve: Callable[[str], Any], *, plain_target: set[str], zeroes_elsewhere: bool) -> Facts:
    """Facts of `loop`. `resolve(name)` gives a name's present value (or raises KeyError); `plain_target`: target names that are plain."""
    return _Analysis(loop, resolve, plain_target, zeroes_elsewhere).facts()


class _Analysis:
    def __init__(self, loop: ast.For, resolve: Callable[[str], Any], plain_target: set[str], zeroes_elsewhere: bool) -> None:
        self.loop, self.resolve, self.zeroes_elsewhere = loop, resolve, zeroes_elsewhere
        self.targets = {n.id for n in ast.walk(loop.target) if isinstance(n, ast.Name)}
        self.plain_target = plain_target
        self.out = Facts()

    def value(self, name: str) -> Any:
        try:
            return self.resolve(name)
        except KeyError:
            return getattr(builtins, name, None)

    def facts(self) -> Facts:
        out = self.out
        self._names()
        self._device_names()
        first = read_first(self.loop.body, set(self.targets))
        mutated = self._mutated()
        out.counters = self._counters(first)
        carried = (out.stored | mutated) & first - self.targets - set(out.counters)
        self._accumulators(carried)
        held_plain = {n for n in carried if n not in out.device or n in out.accumulators}
        out.carried = {n for n in carried if n in out.device and n not in out.accumulators and n in out.stored and not self._in_place(n)}
        for name in sorted(out.carried):
            out.solo.append(f"line {_line_of(self.loop, name)}: `{name}` is handed from one iteration to the next")
        self._influences(self._tainted(held_plain))
        self._gradients()
        self._schedulers()
        self._same_batch()
        return out

    # --- names -------------------------------------------------------------------------------------

    def _names(self) -> None:
        out = self.out
        stores: dict[str, int] = {}
        for depth, node in with_depth(self.loop.body):
            if isinstance(node, ast.Name):
                if isinstance(node.ctx, ast.Load):
                    out.reads.add(node.id)
                else:
                    stores[node.id] = min(stores.get(node.id, depth), depth)
            elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
                out.reads.add(node.target.id)
        out.stored = set(stores) | self.targets
        out.conditional = {name for name, depth in stores.items() if depth > 0}

    def _device_names(self) -> None:
        out = self.out
        for name in out.reads | out.stored:
            value = self.value(name)
            if value is not None and _holds_device(value):
                out.device.add(name)
        out.device |= self.targets - self.plain_target
        out.device -= self.plain_target
        for _ in range(4):
            before = len(out.device)
            for node in ast.walk(ast.Module(body=self.loop.body, type_ignores=[])):
                if isinstance(node, ast.Assign) and self.is_device(node.value):
                    for target in node.targets:
                        out.device |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
                elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name) and self.is_device(node.value):
                    out.device.add(node.target.id)
                elif isinstance(node, (ast.For, ast.comprehension)) and self.is_device(node.iter):
                    out.device |= {n.id for n in ast.walk(node.target) if isinstance(n, ast.Name)}
                elif isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name) and self.is_device(node.context_expr):
                    out.device.add(node.optional_vars.id)
            if len(out.device) == before:
                break

    def is_device(self, node: ast.AST | None) -> bool:
        """Whether an expression is device-side, as far as the text tells."""
        if node is None or isinstance(node, (ast.Constant, ast.JoinedStr, ast.Lambda)):
            return False
        if isinstance(node, ast.Name):
            return node.id in self.out.device
        if isinstance(node, ast.Attribute):
            return self.is_device(node.value) and node.attr not in _PLAIN_ATTRIBUTES
        if isinstance(node, ast.Call):
            return self._device_call(node)
        return any(self.is_device(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr))

    def _device_call(self, node: ast.Call) -> bool:
        function = self.callee(node.func)
        given = any(self.is_device(a) for a in node.args) or any(self.is_device(k.value) for k in node.keywords)
        if isinstance(node.func, ast.Attribute) and self.is_device(node.func.value):
            return node.func.attr not in _PLAIN_METHODS
        if isinstance(node.func, ast.Name) and node.func.id in _PLAIN_CALLS:
            return False
        if function is not None and not isinstance(function, types.FunctionType) and is_torch(function):
            return True
        if isinstance(function, types.FunctionType):
            return given or is_torch(function) or bool(set(function.__code__.co_names) & {"torch", "F", "nn"})
        return given or self.is_device(node.func)

    def callee(self, func: ast.expr) -> Any:
        """The object behind `f` or `module.sub.f`, None when it isn't there yet."""
        if isinstance(func, ast.Name):
            return self.value(func.id)
        if isinstance(func, ast.Attribute):
            owner = self.callee(func.value)
            return getattr(owner, func.attr, None) if isinstance(owner, (types.ModuleType, type)) else None
        return None

    def _mutated(self) -> set[str]:
        """Plain names whose object the body may change: by a method, an item or an attribute."""
        names: set[str] = set()
        for node in ast.walk(ast.Module(body=self.loop.body, type_ignores=[])):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                names.add(root_name(node.func.value))
            elif isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, ast.Store):
                names.add(root_name(node.value))
        return {
            n
            for n in names
            if n and n not in self.out.device and not isinstance(self.value(n), (types.ModuleType, type, types.FunctionType, str))
        }

    def _counters(self, first: set[str]) -> dict[str, Any]:
        """`step += 1` once an iteration, unconditionally: its value follows from the iteration's index."""
        counters: dict[str, Any] = {}
        for statement in self.loop.body:
            if isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name) and isinstance(statement.op, ast.Add):
                name = statement.target.id
                stores = [n for n in ast.walk(self.loop) if isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Store)]
                value = self.value(name)
                constant = isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, int)
                if len(stores) == 1 and constant and isinstance(value, int) and name in first:
                    counters[name] = (value, statement.value.value)  # type: ignore[attr-defined]
        return counters

    def _accumulators(self, carried: set[str]) -> None:
        """Sums that the notebook keeps: only ever added to, or reset to a plain value."""
        for name in carried & self.out.stored:
            value = self.value(name)
            tensor = isinstance(value, torch.Tensor) and not value.requires_grad
            if not (tensor or value is None or isinstance(value, (int, float, complex, list))):
                continue
            kept = all(
                isinstance(n, ast.AugAssign) or (isinstance(n, ast.Assign) and not self.is_device(n.value))
                for n in ast.walk(self.loop)
                if isinstance(n, (ast.AugAssign, ast.Assign)) and name in stored_names(n)
            )
            augmented = any(isinstance(n, ast.AugAssign) and name in stored_names(n) for n in ast.walk(self.loop))
            if kept and augmented:
                self.out.accumulators.add(name)

    def _in_place(self, name: str) -> bool:
        """A trainable tensor that is only ever changed in place (`w -= lr * w.grad`) stays the object that it is."""
        value = self.value(name)
        stores = [n for n in ast.walk(self.loop) if isinstance(n, ast.stmt) and not isinstance(n, ast.For) and name in own_stores(n)]
        return isinstance(value, torch.Tensor) and value.requires_grad and all(isinstance(n, ast.AugAssign) for n in stores)

    # --- what is kept and comes back ---------------------------------------------------------------------

    def _tainted(self, names: set[str]) -> set[str]:
        names = set(names)
        for _ in range(4):
            for node in ast.walk(ast.Module(body=self.loop.body, type_ignores=[])):
                if isinstance(node, ast.Assign) and names_in(node.value) & names and not self.is_device(node.value):
                    names |= {n for n in stored_names(node) if n not in self.out.device}
        return names - set(self.out.counters)

    def _influences(self, tainted: set[str]) -> None:
        if not tainted:
            return
        for node in ast.walk(ast.Module(body=self.loop.body, type_ignores=[])):
            name, how = "", ""
            if isinstance(node, (ast.If, ast.While, ast.IfExp, ast.Assert)):
                name = some(names_in(node.test) & tainted)
                if name and not self._harmless(node):
                    how = "decides what the loop does next"
            elif isinstance(node, ast.Call) and not self._is_sink_call(node):
                given = {n for a in (*node.args, *(k.value for k in node.keywords)) for n in names_in(a)} & tainted
                name, how = some(given), "enters a computation on tensors" if self._device_call(node) else ""
            elif isinstance(node, ast.BinOp) and self.is_device(node.left) != self.is_device(node.right):
                plain = node.right if self.is_device(node.left) else node.left
                name, how = some(names_in(plain) & tainted), "enters a computation on tensors"
            elif isinstance(node, (ast.Assign, ast.AugAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(isinstance(t, (ast.Attribute, ast.Subscript)) and self.is_device(t.value) for t in targets):
                    name, how = some(names_in(node.value) & tainted), "is set on a device-side object"
            if name and how:
                self.out.solo.append(f"line {node.lineno}: `{name}`, kept from one iteration to the next, {how}")  # type: ignore[attr-defined]
                return

    def _harmless(self, node: Any) -> bool:
        """Whether a branch only does bookkeeping, so that taking it or not is the notebook's own affair."""
        parts = [*getattr(node, "body", [])] if isinstance(getattr(node, "body", None), list) else [getattr(node, "body", None)]
        orelse = getattr(node, "orelse", [])
        parts += orelse if isinstance(orelse, list) else [orelse]
        if isinstance(node, ast.Assert):
            return False
        for part in (p for p in parts if p is not None):
            for child in ast.walk(part):
                if isinstance(child, (ast.Break, ast.Continue, ast.Return, ast.Raise)):
                    return False
                if isinstance(child, ast.Name) and child.id in self.out.device:
                    return False
                if isinstance(child, ast.Call) and (self._device_call(child) or isinstance(self.callee(child.func), types.FunctionType)):
                    return False
        return True

    def _is_sink_call(self, node: ast.Call) -> bool:
        function = self.callee(node.func)
        if function is not None:
            return bool(is_sink(function))
        return isinstance(node.func, ast.Attribute) and not self.is_device(node.func.value)

    def _gradients(self) -> None:
        """Gradients that live longer than an iteration (accumulation): leases would cut them."""
        conditional: list[ast.Call] = []
        zeros: list[tuple[int, ast.AST]] = []
        for depth, node in with_depth(self.loop.body, branches_only=True):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = self.callee(node.func.value)
                if node.func.attr == "step" and (isinstance(owner, Optimizer) or (owner is None and not node.args)):
                    if depth:
                        conditional.append(node)
                if node.func.attr in ("zero_grad", "zero_"):
                    zeros.append((depth, node))
            if isinstance(node, ast.Attribute) and node.attr == "grad" and isinstance(node.ctx, ast.Store):
                zeros.append((depth, node))
        zeroed = any(depth == 0 for depth, _ in zeros) or (not zeros and self.zeroes_elsewhere)
        functional = any(
            isinstance(n, ast.Attribute) and n.attr == "grad" and root_name(n.value) in ("torch", "autograd") for n in ast.walk(self.loop)
        )
        if conditional and zeros and not zeroed:
            self.out.grads = True
            self.out.solo.append(f"line {conditional[0].lineno}: gradients are gathered over several iterations before the step")
        elif not zeroed and not functional:
            self.out.grads = True
            self.out.solo.append(f"line {self.loop.lineno}: gradients aren't cleared in every iteration (no zero_grad)")

    def _schedulers(self) -> None:
        for depth, node in with_depth(self.loop.body):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "step":
                owner = self.callee(node.func.value)
                if isinstance(owner, LRScheduler):
                    if depth == 0 and not node.args:
                        self.out.stepped.add(root_name(node.func.value))
                    else:
                        self.out.solo.append(f"line {node.lineno}: a learning-rate scheduler steps only in some iterations")

    def _same_batch(self) -> None:
        """A counting loop that sees the same full batch each time."""
        calls = [n for n in ast.walk(self.loop) if isinstance(n, ast.Call)]
        user = any(isinstance(self.callee(c.func), types.FunctionType) and not is_torch(self.callee(c.func)) for c in calls)
        drawn = any("rand" in ast.unparse(c.func) or "sample" in ast.unparse(c.func) or "choice" in ast.unparse(c.func) for c in calls)
        index = any(isinstance(n, ast.Subscript) and names_in(n.slice) & (self.targets | self.out.stored) for n in ast.walk(self.loop))
        if self.targets <= self.plain_target and not (user or drawn or index):
            self.out.caveats.append("each iteration sees the same full batch: more workers won't help")


def _holds_device(value: Any, depth: int = 0) -> bool:
    if is_device_type(type(value)):
        return True
    if depth < 3 and isinstance(value, (list, tuple, dict)):
        parts = list(value.values()) if isinstance(value, dict) else list(value)
        return any(_holds_device(v, depth + 1) for v in parts[:8])
    return False


def _line_of(loop: ast.For, name: str) -> int:
    return next((n.lineno for n in ast.walk(loop) if isinstance(n, ast.Name) and n.id == name), loop.lineno)
