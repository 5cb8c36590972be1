"""Reads a loop's body, before anything is spent: what it keeps from one iteration to the next, and whether that forbids several workers.

Conservative on purpose: where it can't tell, one worker does the loop, and the plan says why. It reads a view of the body in which the
user's own functions are expanded (inline.py), by path (paths.py), and runs nothing of the user's.
"""

from __future__ import annotations

import ast
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..find.syntax import names_in, stored_names, with_depth
from ..paths import is_inlined, overlaps, shown, split
from ..source import holds_remote
from ..values import is_torch
from .changed import changed_tensors
from .feedback import feedback
from .flow import Flow, Write
from .gradients import gradients
from .inline import expand, where
from .modules import module_state
from .sides import Sides


@dataclass
class Facts:
    """What the body does. `solo` holds the reasons, in plain words with lines, why one worker must do the loop.

    Names of the loop's own body: `reads`, `stored`, `conditional` (not assigned in every iteration), `accumulators` (sums that the
    notebook keeps), `needless` (assigned in every iteration before they are read).
    Paths: `counters` (value before the loop, change in an iteration), `carried` (tensors that one iteration hands to the next),
    `histories` (those of them that aren't detached first), `placed` (attributes and items of plain objects that are given device-side
    values), `stepped` (schedulers of every iteration, by path).
    `tensors`: those that the body changes in place. `leaves`: the body may leave the loop at an iteration that isn't known ahead.
    `grads`: gradients outlive an iteration.
    """

    reads: set[str] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)
    conditional: set[str] = field(default_factory=set)
    accumulators: set[str] = field(default_factory=set)
    counters: dict[str, Any] = field(default_factory=dict)
    carried: set[str] = field(default_factory=set)
    histories: set[str] = field(default_factory=set)
    placed: set[str] = field(default_factory=set)
    needless: set[str] = field(default_factory=set)
    tensors: list[torch.Tensor] = field(default_factory=list)
    stepped: dict[str, Any] = field(default_factory=dict)
    leaves: bool = False
    grads: bool = False
    solo: list[str] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)


def analyse(loop: ast.For, resolve: Callable[[str], Any], *, plain_target: set[str]) -> Facts:
    """Facts of `loop`. `resolve(name)` gives a name's present value (or raises KeyError); `plain_target`: target names that are plain."""

    def present(name: str) -> Any:
        value = resolve(name)
        if holds_remote(value):  # of a worker that is gone: as good as not there yet
            raise KeyError(name)
        return value

    return _Analysis(loop, present, plain_target).facts()


