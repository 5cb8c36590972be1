"""How often a `while` that counts will run: from its test and its counter. Pure: trees in, numbers out."""

from __future__ import annotations

import ast
import itertools
import numbers
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ...core.errors import RefusedLoop
from .syntax import root_name

_TESTS: dict[type[ast.cmpop], tuple[str, str]] = {  # the test, and the same one with its sides exchanged
    ast.Lt: ("<", ">"),
    ast.LtE: ("<=", ">="),
    ast.Gt: (">", "<"),
    ast.GtE: (">=", "<="),
    ast.NotEq: ("!=", "!="),
    ast.Eq: ("==", "=="),
}
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "!=": operator.ne,
    "==": operator.eq,
}
_MAX_STEPPED = 10_000_000  # passes of a counter that isn't whole: they are found by stepping
_MUTATORS = {"append", "extend", "insert", "pop", "popleft", "remove", "clear", "add", "discard", "update", "appendleft", "setdefault"}


@dataclass(frozen=True)
class Counted:
    """`counter test bound`, the counter moving by `stride` in every pass. `first`: passes are counted from the first one on (a test that
    leaves), `ahead`: the counter has moved when it is tested."""

    test: str
    counter: str
    bound: ast.expr
    stride: ast.expr
    leaves: bool = False
    ahead: bool = False

    def arguments(self) -> list[ast.expr]:
        """Arguments of `passes`, as trees."""
        flags: list[ast.expr] = [ast.Constant(value=self.leaves), ast.Constant(value=self.ahead)]
        return [ast.Constant(value=self.test), ast.Name(id=self.counter, ctx=ast.Load()), self.bound, self.stride, *flags]


def passes(test: str, start: Any, bound: Any, stride: Any, leaves: bool, ahead: bool) -> range | Iterator[int]:
    """The passes of a counting `while` as what it iterates: a range, or an endless count when its test never changes.

    Raises RefusedLoop where the counter isn't a number.
    """
    if not all(isinstance(v, numbers.Real) for v in (start, bound, stride)):
        kinds = ", ".join(sorted({type(v).__name__ for v in (start, bound, stride) if not isinstance(v, numbers.Real)}))
        raise RefusedLoop(
            f"the `while` loop counts with a {kinds}, so its passes aren't known ahead",
            reason="while",
            hint="Count with a plain number: `step = int(step)` before the loop.",
        )
    compare = _COMPARE[test]
    if leaves:
        compare = _negated(compare)
        start = start + stride if ahead else start
    if not compare(start, bound):
        return range(1 if leaves else 0)
    holds = _OPPOSITE[test] if leaves else test
    if all(isinstance(v, int) for v in (start, bound, stride)):
        return _whole(holds, start, bound, stride, extra=int(leaves))
    if stride == 0 or (holds[0] == "<" and stride < 0) or (holds[0] == ">" and stride > 0):
        return itertools.count()
    count, value = 0, start
    while compare(value, bound):
        value, count = value + stride, count + 1
        if count > _MAX_STEPPED or (holds == "!=" and (bound - value) * stride < 0):  # stepped over it
            return itertools.count()
    return range(count + int(leaves))


_OPPOSITE = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "!=": "==", "==": "!="}


