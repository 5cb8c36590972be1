"""What a model of the user's keeps on itself from one call to the next: a hidden state, a count that its `forward` looks at."""

from __future__ import annotations

import ast
import copy
import types
from collections.abc import Iterator
from typing import Any

import torch

from ..find.definitions import is_user_code, parse_function
from ..paths import split
from ..values import is_device_type
from .flow import Flow
from .inlining import converted


def module_state(flow: Flow) -> list[str]:
    """Why one worker must do the loop: the first attribute that a `forward` reads as an earlier call has left it."""
    for path, module in _modules(flow):
        for name, part in module.named_modules():
            forward = getattr(type(part), "forward", None)  # a scripted module has none
            if isinstance(forward, types.FunctionType) and is_user_code(forward.__code__):
                whole = f"{path}.{name}" if name else path
                for attribute, line in kept_attributes(part, forward):
                    return [f"line {line} of {type(part).__name__}.forward(): `{whole}.{attribute}` is handed from one call to the next"]
    return []


def _modules(flow: Flow) -> Iterator[tuple[str, torch.nn.Module]]:
    seen: set[int] = set()
    for path in sorted(flow.reads, key=len):
        value = flow.peek(ast.parse(path, mode="eval").body)
        if isinstance(value, torch.nn.Module) and id(value) not in seen:
            seen.update(id(m) for m in value.modules())
            yield path, value


def kept_attributes(module: torch.nn.Module, forward: types.FunctionType) -> Iterator[tuple[str, int]]:
    """Attributes, other than parameters and buffers, that a `forward` sets and may read before it has set them."""
    from .inline import View, expand

    parsed = parse_function(forward)
    names = forward.__code__.co_varnames
    if parsed is None or not names:
        return
    space = {**forward.__globals__, names[0]: module}
    body = converted(copy.deepcopy(parsed[0].body), ast.Return, "__depin_result__")
    if not any(isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store) for s in parsed[0].body for n in ast.walk(s)):
        return
    view: View = expand(body, space.__getitem__)
    flow = Flow(view, space.__getitem__, set(names[1 : forward.__code__.co_argcount]))
    for write in flow.writes:
        root, steps = split(write.path)
        if root != names[0] or not steps or not flow.kept(write.path):
            continue
        attribute = str(steps[0][1])
        if attribute in module._buffers or attribute in module._parameters or _only_counted(flow, write.path):
            continue
        yield attribute, getattr(write.node, "lineno", 0)


def _only_counted(flow: Flow, path: str) -> bool:
    """Whether a plain attribute is only added to, and nothing looks at it."""
    value: Any = flow.peek(ast.parse(path, mode="eval").body)
    own = [w.node for w in flow.writes if w.path == path]
    if is_device_type(type(value)) or not all(isinstance(n, (ast.AugAssign, ast.Call)) for n in own):
        return False
    reads = [
        n for s in flow.view.body for n in ast.walk(s) if isinstance(n, ast.expr) for p, at in flow.paths_in(n) if at is n and p == path
    ]
    return not [n for n in reads if not any(n is d for o in own for d in ast.walk(o))]