class _Analysis:
    def __init__(self, loop: ast.For, resolve: Callable[[str], Any], plain_target: set[str]) -> None:
        self.loop, self.plain_target = loop, plain_target
        self.targets = stored_names(loop.target)
        self.flow = Flow(expand(loop.body, resolve), resolve, set(self.targets))
        self.sides = Sides(self.flow, self.targets, plain_target)
        self.by_path: dict[str, list[Write]] = {}
        for write in self.flow.writes:
            self.by_path.setdefault(write.path, []).append(write)
        self.out = Facts()

    def facts(self) -> Facts:
        out = self.out
        self._names()
        held = self._held()
        out.counters = self._counters(held)
        held -= out.counters.keys()
        self._accumulators(held)
        gathered = {path for path in held if self._is_gathered(path)}
        out.carried = {path for path in held - gathered if self._is_carried(path)}
        for path in sorted(out.carried):
            line = where(self.by_path[path][0].node, self.loop.lineno)
            out.solo.append(f"{line}: `{shown(path)}` is handed from one iteration to the next")
        out.histories = {path for path in out.carried if not self._cut_first(path)}
        plain = {p for p in held - out.carried if p in out.accumulators or not self._is_device_path(p)}
        inside = {p for p in held if any(w.how == "replace" for w in self.by_path[p]) and p not in out.carried} | gathered
        if reason := feedback(self.flow, self.sides, plain | inside, inside):
            out.solo.append(reason)
        out.placed = {
            w.path for w in self.flow.writes if w.how in ("bind", "augment") and w.path not in gathered and self._is_placed(w.path)
        } | {p for p in out.carried if split(p)[1]}
        found = gradients(self.flow, self.loop.lineno)
        out.grads = found.kept
        out.solo += [*found.reasons, *found.sometimes]
        names = {id(v): n for n, v in self._schedulers(found.stepped)}
        out.stepped = {names.get(id(s), type(s).__name__): s for s in found.stepped}
        out.tensors, sums = changed_tensors(self.flow, self.sides, out.accumulators | out.carried)
        out.solo += [*sums, *module_state(self.flow)]
        out.leaves = self._leaves(self.flow.view.body)
        self._same_batch()
        return out

    # --- the loop's own names ------------------------------------------------------------------------------

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
        inner = [n for s in self.loop.body for n in ast.walk(s) if isinstance(n, (ast.FunctionDef, ast.Lambda))]
        later = {n for function in inner for n in names_in(function)} | {
            n.id for s in self.loop.body for d in ast.walk(s) if isinstance(d, ast.Delete) for n in ast.walk(d) if isinstance(n, ast.Name)
        }
        out.needless = out.stored - {split(path)[0] for path in self.flow.first} - later

    # --- what an iteration finds as the one before has left it -----------------------------------------------------

    def _held(self) -> set[str]:
        """Paths that an iteration changes and may read before it has assigned them."""
        held = {p for p in self.by_path if split(p)[0] not in self.targets and not is_inlined(p) and self.flow.kept(p)}
        return {path for path in held if not self._elsewhere(path)}

    def _elsewhere(self, path: str) -> bool:
        """Whether the path leads into a tensor, model or optimizer, whose state is kept as such."""
        root, steps = split(path)
        if self._is_device_path(path) and all(w.how == "mutate" for w in self.by_path[path]):
            return True
        value: Any = self.sides.at(path)
        if isinstance(value, (types.ModuleType, type, types.FunctionType)):
            return all(w.how == "mutate" for w in self.by_path[path])
        return bool(steps) and isinstance(self.sides.at(root), torch.Tensor)

    def _is_device_path(self, path: str) -> bool:
        return self.sides.is_device(ast.parse(path, mode="eval").body)

    def _is_carried(self, path: str) -> bool:
        writes = self.by_path[path]
        if path in self.out.accumulators or not self._is_device_path(path) or all(w.how in ("mutate", "replace") for w in writes):
            return False
        value = self.sides.at(path)
        in_place = all(w.how in ("augment", "mutate") for w in writes)
        return not (isinstance(value, torch.Tensor) and in_place)  # `w -= lr * w.grad` stays the object that it is

    def _is_gathered(self, path: str) -> bool:
        """Whether a path's list is only added to (`history["lr"] += [x]`): both halves do that, so nothing is handed on."""
        added = [w for w in self.by_path[path] if w.how == "augment"]
        others = [w for w in self.by_path[path] if w.how not in ("augment", "replace", "mutate")]
        adds = all(isinstance(w.node, ast.AugAssign) and isinstance(w.node.op, ast.Add) for w in added)
        return bool(split(path)[1] and added) and adds and not others and type(self.sides.at(path)) is list

    def _cut_first(self, path: str) -> bool:
        """Whether the first thing that an iteration does with a path is to detach it."""
        value, seen = self.by_path[path][0].value, 0
        while value is not None and seen < 8:
            if any(isinstance(n, ast.Attribute) and n.attr in ("detach", "detach_", "data", "item") for n in ast.walk(value)):
                return True
            name = value.id if isinstance(value, ast.Name) and is_inlined(value.id) else ""
            value = next((w.value for w in self.flow.writes if w.path == name), None) if name else None
            seen += 1
        return False

    def _is_placed(self, path: str) -> bool:
        return bool(split(path)[1]) and not is_inlined(path) and path in self.sides.device and not self.sides.under_device(path)

    def _counters(self, held: set[str]) -> dict[str, Any]:
        """`step += 1` once an iteration, unconditionally, here or in a callee: its value follows from the iteration's index."""
        counters: dict[str, Any] = {}
        for path in held:
            value = self.sides.at(path)
            if type(value) is not int or any(overlaps(path, other) and other != path for other in self.by_path):
                continue
            strides = [self._stride(path, write) for write in self.by_path[path]]
            if None not in strides and self._reachable(path):
                counters[path] = (value, sum(s for s in strides if s is not None))
        return counters

    def _reachable(self, path: str) -> bool:
        return split(path)[0] in self.out.reads | self.out.stored or split(path)[0] in self.flow.reads

    def _stride(self, path: str, write: Write) -> int | None:
        """What a write adds to a path in every iteration; None when that can't be told."""
        node = write.node
        if write.depth or not isinstance(node, (ast.Assign, ast.AugAssign)):
            return None
        if isinstance(node, ast.AugAssign):
            sign = 1 if isinstance(node.op, ast.Add) else -1 if isinstance(node.op, ast.Sub) else 0
            added = self._constant(node.value)
            return None if added is None or not sign else sign * added
        value = node.value
        if isinstance(value, ast.BinOp) and isinstance(value.op, (ast.Add, ast.Sub)) and len(node.targets) == 1:
            sign = 1 if isinstance(value.op, ast.Add) else -1
            pairs = [(value.left, value.right)] + ([(value.right, value.left)] if sign == 1 else [])
            for own, other in pairs:
                found, added = self.flow.path(own), self._constant(other)
                if found == (path, True) and added is not None:
                    return sign * added
        return None

    def _constant(self, node: ast.expr) -> int | None:
        if isinstance(node, ast.Constant):
            return node.value if type(node.value) is int else None
        found = self.flow.path(node)
        if found is None or not found[1] or any(overlaps(found[0], path) for path in self.by_path) or is_inlined(found[0]):
            return None
        value = self.sides.at(found[0])
        return value if type(value) is int and split(found[0])[0] not in self.targets else None

    def _accumulators(self, held: set[str]) -> None:
        """Sums that the notebook keeps: names only ever added to, or reset to a plain value."""
        for name in held & self.out.stored:
            value = self.sides.at(name)
            tensor = isinstance(value, torch.Tensor) and not value.requires_grad
            if not (tensor or value is None or isinstance(value, (int, float, complex, list))):
                continue
            changes = [n for n in ast.walk(self.loop) if isinstance(n, (ast.AugAssign, ast.Assign)) and name in stored_names(n)]
            kept = all(isinstance(n, ast.AugAssign) or not self.sides.is_device(n.value) for n in changes)
            if kept and any(isinstance(n, ast.AugAssign) for n in changes):
                self.out.accumulators.add(name)

    def _schedulers(self, stepped: list[Any]) -> list[tuple[str, Any]]:
        found = []
        for path in sorted(self.flow.reads, reverse=True):
            value = self.sides.at(path)
            if any(value is s for s in stepped):
                found.append((shown(path), value))
        return found

    def _same_batch(self) -> None:
        """A counting loop that sees the same full batch each time."""
        body = self.flow.view.body
        calls = [n for s in body for n in ast.walk(s) if isinstance(n, ast.Call)]
        user = any(isinstance(f := self.sides.callee(c.func), types.FunctionType) and not is_torch(f) for c in calls)
        drawn = any(word in ast.unparse(c.func) for c in calls for word in ("rand", "sample", "choice", "next", "normal"))
        changing = self.targets | set(self.by_path)
        index = any(
            isinstance(n, ast.Subscript) and any(p in changing for p, _ in self.flow.paths_in(n.slice)) for s in body for n in ast.walk(s)
        )
        if self.targets <= self.plain_target and not (user or drawn or index or self.flow.view.opaque):
            self.out.caveats.append("each iteration sees the same full batch: more workers won't help")

    def _leaves(self, body: list[ast.stmt], inner: bool = False) -> bool:
        """Whether the body may end the loop at an iteration that isn't known ahead: by a `break` of its own, a `return`, a `raise`."""
        for node in body:
            if isinstance(node, (ast.Return, ast.Raise)) or (isinstance(node, ast.Break) and not inner):
                return True
            if isinstance(node, ast.If) and self._is_of_index(node.test):
                continue
            for name in ("body", "orelse", "finalbody"):
                deeper = inner or (isinstance(node, (ast.For, ast.While)) and name == "body")
                if self._leaves(getattr(node, name, None) or [], deeper):
                    return True
            for part in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
                if self._leaves(part.body, inner):
                    return True
        return False

    def _is_of_index(self, test: ast.expr) -> bool:
        """Whether a test follows from the iteration's index alone."""
        known = self.plain_target | self.out.counters.keys()
        plain = all(
            path in known or (not any(overlaps(path, w) for w in self.by_path) and not self.sides.is_device(at))
            for path, at in self.flow.paths_in(test)
        )
        return plain and not any(isinstance(n, ast.Call) for n in ast.walk(test))