def _negated(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    return lambda a, b: not compare(a, b)


def _whole(test: str, start: int, bound: int, stride: int, *, extra: int) -> range | Iterator[int]:
    """Passes of whole numbers for which `start + k * stride test bound` holds from k = 0 on."""
    if test == "==":
        return range(1 + extra) if stride else itertools.count()
    if test == "!=":
        far, rest = divmod(bound - start, stride) if stride else (0, 1)
        return range(far + extra) if rest == 0 and far > 0 else itertools.count()
    if (test[0] == "<") is not (stride > 0) or stride == 0:
        return itertools.count()
    edge = bound + (1 if stride > 0 else -1) if test.endswith("=") else bound
    return range(len(range(start, edge, stride)) + extra)


def counted(node: ast.While) -> Counted | None:
    """The counter that bounds a `while`: `while step < n: ...; step += 1`, or `while True: ...; if step >= n: break`."""
    if isinstance(node.test, ast.Compare):
        return _bounded(node, node.test, leaves=False, at=len(node.body))
    if isinstance(node.test, ast.Constant) and node.test.value:
        for place, statement in enumerate(node.body):
            if isinstance(statement, ast.If) and isinstance(statement.test, ast.Compare) and not statement.orelse:
                if isinstance(statement.body[-1], ast.Break):
                    found = _bounded(node, statement.test, leaves=True, at=place)
                    if found is not None:
                        return found
    return None


def _bounded(node: ast.While, test: ast.Compare, *, leaves: bool, at: int) -> Counted | None:
    if len(test.ops) != 1 or type(test.ops[0]) not in _TESTS:
        return None
    ways = _TESTS[type(test.ops[0])]
    for counter, bound, words in ((test.left, test.comparators[0], ways[0]), (test.comparators[0], test.left, ways[1])):
        if isinstance(counter, ast.Name) and is_invariant(bound, node):
            found = _stride(node, counter.id)
            if found is not None:
                place, stride = found
                if leaves and _may_continue(node.body[:at]):
                    return None
                return Counted(words, counter.id, bound, stride, leaves, ahead=place < at)
    return None


def _stride(node: ast.While, name: str) -> tuple[int, ast.expr] | None:
    """Where the body moves a counter, and by how much: once, in every pass."""
    stores = [n for n in ast.walk(node) if isinstance(n, ast.Name) and n.id == name and not isinstance(n.ctx, ast.Load)]
    others = [n for n in ast.walk(node) if isinstance(n, (ast.Global, ast.Nonlocal)) and name in n.names]
    if len(stores) != 1 or others:
        return None
    for place, statement in enumerate(node.body):
        step: tuple[ast.operator, ast.expr] | None = None
        if isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name) and statement.target.id == name:
            step = statement.op, statement.value
        elif isinstance(statement, ast.Assign) and statement.targets == [stores[0]] and isinstance(statement.value, ast.BinOp):
            if isinstance(statement.value.left, ast.Name) and statement.value.left.id == name:
                step = statement.value.op, statement.value.right
        if step is None or not isinstance(step[0], (ast.Add, ast.Sub)) or not is_invariant(step[1], node):
            continue
        if _may_continue(node.body[:place]):
            return None
        value = step[1] if isinstance(step[0], ast.Add) else ast.UnaryOp(op=ast.USub(), operand=step[1])
        return place, value
    return None


def _may_continue(statements: list[ast.stmt]) -> bool:
    """Whether a `continue` of the loop itself is among the statements."""
    return any(isinstance(n, ast.Continue) for n in of_this_loop(statements))


def of_this_loop(statements: list[Any]) -> Iterator[ast.AST]:
    """Nodes of a body without those of inner loops and functions: a `break` among them is the loop's own."""
    for node in statements:
        yield node
        if isinstance(node, (ast.For, ast.While)):
            yield from of_this_loop(node.orelse)
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            yield from of_this_loop(list(ast.iter_child_nodes(node)))


def is_invariant(node: ast.expr, loop: ast.AST) -> bool:
    """Whether an expression over names, attributes, numbers and `len` has one value throughout the loop, as far as its text tells."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (int, float))
    if isinstance(node, ast.UnaryOp):
        return is_invariant(node.operand, loop)
    if isinstance(node, ast.BinOp):
        return is_invariant(node.left, loop) and is_invariant(node.right, loop)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "len" and len(node.args) == 1:
        root = root_name(node.args[0])
        changed = any(
            isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr in _MUTATORS and root_name(n.func.value) == root
            for n in ast.walk(loop)
        )
        return not changed and isinstance(node.args[0], (ast.Name, ast.Attribute)) and is_invariant(node.args[0], loop)
    if not isinstance(node, (ast.Name, ast.Attribute)):
        return False
    text = ast.unparse(node)
    stored = {ast.unparse(n) for n in ast.walk(loop) if isinstance(n, (ast.Name, ast.Attribute)) and not isinstance(n.ctx, ast.Load)}
    parts = text.split(".")
    return not any(".".join(parts[: i + 1]) in stored for i in range(len(parts)))
