"""Whether gradients live longer than an iteration, and which schedulers step with it: read off a view of the body, in its order.

Gradients are gathered over iterations exactly when a step can use what an earlier iteration's backward has left: there is a way from the
iteration's start to the step that clears nothing, and a way from a backward to the iteration's end that clears nothing.
"""

from __future__ import annotations

import ast
import types
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from .flow import Flow
from .inline import where
from .places import members_of

_CLEARS = {"zero_grad", "zero_"}
Params = frozenset[Any]  # ids of parameters; text where an owner isn't known


@dataclass
class Gradients:
    """`reasons`: why one worker must do the loop. `kept`: `.grad` outlives an iteration. `stepped`: schedulers of each iteration.

    `sometimes`: schedulers that step in some iterations only, in plain words.
    """

    reasons: list[str] = field(default_factory=list)
    kept: bool = False
    stepped: list[LRScheduler] = field(default_factory=list)
    sometimes: list[str] = field(default_factory=list)


@dataclass
class _State:
    """`old`: whose gradients may stem from an earlier iteration; `new`: whose may stem from a backward of this one."""

    old: Params
    new: Params
    dead: bool = False

    def join(self, other: _State) -> _State:
        if self.dead or other.dead:
            return other if self.dead else self
        return _State(self.old | other.old, self.new | other.new)


def gradients(flow: Flow, line: int) -> Gradients:
    """The facts of the view behind `flow`; `line`: where the loop stands."""
    return _Reader(flow, line).facts()


