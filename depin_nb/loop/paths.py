"""Paths: `step`, `self.global_step`, `state['epoch']` as units of dataflow, and as places to read and set at run time.

A path is text: a name, then attributes and constant items. Names of inlined callees carry a suffix that no message shows.
"""

from __future__ import annotations

import ast
import re
import types
from collections.abc import Callable, Iterable, MutableMapping
from functools import lru_cache
from typing import Any

import torch

_SUFFIX = re.compile(r"__in\d+\b")
Step = tuple[bool, Any]  # (is an item, attribute name or key)


def renamed(name: str, number: int) -> str:
    """A callee's own name, apart from every other."""
    return f"{_SUFFIX.sub('', name)}__in{number}"


def is_inlined(path: str) -> bool:
    """Whether the path begins at a callee's own name, which each call makes anew."""
    return _SUFFIX.search(split(path)[0]) is not None


def shown(path: str) -> str:
    return _SUFFIX.sub("", path)


def path_of(node: ast.AST) -> tuple[str, bool] | None:
    """The path of an expression, and whether it is exactly that (`meters[k].sum` is somewhere in `meters`); None for no path."""
    if isinstance(node, ast.Name):
        return node.id, True
    if isinstance(node, ast.Attribute):
        base = path_of(node.value)
        return base and (f"{base[0]}.{node.attr}", True) if base is None or base[1] else base
    if isinstance(node, ast.Subscript):
        base = path_of(node.value)
        key = node.slice.value if isinstance(node.slice, ast.Constant) else None
        if base is None or not base[1]:
            return base
        return (f"{base[0]}[{key!r}]", True) if isinstance(key, (str, int)) and not isinstance(key, bool) else (base[0], False)
    return None


@lru_cache(maxsize=4096)
def split(path: str) -> tuple[str, tuple[Step, ...]]:
    """The name that a path begins at, and its steps. Raises ValueError for text that is no path."""
    try:
        node = ast.parse(path, mode="eval").body
    except SyntaxError:
        raise ValueError(f"{path!r} is no path") from None
    steps: list[Step] = []
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute):
            steps.append((False, node.attr))
            node = node.value
        elif isinstance(node, ast.Subscript):
            key = ast.literal_eval(node.slice)
            steps.append((True, key))
            node = node.value
        else:
            raise ValueError(f"{path!r} is no path")
    return node.id, tuple(reversed(steps))


def overlaps(a: str, b: str) -> bool:
    """Whether one of two paths is the other, or a part of it."""
    return a == b or within(a, b) or within(b, a)


def within(path: str, whole: str) -> bool:
    return path.startswith(whole) and path[len(whole) : len(whole) + 1] in (".", "[")


# --- at run time ------------------------------------------------------------------------------------------


def read(env: MutableMapping[str, Any], path: str) -> Any:
    """What is at a path now. Raises LookupError or AttributeError when nothing is."""
    name, steps = split(path)
    value = env[name]
    for is_item, key in steps:
        value = value[key] if is_item else getattr(value, key)
    return value


def write(env: MutableMapping[str, Any], path: str, value: Any) -> None:
    """Puts a value at a path: all but the last step must be there. Raises LookupError or AttributeError when they aren't."""
    name, steps = split(path)
    if not steps:
        env[name] = value
        return
    owner = env[name]
    for is_item, key in steps[:-1]:
        owner = owner[key] if is_item else getattr(owner, key)
    is_item, key = steps[-1]
    if is_item:
        owner[key] = value
    else:
        setattr(owner, key, value)


def placed(env: MutableMapping[str, Any], paths: Iterable[str], wanted: Callable[[Any], bool]) -> dict[str, Any]:
    """What is at those paths at which something is that is `wanted`."""
    found: dict[str, Any] = {}
    for path in paths:
        try:
            value = read(env, path)
        except (LookupError, AttributeError, TypeError):
            continue
        if wanted(value):
            found[path] = value
    return found


# --- for analysis: nothing of the user's is called --------------------------------------------------------------


def look(owner: Any, step: Step) -> Any:
    """One step from an object, without running code of the user's. Raises KeyError when that can't be told."""
    is_item, key = step
    if is_item:
        if isinstance(owner, (dict, list, tuple)):
            try:
                return dict.__getitem__(owner, key) if isinstance(owner, dict) else owner[key]
            except (LookupError, TypeError):
                raise KeyError(key) from None
        raise KeyError(key)
    if isinstance(owner, (torch.nn.Module, torch.Tensor, tuple)) and not isinstance(getattr(type(owner), key, None), property):
        return _got(owner, key)
    if isinstance(owner, (types.ModuleType, type)):
        return _got(owner, key)
    own = getattr(owner, "__dict__", None)
    if isinstance(own, dict) and key in own:
        return own[key]
    found = next((vars(base)[key] for base in type(owner).__mro__ if key in vars(base)), None)
    if isinstance(found, types.MemberDescriptorType):  # a slot
        return _got(owner, key)
    if found is None or hasattr(type(found), "__get__"):
        raise KeyError(key)
    return found


def _got(owner: Any, key: str) -> Any:
    try:
        return getattr(owner, key)
    except (AttributeError, RuntimeError):
        raise KeyError(key) from None


def peek(node: ast.AST, resolve: Callable[[str], Any]) -> Any:
    """The value of an expression, or one like it: of `meters[k]` any of the meters, if all are of one type. Raises KeyError."""
    if isinstance(node, ast.Name):
        return resolve(node.id)
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Attribute):
        return look(peek(node.value, resolve), (False, node.attr))
    if isinstance(node, ast.Subscript):
        owner = peek(node.value, resolve)
        if isinstance(node.slice, ast.Constant):
            return look(owner, (True, node.slice.value))
        return member(owner)
    raise KeyError(ast.dump(node)[:40])


def member(container: Any) -> Any:
    """Any member of a container whose members are all of one type. Raises KeyError otherwise."""
    if isinstance(container, (torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.ParameterList)):
        container = list(container.children()) or list(container.parameters())
    if not isinstance(container, (list, tuple, dict, set)):
        raise KeyError("no container")
    parts = list(container.values() if isinstance(container, dict) else container)[:256]
    if not parts or any(type(part) is not type(parts[0]) for part in parts):
        raise KeyError("no member stands for all")
    return parts[0]
