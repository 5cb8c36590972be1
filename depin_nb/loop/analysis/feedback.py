"""Whether plain values that are kept from one iteration to the next come back into a decision or into a computation on tensors."""

from __future__ import annotations

import ast
from typing import Any

from ..paths import overlaps, shown
from .flow import Flow
from .inline import where
from .sides import Sides, leaves

_ARITHMETIC = {"int", "float", "min", "max", "abs", "round", "pow"}

Tainted = dict[str, str]  # path -> the kept path that it comes from


def feedback(flow: Flow, sides: Sides, kept: set[str], containers: set[str] = frozenset()) -> str:  # type: ignore[assignment]
    """Where and how one of the `kept` plain paths is fed back, in plain words; "" if none is.

    `containers`: those of them whose contents are replaced: what comes out of them counts also where it is device-side.
    """
    return _Feedback(flow, sides, kept, containers).reason() if kept else ""


class _Feedback:
    def __init__(self, flow: Flow, sides: Sides, kept: set[str], containers: set[str]) -> None:
        self.flow, self.sides, self.containers = flow, sides, containers
        self.tainted: Tainted = {path: path for path in kept}
        self.nodes = [n for s in flow.view.body for n in ast.walk(s)]
        for _ in range(8):
            before = len(self.tainted)
            for node in self.nodes:
                self._spread(node)
            if len(self.tainted) == before:
                break

    def _from(self, node: ast.AST | None) -> str:
        """The kept path that an expression's value depends on, "" if on none."""
        found = [self.tainted[t] for path, _ in self.flow.paths_in(node) for t in self.tainted if overlaps(path, t)]
        return min(found, default="")

    def _spread(self, node: ast.AST) -> None:
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)) and node.value is not None:
            source = self._from(node.value)
            if source and (source in self.containers or not self.sides.is_device(node.value)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for leaf in (leaf for target in targets for leaf in leaves(target)):
                    self._taint(leaf, source)
        elif isinstance(node, (ast.For, ast.comprehension)):
            if source := self._from(node.iter):
                for leaf in leaves(node.target):
                    self._taint(leaf, source)
        elif isinstance(node, ast.NamedExpr):
            if source := self._from(node.value):
                self._taint(node.target, source)
        elif isinstance(node, (ast.If, ast.While)):
            if source := self._from(node.test):
                for write in self.flow.writes:
                    if any(n is write.node for s in (*node.body, *node.orelse) for n in ast.walk(s)):
                        self.tainted.setdefault(write.path, source)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not self.sides.is_device(node.func.value):
            given = next((s for a in (*node.args, *(k.value for k in node.keywords)) if (s := self._from(a))), "")
            if given and any(write.node is node for write in self.flow.writes):
                self._taint(node.func.value, given)

    def _taint(self, leaf: ast.expr, source: str) -> None:
        found = self.flow.path(leaf)
        if found is not None and (source in self.containers or not self.sides.is_device(leaf)):
            self.tainted.setdefault(leaf.id if isinstance(leaf, ast.Name) else found[0], source)

    # --- coming back -------------------------------------------------------------------------------------

    def reason(self) -> str:
        for node in self.nodes:
            name, how = self._met(node)
            if name in self.containers and how.startswith("is set"):
                return f"{where(node)}: `{shown(name)}` is handed from one iteration to the next"
            if name:
                return f"{where(node)}: `{shown(name)}`, kept from one iteration to the next, {how}{self._advice(name)}"
        return ""

    def _advice(self, name: str) -> str:
        """What would let several workers share the loop, where a number only ever follows from itself: `ptr = (ptr + 8) % n`."""
        writes = [w for w in self.flow.writes if overlaps(w.path, name)]
        changed = {w.path for w in self.flow.writes} - {name}
        for write in writes:
            assigns = isinstance(write.node, (ast.Assign, ast.AugAssign)) and write.path == name and not write.depth
            nodes = list(ast.walk(write.value)) if write.value is not None else []
            calls = [n for n in nodes if isinstance(n, ast.Call) and not (isinstance(n.func, ast.Name) and n.func.id in _ARITHMETIC)]
            others = any(overlaps(path, c) for path, _ in self.flow.paths_in(write.value) for c in changed)
            if not assigns or calls or others or self.sides.is_device(write.value):
                return ""
        if type(self.sides.at(name)) not in (int, float):
            return ""
        return "; computed from the loop's own index instead (`for i, ... in enumerate(...)`), it would let several workers share the loop"

    def _met(self, node: Any) -> tuple[str, str]:
        enters = "enters a computation on tensors"
        if isinstance(node, (ast.If, ast.While, ast.IfExp, ast.Assert)):
            source = self._from(node.test)
            return (source, "decides what the loop does next") if source and not self._harmless(node) else ("", "")
        if isinstance(node, ast.Match):
            return self._from(node.subject), "decides what the loop does next"
        if isinstance(node, ast.For):
            source = self._from(node.iter)
            return (source, "decides how often the loop's inner one runs") if source and not self._harmless(node) else ("", "")
        if isinstance(node, ast.Call):
            if not self.sides.device_call(node) or self.sides.is_sink(node):
                return ("", "") if id(node) not in self.flow.view.opaque else (self._from(node), "goes into a function that can't be read")
            return next((s for a in (*node.args, *(k.value for k in node.keywords)) if (s := self._from(a))), ""), enters
        if isinstance(node, (ast.BinOp, ast.Compare)) and self.sides_of(node):
            source = next((s for n in ast.iter_child_nodes(node) if (s := self._from(n)) in self.containers), "")
            if source:
                return source, enters
        if isinstance(node, ast.BinOp) and self.sides.is_device(node.left) != self.sides.is_device(node.right):
            return self._from(node.right if self.sides.is_device(node.left) else node.left), enters
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
            if any(self.sides.is_device(p) for p in parts):
                return next((s for p in parts if not self.sides.is_device(p) and (s := self._from(p))), ""), enters
        if isinstance(node, ast.Subscript) and self.sides.is_device(node.value):
            return self._from(node.slice), enters
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            owners = [t.value for t in targets if isinstance(t, (ast.Attribute, ast.Subscript))]
            if any(self.sides.is_device(o) for o in owners):
                return self._from(node.value), "is set on a device-side object"
            if isinstance(node, ast.AugAssign) and self.sides.is_device(node.target) and not self.sides.is_device(node.value):
                return self._from(node.value), enters
        return "", ""

    def sides_of(self, node: ast.AST) -> bool:
        return any(self.sides.is_device(n) for n in ast.iter_child_nodes(node) if isinstance(n, ast.expr))

    def _harmless(self, node: Any) -> bool:
        """Whether a branch only does bookkeeping, so that taking it or not is the notebook's own affair."""
        if isinstance(node, ast.Assert):
            return False
        body, orelse = node.body, getattr(node, "orelse", [])
        parts = [*(body if isinstance(body, list) else [body]), *(orelse if isinstance(orelse, list) else [orelse])]
        for child in (n for part in parts for n in ast.walk(part)):
            if isinstance(child, (ast.Break, ast.Continue, ast.Return, ast.Raise)):
                return False
            if isinstance(child, (ast.Name, ast.Attribute)) and self.sides.is_device(child):
                return False
            if isinstance(child, ast.Call) and (self.sides.device_call(child) or id(child) in self.flow.view.opaque):
                return False
        return True