class _Reader:
    def __init__(self, flow: Flow, line: int) -> None:
        self.flow, self.line, self.out = flow, line, Gradients()
        self.members: dict[str, ast.expr] = {}
        self.universe: Params = frozenset()
        self.uses: list[tuple[Params, Params, ast.AST, bool]] = []  # (whose, of them old ones, where, in some iterations only)
        self.backward: ast.AST | None = None
        self.cleared: list[tuple[Params, bool]] = []

    def facts(self) -> Gradients:
        body = self.flow.view.body
        for node in (n for s in body for n in ast.walk(s)):
            if isinstance(node, (ast.For, ast.comprehension)):
                self.members.update(members_of(node.target, node.iter))
            elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                self.members.setdefault(node.targets[0].id, node.value)
        for node in (n for s in body for n in ast.walk(s)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr == "step":
                    self.universe |= self._stepped_by(node) or frozenset()
                elif node.func.attr == "zero_grad":
                    self.universe |= self._whose(node.func.value)
            elif isinstance(node, ast.Attribute) and node.attr == "grad" and not self._is_module(node.value):
                self.universe |= self._whose(node.value)
        self.universe = self.universe or frozenset({"?"})
        end = self._block(body, _State(self.universe, frozenset()), 0)
        self._judge(end)
        return self.out

    def _judge(self, end: _State) -> None:
        if self.backward is None or end.dead:
            return
        if not self.uses:
            self.out.kept = True
            if end.old or not self.cleared:
                self.out.reasons.append(f"line {self.line}: gradients aren't cleared in every iteration (no zero_grad)")
            else:
                self.out.reasons.append(f"line {self.line}: the step comes after the loop, so gradients outlive it")
            return
        for whose, old, node, sometimes in self.uses:
            if old & end.new:
                self.out.kept = True
                if sometimes or any(ids & whose for ids, _ in self.cleared):
                    self.out.reasons.append(f"{where(node)}: gradients are gathered over several iterations before the step")
                else:
                    self.out.reasons.append(f"line {self.line}: gradients aren't cleared in every iteration (no zero_grad)")
                return
            if old and self._has_gradients(old):
                self.out.kept = True
                self.out.reasons.append(f"{where(node)}: the first step uses gradients from before the loop")
                return

    def _has_gradients(self, whose: Params) -> bool:
        """Whether a parameter holds a gradient other than zero now; asked only where a step would use it."""
        found: dict[int, torch.Tensor] = {}
        for owner in self._owners:
            for parameter in _parameters(owner):
                found[id(parameter)] = parameter
        return any(found[i].grad is not None and bool(found[i].grad.any()) for i in whose if i in found)  # type: ignore[union-attr]

    @property
    def _owners(self) -> list[Any]:
        nodes = (n for s in self.flow.view.body for n in ast.walk(s))
        return [
            v
            for n in nodes
            if isinstance(n, (ast.Name, ast.Attribute)) and isinstance(v := self.flow.peek(n), (Optimizer, torch.nn.Module))
        ]

    # --- whose gradients --------------------------------------------------------------------------------------

    def _whose(self, node: ast.AST, depth: int = 0) -> Params:
        """The parameters that an expression has to do with: an optimizer's, a model's, those of a container, or a tensor itself."""
        if isinstance(node, ast.Attribute) and node.attr in ("grad", "data"):
            return self._whose(node.value, depth + 1)
        ids = _ids(self.flow.peek(node))
        if isinstance(node, ast.Name) and node.id in self.members and depth < 8:
            source = self.members[node.id]
            outer = self._whose(source, depth + 1)
            return outer or ids
        if ids:
            return ids
        if isinstance(node, (ast.Attribute, ast.Subscript, ast.Starred)) and depth < 8:
            return self._whose(node.value, depth + 1)
        if isinstance(node, ast.Call) and depth < 8:
            parts = [node.func.value] if isinstance(node.func, ast.Attribute) and not self._is_module(node.func.value) else []
            return frozenset().union(*(self._whose(a, depth + 1) for a in (*parts, *node.args)))
        if isinstance(node, (ast.List, ast.Tuple, ast.BinOp, ast.ListComp, ast.GeneratorExp)) and depth < 8:
            return frozenset().union(*(self._whose(c, depth + 1) for c in ast.iter_child_nodes(node) if isinstance(c, ast.expr)))
        found = self.flow.path(node)
        return frozenset({found[0]}) if found else frozenset()

    def _is_module(self, node: ast.AST) -> bool:
        return isinstance(self.flow.peek(node), (types.ModuleType, type))

    def _stepped_by(self, node: ast.Call) -> Params | None:
        """Whose gradients `x.step(...)` uses; None when it is no optimizer's step."""
        assert isinstance(node.func, ast.Attribute)
        owner = self.flow.peek(node.func.value)
        if isinstance(owner, Optimizer):
            return self._whose(node.func.value)
        if node.args and isinstance(self.flow.peek(node.args[0]), Optimizer):  # a scaler's
            return self._whose(node.args[0])
        if owner is None and not node.args and not node.keywords:
            return self._whose(node.func.value)
        return None

    # --- in order ----------------------------------------------------------------------------------------------

    def _block(self, statements: list[ast.stmt], state: _State, depth: int) -> _State:
        for s in statements:
            state = self._statement(s, state, depth)
        return state

    def _statement(self, s: ast.stmt, state: _State, depth: int) -> _State:
        if isinstance(s, ast.If):
            state = self._events(s.test, state, depth)
            if any(isinstance(n, ast.Attribute) and n.attr == "grad" for n in ast.walk(s.test)):  # `if p.grad is not None: ...`
                return self._block(s.body, state, depth)
            return self._block(s.body, state, depth + 1).join(self._block(s.orelse, state, depth + 1))
        if isinstance(s, (ast.For, ast.While)):
            state = self._events(s.iter if isinstance(s, ast.For) else s.test, state, depth)
            once = self._block(s.body, state, depth)
            return self._block(s.body, once, depth) if not once.dead else state
        if isinstance(s, ast.With):
            for item in s.items:
                state = self._events(item.context_expr, state, depth)
            return self._block(s.body, state, depth)
        if isinstance(s, ast.Try):
            after = self._block(s.orelse, self._block(s.body, state, depth), depth)
            for handler in s.handlers:
                after = after.join(self._block(handler.body, state.join(after), depth + 1))
            return self._block(s.finalbody, after, depth)
        if isinstance(s, ast.Match):
            for case in s.cases:
                state = state.join(self._block(case.body, state, depth + 1))
            return state
        if isinstance(s, (ast.Break, ast.Raise, ast.Continue, ast.Return)):
            return _State(frozenset(), frozenset(), dead=True)
        if isinstance(s, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
            if s.value is not None:
                state = self._events(s.value, state, depth)
            for target in s.targets if isinstance(s, ast.Assign) else [s.target]:
                if isinstance(target, ast.Attribute) and target.attr == "grad":
                    state = self._clear(target.value, state, depth, sure=isinstance(s.value, ast.Constant))
            return state
        for child in ast.iter_child_nodes(s):
            state = self._events(child, state, depth)
        return state

    def _clear(self, owner: ast.AST, state: _State, depth: int, *, sure: bool) -> _State:
        whose = self._whose(owner)
        self.cleared.append((whose, depth == 0))
        return _State(state.old - whose, (state.new - whose) if sure else state.new)

    def _events(self, node: ast.AST, state: _State, depth: int) -> _State:
        calls = sorted(
            (n for n in ast.walk(node) if isinstance(n, (ast.Call, ast.Attribute))),
            key=lambda n: (n.end_lineno or 0, n.end_col_offset or 0),
        )
        for each in calls:
            if isinstance(each, ast.Attribute):
                if (
                    each.attr == "grad"
                    and isinstance(each.ctx, ast.Load)
                    and not self._cleared_by(each, node)
                    and not self._is_module(each.value)
                ):
                    whose = self._whose(each.value)
                    self.uses.append((whose, whose & state.old, each, depth > 0))
            elif isinstance(each.func, ast.Attribute):
                state = self._call(each, each.func, state, depth)
            elif id(each) in self.flow.view.opaque:
                state = _State(state.old, self.universe)
        return state

    @staticmethod
    def _cleared_by(attribute: ast.Attribute, node: ast.AST) -> bool:
        """Whether `.grad` stands in `p.grad.zero_()`, or is only asked for."""
        for outer in ast.walk(node):
            if isinstance(outer, ast.Call) and isinstance(outer.func, ast.Attribute) and outer.func.attr in (*_CLEARS, "detach_", "norm"):
                if any(n is attribute for n in ast.walk(outer.func)):
                    return True
            if isinstance(outer, ast.Compare) and any(n is attribute for n in ast.walk(outer)):
                return True
        return False

    def _call(self, node: ast.Call, func: ast.Attribute, state: _State, depth: int) -> _State:
        if func.attr == "zero_grad" or (
            func.attr == "zero_" and any(isinstance(n, ast.Attribute) and n.attr == "grad" for n in ast.walk(func))
        ):
            return self._clear(func.value, state, depth, sure=True)
        if func.attr == "backward" or id(node) in self.flow.view.opaque:
            if func.attr == "backward" and self._is_module(func.value):
                self.backward = self.backward or node
            self.backward = node if func.attr == "backward" else self.backward
            return _State(state.old, self.universe)
        if func.attr != "step":
            return state
        scheduler = self.flow.peek(func.value)
        if isinstance(scheduler, (LRScheduler, ReduceLROnPlateau)):
            if depth == 0 and not node.args and not node.keywords:
                self.out.stepped.append(scheduler)
            else:
                said = "is told a metric in some iterations" if node.args else "steps only in some iterations"
                self.out.sometimes.append(f"{where(node)}: a learning-rate scheduler {said}")
            return state
        whose = self._stepped_by(node)
        if whose is not None:
            self.uses.append((whose, whose & state.old, node, depth > 0))
        return state


def _ids(value: Any) -> Params:
    return frozenset(id(p) for p in _parameters(value))


def _parameters(value: Any, depth: int = 0) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, torch.nn.Module):
        return list(value.parameters())
    if isinstance(value, Optimizer):
        return [p for group in value.param_groups for p in group["params"]]
    if isinstance(value, (list, tuple, dict)) and depth < 4:
        return [p for part in (value.values() if isinstance(value, dict) else value) for p in _parameters(part, depth + 1)]
    return []
