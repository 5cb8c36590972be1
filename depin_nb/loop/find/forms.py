"""A training loop as the `for` that is leased: `while` loops and fetches by `next()` in the one form that the halves know.

Pure: trees in, trees out. `while test: body` becomes

    if test:
        for __depin_pass__ in <endless>:
            body
            if not test: break

or, where a counter bounds it, `for __depin_pass__ in <passes>: body`. What is fetched is iterated: `for __depin_pass__,
__depin_fetched_0__ in fetching(<passes>, it, <renew>)`.
"""

from __future__ import annotations

import ast
import copy
from dataclasses import dataclass, field

from .counting import counted, of_this_loop
from .fetches import Fetch, without_fetches
from .pieces import locate
from .unsupported import refused

LOOPS = "__depin_loops__"
PASS = "__depin_pass__"
ENDED = "__depin_ended__"


@dataclass
class Form:
    """`loop`: what is leased. `guard`: the test before it. `orelse`: run when the loop ran out; `ended`: also when its test did."""

    loop: ast.For
    fetches: list[Fetch] = field(default_factory=list)
    guard: ast.expr | None = None
    orelse: list[ast.stmt] = field(default_factory=list)

    @property
    def flagged(self) -> bool:
        """Whether leaving by the test has to be told from leaving by `break`."""
        return self.guard is not None and bool(self.orelse)


def form(node: ast.For | ast.While) -> Form:
    """The leased form of a loop. Raises RefusedLoop for a `next()` that isn't recognised."""
    if isinstance(node, ast.For):
        return _fetching(node, node.target, node.iter, node.body, Form(node, orelse=node.orelse))
    node = _unfolded(node)
    hidden = ast.Name(id=PASS, ctx=ast.Store())
    found = counted(node)
    if found is not None:
        made = Form(_empty(hidden), orelse=[] if found.leaves else node.orelse)
        return _fetching(node, hidden, _loops("passes", found.arguments()), node.body, made)
    made = Form(_empty(hidden))
    body = node.body
    if not (isinstance(node.test, ast.Constant) and node.test.value):
        made.guard, made.orelse = node.test, node.orelse
        body = _tested(node, flag=made.flagged)
    return _fetching(node, hidden, _loops("endless", []), body, made)


def _unfolded(node: ast.While) -> ast.While:
    """`while (b := next(it, None)) is not None:` with the fetch in its body."""
    test = node.test
    fits = (
        isinstance(test, ast.Compare)
        and isinstance(test.left, ast.NamedExpr)
        and isinstance(test.ops[0], ast.IsNot)
        and len(test.ops) == 1
        and isinstance(test.comparators[0], ast.Constant)
        and test.comparators[0].value is None
        and isinstance(test.left.value, ast.Call)
        and isinstance(test.left.value.func, ast.Name)
        and test.left.value.func.id == "next"
    )
    if not fits:
        return node
    assert isinstance(test, ast.Compare)
    assert isinstance(test.left, ast.NamedExpr)
    name = test.left.target.id
    fetch = ast.Assign(targets=[ast.Name(id=name, ctx=ast.Store())], value=test.left.value)
    missing = ast.Compare(left=ast.Name(id=name, ctx=ast.Load()), ops=[ast.Is()], comparators=[ast.Constant(value=None)])
    leave = ast.If(test=missing, body=[*node.orelse, ast.Break()], orelse=[])
    statements = [locate(fetch, test), locate(leave, test)]
    made = ast.While(test=ast.Constant(value=True), body=[*statements, *node.body], orelse=[])
    located: ast.While = locate(made, node)
    return located


def _tested(node: ast.While, *, flag: bool) -> list[ast.stmt]:
    """The body with the loop's test where the next pass would begin: at its end, and at each `continue`."""
    leave: list[ast.stmt] = [ast.Break()]
    if flag:
        leave.insert(0, ast.Assign(targets=[ast.Name(id=ENDED, ctx=ast.Store())], value=ast.Constant(value=True)))

    def check() -> ast.stmt:
        test = ast.If(test=ast.UnaryOp(op=ast.Not(), operand=copy.deepcopy(node.test)), body=copy.deepcopy(leave), orelse=[])
        located: ast.stmt = locate(test, node.test)
        return located

    body: list[ast.stmt] = copy.deepcopy(node.body)
    own = {id(n) for n in of_this_loop(body) if isinstance(n, ast.Continue)}

    class Continues(ast.NodeTransformer):
        def visit_Continue(self, node: ast.Continue) -> ast.Continue | list[ast.stmt]:
            return [check(), node] if id(node) in own else node

    for statement in body:
        Continues().visit(statement)
    if body and isinstance(body[-1], (ast.Break, ast.Return, ast.Raise, ast.Continue)):
        return body
    return [*body, check()]


def _fetching(node: ast.For | ast.While, target: ast.expr, iterable: ast.expr, body: list[ast.stmt], made: Form) -> Form:
    found = without_fetches(body)
    if not found.fetches and isinstance(node, ast.For):
        return made
    for fetch in found.fetches:
        if any(isinstance(n, ast.Continue) for n in of_this_loop(fetch.before)):
            raise refused(fetch.iterator, "a `continue` before the fetch can't be split", "Fetch first, then decide.")
        fetch.beside = copy.deepcopy(target)
        hidden = [fetch.fetched] + ([fetch.renewed] if fetch.renewed else [])
        target = ast.Tuple(elts=[target, *(ast.Name(id=name, ctx=ast.Store()) for name in hidden)], ctx=ast.Store())
    loop = ast.For(target=copy.deepcopy(target), iter=iterable, body=found.statements, orelse=[])
    locate(loop, node)
    made.loop, made.fetches = ast.fix_missing_locations(loop), found.fetches
    return made


def _empty(target: ast.expr) -> ast.For:
    return ast.For(target=target, iter=ast.Tuple(elts=[], ctx=ast.Load()), body=[], orelse=[])


def _loops(name: str, arguments: list[ast.expr]) -> ast.Call:
    return ast.Call(func=ast.Attribute(value=ast.Name(id=LOOPS, ctx=ast.Load()), attr=name, ctx=ast.Load()), args=arguments, keywords=[])
