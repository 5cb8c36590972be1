"""Tensors beside the models that the body changes in place: running means, momentum by hand, confusion matrices, averaged copies."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

import torch

from ..paths import overlaps, shown
from .flow import Flow
from .inline import where
from .places import members_of
from .sides import Sides

_SUMS = {"add_", "sub_", "index_add_", "scatter_add_", "addcmul_", "index_put_"}
_NOT_VALUES = {"requires_grad_", "retain_grad", "share_memory_", "detach_"}


def changed_tensors(flow: Flow, sides: Sides, notebook: set[str]) -> tuple[list[torch.Tensor], list[str]]:
    """(tensors changed in place, why one worker must do the loop). `notebook`: paths that are kept otherwise.

    Floats that are only ever added to are sums: averaging them among workers would be wrong. Integers are summed by a merge.
    """
    found: dict[int, torch.Tensor] = {}
    scaled: set[int] = set()
    summed: dict[int, tuple[str, ast.AST]] = {}
    sources = _sources(flow)
    for target, node, is_sum in _changes(flow):
        path = flow.path(target)
        if path is not None and path[0] in notebook:
            continue
        for tensor in _denoted(target, flow, sources):
            if tensor.requires_grad or not tensor.is_leaf or isinstance(tensor, torch.nn.Parameter):
                continue
            found[id(tensor)] = tensor
            if is_sum:
                summed.setdefault(id(tensor), (shown(path[0]) if path else ast.unparse(target), node))
            else:
                scaled.add(id(tensor))
    reasons = [
        f"{where(node)}: `{name}` is a sum that is kept on the workers"
        for key, (name, node) in summed.items()
        if key not in scaled and found[key].is_floating_point() and not _owned(found[key], flow) and not _used(name, flow, sides)
    ]
    return list(found.values()), reasons[:1]


def _changes(flow: Flow) -> Iterator[tuple[ast.expr, ast.AST, bool]]:
    """(what is changed, where, whether by adding to it)."""
    for node in (n for s in flow.view.body for n in ast.walk(s)):
        if isinstance(node, ast.Call):
            func = node.func
            if (
                isinstance(func, ast.Attribute)
                and func.attr.endswith("_")
                and not func.attr.startswith("_")
                and func.attr not in _NOT_VALUES
            ):
                yield func.value, node, func.attr in _SUMS
            yield from ((k.value, node, False) for k in node.keywords if k.arg == "out")
            if isinstance(func, ast.Attribute) and func.attr.startswith("_foreach_") and func.attr.endswith("_") and node.args:
                yield node.args[0], node, func.attr == "_foreach_add_"
        elif isinstance(node, ast.AugAssign):
            target = node.target
            yield target.value if isinstance(target, ast.Subscript) else target, node, isinstance(node.op, (ast.Add, ast.Sub))
            if isinstance(target, ast.Subscript):
                yield target, node, isinstance(node.op, (ast.Add, ast.Sub))
        elif isinstance(node, ast.Assign):
            for part in node.targets:
                if isinstance(part, ast.Subscript) or (isinstance(part, ast.Attribute) and part.attr == "data"):
                    yield part.value, node, False


def _sources(flow: Flow) -> dict[str, ast.expr]:
    """What names of the view stand for: members of a `for`, and plain renamings."""
    sources: dict[str, ast.expr] = {}
    for node in (n for s in flow.view.body for n in ast.walk(s)):
        if isinstance(node, (ast.For, ast.comprehension)):
            sources.update(members_of(node.target, node.iter))
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            sources.setdefault(node.targets[0].id, node.value)
    return sources


def _denoted(node: ast.AST, flow: Flow, sources: dict[str, ast.expr], depth: int = 0) -> list[torch.Tensor]:
    """The tensors that an expression may stand for, as they are before the loop."""
    if depth > 8:
        return []
    if isinstance(node, ast.Name) and node.id in sources:
        return _denoted(sources[node.id], flow, sources, depth + 1)
    if isinstance(node, ast.Attribute) and node.attr == "data":
        return _denoted(node.value, flow, sources, depth + 1)
    if isinstance(node, ast.Subscript):
        return _denoted(node.value, flow, sources, depth + 1)
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute) and (node.func.attr.endswith("_") or node.func.attr in ("values", "items", "get", "view")):
            return _denoted(node.func.value, flow, sources, depth + 1)
        if isinstance(node.func, ast.Name) and node.func.id in ("zip", "enumerate", "list", "reversed"):
            return [t for a in node.args for t in _denoted(a, flow, sources, depth + 1)]
        return []
    return _tensors(flow.peek(node))


def _tensors(value: Any, depth: int = 0) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple, dict)) and depth < 4:
        return [t for part in (value.values() if isinstance(value, dict) else value) for t in _tensors(part, depth + 1)]
    return []


def _used(name: str, flow: Flow, sides: Sides) -> bool:
    """Whether the loop computes with what it sums up: then it is no sum but a weight that is updated by hand."""
    calls = (n for s in flow.view.body for n in ast.walk(s) if isinstance(n, ast.Call) and sides.device_call(n) and not sides.is_sink(n))
    given = (a for call in calls for a in (*call.args, *(k.value for k in call.keywords)))
    return any(overlaps(shown(path), name) for argument in given for path, _ in flow.paths_in(argument))


def _owned(tensor: torch.Tensor, flow: Flow) -> bool:
    """Whether the tensor is a model's buffer: merged as such."""
    for path in flow.reads:
        value = flow.peek(ast.parse(path, mode="eval").body)
        if isinstance(value, torch.nn.Module) and any(b is tensor for b in value.buffers()):
            return True
    return False
