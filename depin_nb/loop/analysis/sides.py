"""Which expressions of a view are device-side and which are plain, as far as the text and the values before the loop tell."""

from __future__ import annotations

import ast
import builtins
import types
from collections import deque
from typing import Any

from ..paths import peek, split, within
from ..values import is_device_type, is_sink, is_torch
from .flow import Flow
from .places import members_of

_PLAIN_METHODS = {
    "item", "tolist", "size", "numel", "nelement", "dim", "ndimension", "numpy", "get_last_lr", "get_scale", "is_contiguous",
}  # fmt: skip
_PLAIN_ATTRIBUTES = {"shape", "ndim", "dtype", "requires_grad", "training", "is_cuda", "batch_size"}
_PLAIN_CALLS = {
    "float", "int", "bool", "len", "str", "repr", "format", "round", "range", "isinstance", "print", "type", "id", "hasattr", "issubclass",
}  # fmt: skip


class Sides:
    """`device`: paths that the view gives device-side values."""

    def __init__(self, flow: Flow, targets: set[str], plain_targets: set[str]) -> None:
        self.flow = flow
        self.plain = plain_targets
        self.device: set[str] = (targets - plain_targets) | flow.view.given
        self.bound = {w.path for w in flow.writes if w.how == "bind"}
        self._settle()

    def _settle(self) -> None:
        nodes = [n for s in self.flow.view.body for n in ast.walk(s)]
        for _ in range(8):
            before = len(self.device)
            for node in nodes:
                if isinstance(node, ast.Assign) and self.is_device(node.value):
                    for target in node.targets:
                        self._store(target, node.value)
                elif (
                    isinstance(node, (ast.AugAssign, ast.AnnAssign, ast.NamedExpr))
                    and node.value is not None
                    and self.is_device(node.value)
                ):
                    self._store(node.target)
                elif isinstance(node, (ast.For, ast.comprehension)):
                    if isinstance(node.iter, ast.Call) and isinstance(node.iter.func, ast.Name) and node.iter.func.id == "enumerate":
                        self.device.update(name for name, source in members_of(node.target, node.iter) if self.is_device(source))
                    elif self.is_device(node.iter):
                        self._store(node.target)
                elif isinstance(node, ast.withitem) and node.optional_vars is not None and self.is_device(node.context_expr):
                    self._store(node.optional_vars)
            if len(self.device) == before:
                break

    def _store(self, target: ast.expr, value: ast.expr | None = None) -> None:
        if isinstance(target, (ast.Tuple, ast.List)):
            parts = value.elts if isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts) else None
            for i, element in enumerate(target.elts):
                if parts is None or self.is_device(parts[i]):
                    self._store(element, parts[i] if parts else None)
        elif isinstance(target, ast.Starred):
            self._store(target.value)
        elif isinstance(target, ast.Name):
            self.device.add(target.id)
        elif isinstance(target, (ast.Attribute, ast.Subscript)) and (found := self.flow.path(target)) and found[1]:
            self.device.add(found[0])

    # --- questions -----------------------------------------------------------------------------------------

    def is_device(self, node: ast.AST | None) -> bool:
        """Whether an expression is device-side."""
        if node is None or isinstance(node, (ast.Constant, ast.JoinedStr, ast.Lambda)):
            return False
        if isinstance(node, (ast.Name, ast.Attribute, ast.Subscript)):
            return self._place(node)
        if isinstance(node, ast.Call):
            return self.device_call(node)
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp)):
            return self.is_device(node.elt)
        if isinstance(node, ast.DictComp):
            return self.is_device(node.value)
        if isinstance(node, ast.IfExp):
            return self.is_device(node.body) or self.is_device(node.orelse)
        return any(self.is_device(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr))

    def _place(self, node: ast.Name | ast.Attribute | ast.Subscript) -> bool:
        found = self.flow.path(node)
        if isinstance(node, ast.Name) and node.id in self.device:  # also where it stands for a part of something
            return True
        if found is not None and found[0] not in self.plain:
            path = found[0]
            if path in self.device:
                return True
            fresh = path in self.bound and path not in self.flow.first
            value = None if fresh or not found[1] else self.at(path)
            if value is not None and holds_device(value):
                return True
        if isinstance(node, ast.Name):
            return False
        if isinstance(node, ast.Attribute):
            return self.is_device(node.value) and node.attr not in _PLAIN_ATTRIBUTES
        return self.is_device(node.value)

    def at(self, path: str) -> Any:
        """What is at a path before the loop, None for nothing."""
        try:
            return peek(ast.parse(path, mode="eval").body, self.flow.value)
        except KeyError:
            return None

    def under_device(self, path: str) -> bool:
        """Whether the path leads through a device-side value."""
        root, _ = split(path)
        if root in self.device and root != path:
            return True
        return any(within(path, d) for d in self.device)

    def device_call(self, node: ast.Call) -> bool:
        """Whether a call gives a device-side value."""
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
        return given or is_device_type(type(function)) or self.is_device(node.func)

    def callee(self, func: ast.expr) -> Any:
        """The object behind `f`, `module.f` or `self.f`; None when it isn't there yet."""
        found = self.flow.peek(func)
        if found is None and isinstance(func, ast.Name):
            return getattr(builtins, func.id, None)
        return found

    def is_sink(self, node: ast.Call) -> bool:
        """Whether a call only acts on the notebook's own world, or on a plain object."""
        if id(node) in self.flow.view.opaque:
            return False
        function = self.callee(node.func)
        if function is not None and is_sink(function):
            return True
        if isinstance(node.func, ast.Attribute) and not self.is_device(node.func.value):
            owner = self.flow.peek(node.func.value)
            return not isinstance(owner, (types.ModuleType, type)) and function is None
        return False


def leaves(target: ast.expr) -> list[ast.expr]:
    """The names, attributes and items that a target assigns."""
    if isinstance(target, (ast.Tuple, ast.List)):
        return [leaf for element in target.elts for leaf in leaves(element)]
    return leaves(target.value) if isinstance(target, ast.Starred) else [target]


def holds_device(value: Any, depth: int = 0) -> bool:
    """Whether a device-side value is in `value`, or in a container there."""
    if is_device_type(type(value)):
        return True
    if depth < 3 and isinstance(value, (list, tuple, dict, set, deque)):
        parts = list(value.values()) if isinstance(value, dict) else list(value)[:8]
        return any(holds_device(v, depth + 1) for v in parts[:8])
    return False
