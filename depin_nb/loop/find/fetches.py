"""`x, y = next(it)` in a loop's body: recognised in the forms that people write, and turned into something that the loop iterates.

Pure: trees in, trees out. What isn't recognised is refused with its line and what to write instead.
"""

from __future__ import annotations

import ast
import copy
from dataclasses import dataclass, field
from typing import Any

from .counting import of_this_loop
from .pieces import locate
from .unsupported import refused

_HINT = (
    "Write `x, y = next(it)` on a line of its own, or `try: x, y = next(it)` / `except StopIteration: it = iter(loader); x, y = next(it)`, "
    "or `for x, y in loader:`."
)
_HARMLESS = {
    "zero_grad", "train", "eval", "parameters", "requires_grad_", "append", "items", "keys", "values", "print", "range", "len",
    "enumerate", "zip", "int", "float", "str", "item", "time", "perf_counter", "update", "set_description", "format", "next", "iter",
}  # fmt: skip


@dataclass
class Fetch:
    """One fetch an iteration: `fetched` is the hidden name of its item, `iterator` the user's expression.

    `renew`: what the iterator becomes when it is exhausted; without it the loop ends then, as `ending` says (statements, run after what
    stands `before` the fetch in the body). `renewed`: the hidden name that says whether it was renewed, where the user does more then.
    """

    fetched: str
    iterator: ast.expr
    renew: ast.expr | None
    before: list[ast.stmt]
    ending: list[ast.stmt]
    line: int
    renewed: str = ""
    beside: ast.expr | None = None  # the loop's target without it

    @property
    def note(self) -> str:
        calls = [n for s in self.before for n in ast.walk(s) if isinstance(n, ast.Call)]
        names = {c.func.attr if isinstance(c.func, ast.Attribute) else getattr(c.func, "id", "") for c in calls}
        if self.renew is None or names <= _HARMLESS:
            return ""
        return (
            f"line {self.line}: the batch is fetched when the iteration starts: random numbers drawn before it may differ from a local run"
        )


@dataclass
class Body:
    """A body without its fetches."""

    statements: list[ast.stmt]
    fetches: list[Fetch] = field(default_factory=list)


def without_fetches(body: list[ast.stmt]) -> Body:
    """The body with each fetch as an assignment from a hidden name. Raises RefusedLoop for a `next()` in another form."""
    fetches: list[Fetch] = []
    done: list[ast.stmt] = []
    made = {_text(t) for s in body for n in ast.walk(s) for t in _targets(n)}  # iterators that the body itself makes
    left = list(body)
    while left:
        found = _Match(left, done, len(fetches)).found()
        if found is None or _is_own(found.fetch.iterator, done):
            done.append(left.pop(0))
            continue
        fetches.append(found.fetch)
        done += found.statements
        left = left[found.used :]
    _check(done, fetches, made)
    return Body(done, fetches)


def _targets(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, (ast.For, ast.NamedExpr, ast.AnnAssign)) else []


def _is_own(iterator: ast.expr, done: list[ast.stmt]) -> bool:
    """Whether the body makes the iterator itself, in every iteration, before it fetches: then it's ordinary work of the body."""
    text = _text(iterator)
    return any(isinstance(s, ast.Assign) and text in {_text(t) for t in s.targets} for s in done)


def _check(statements: list[ast.stmt], fetches: list[Fetch], made: set[str]) -> None:
    for fetch in fetches:
        text = _text(fetch.iterator)
        for node in (n for s in statements for n in ast.walk(s)):
            if isinstance(node, (ast.Name, ast.Attribute)) and _text(node) == text:
                raise refused(node, f"`{text}`, which this loop fetches from, is also used elsewhere in its body", _HINT)
    texts = [_text(f.iterator) for f in fetches]
    for fetch in fetches:
        if texts.count(_text(fetch.iterator)) > 1:
            raise _refused_fetch(fetch.iterator, f"`{_text(fetch.iterator)}` is fetched from twice in one iteration")
    own = {t for s in statements if isinstance(s, ast.Assign) for t in map(_text, s.targets)}
    for node in (n for s in statements for n in ast.walk(s)):
        call = _next_of(node)
        if call is not None and isinstance(call, (ast.Name, ast.Attribute)) and _text(call) not in own:
            text = _text(call)
            if text in made:
                raise refused(node, f"`next({text})` on an iterator that only some iterations make can't be split", _HINT)
            raise refused(node, f"`next({text})` in this place can't be split", _HINT)


def _refused_fetch(node: ast.AST, reason: str) -> Exception:
    return refused(node, reason, "Fetch once an iteration, or make two iterators.")


def _next_of(node: ast.AST) -> ast.expr | None:
    """What `next(...)` or `....__next__()` is asked of."""
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id == "next" and node.args:
            return node.args[0]
        if isinstance(node.func, ast.Attribute) and node.func.attr == "__next__":
            return node.func.value
    return None


def _text(node: ast.AST) -> str:
    return ast.unparse(node)


@dataclass
class _Found:
    fetch: Fetch
    statements: list[ast.stmt]
    used: int  # statements of the body that it takes


class _Match:
    """Whether a body goes on with a fetch."""

    def __init__(self, left: list[ast.stmt], before: list[ast.stmt], number: int) -> None:
        self.left, self.before = left, before
        self.name = f"__depin_fetched_{number}__"

    def found(self) -> _Found | None:
        statement = self.left[0]
        if isinstance(statement, ast.Try):
            return self._try(statement)
        call = _fetch_in(statement)
        if call is None:
            return None
        if len(getattr(call, "args", ())) == 2:
            return self._default(statement, call)
        raising = ast.parse("raise StopIteration").body[0]
        return _Found(self._fetch(call, None, [ast.copy_location(raising, statement)]), [self._replaced(statement, call)], 1)

    def _fetch(self, call: ast.Call, renew: ast.expr | None, ending: list[ast.stmt]) -> Fetch:
        iterator = _next_of(call)
        assert iterator is not None
        return Fetch(self.name, iterator, renew, copy.deepcopy(self.before), copy.deepcopy(ending), call.lineno)

    def _renewing(self, call: ast.Call, renewal: _Renewal, changed: list[ast.stmt], used: int) -> _Found:
        """The fetch from an iterator that is renewed; what else the user does then is done where the worker and the notebook see it."""
        raising = ast.copy_location(ast.parse("raise StopIteration").body[0], call)
        fetch = self._fetch(call, renewal.renew, [raising])
        if not renewal.others:
            return _Found(fetch, changed, used)
        fetch.renewed = f"{self.name.removesuffix('__')}_anew__"
        then = ast.If(test=ast.Name(id=fetch.renewed, ctx=ast.Load()), body=copy.deepcopy(renewal.others), orelse=[])
        return _Found(fetch, [locate(then, renewal.others[0]), *changed], used)

    def _replaced(self, statement: ast.stmt, call: ast.Call) -> ast.stmt:
        changed: ast.stmt = _Replace(call, self.name).visit(copy.deepcopy(statement))
        return changed

    def _default(self, statement: ast.stmt, call: ast.Call) -> _Found | None:
        """`b = next(it, None)`, then `if b is None:` with a way to leave or to renew."""
        test = self.left[1] if len(self.left) > 1 else None
        fits = (
            isinstance(statement, ast.Assign)
            and statement.value is call
            and len(statement.targets) == 1
            and isinstance(test, ast.If)
            and not test.orelse
            and isinstance(call.args[1], ast.Constant)
            and call.args[1].value is None
            and _is_none_test(test.test, _text(statement.targets[0]))
        )
        if not fits:
            return None
        assert isinstance(test, ast.If)
        assert isinstance(statement, ast.Assign)
        renew = _renewal(test.body, _next_of(call), [_text(t) for t in statement.targets])
        changed = self._replaced(statement, call)
        if renew is not None:
            return self._renewing(call, renew, [changed], 2)
        if not _leaves(test.body):
            return None
        missing = ast.copy_location(ast.Assign(targets=copy.deepcopy(statement.targets), value=ast.Constant(value=None)), statement)
        return _Found(self._fetch(call, None, [missing, *test.body]), [changed], 2)

    def _try(self, statement: ast.Try) -> _Found | None:
        call = _fetch_in(statement.body[0])
        if call is None or len(call.args) == 2 or len(statement.handlers) != 1 or statement.finalbody:
            return None
        handler = statement.handlers[0]
        stopped = handler.type is None or _text(handler.type) in ("StopIteration", "Exception")
        if not stopped:
            return None
        first = statement.body[0]
        if len(statement.body) == 1:
            targets = [_text(t) for t in _targets(first)]
            renew = _renewal(handler.body, _next_of(call), targets)
            if renew is not None:
                return self._renewing(call, renew, [self._replaced(first, call), *statement.orelse], 1)
            if _leaves(handler.body):
                return _Found(self._fetch(call, None, handler.body), [self._replaced(first, call), *statement.orelse], 1)
            return None
        if not _leaves(handler.body):
            return None
        fetch = self._fetch(call, None, handler.body)
        changed = copy.deepcopy(statement)
        changed.body[0] = self._replaced(first, call)
        return _Found(fetch, [changed], 1)


def _fetch_in(statement: ast.stmt) -> ast.Call | None:
    """The one `next()` of a simple statement, where the statement evaluates it in any case; of a name or attribute, once."""
    if not isinstance(statement, (ast.Assign, ast.AnnAssign, ast.Expr)) or statement.value is None:
        return None
    calls: list[ast.Call] = []

    def walk(node: ast.AST) -> None:
        if isinstance(node, (ast.Lambda, ast.IfExp, ast.BoolOp, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            return
        if isinstance(node, ast.Call) and isinstance(_next_of(node), (ast.Name, ast.Attribute)):
            calls.append(node)
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(statement.value)
    return calls[0] if len(calls) == 1 else None


@dataclass
class _Renewal:
    renew: ast.expr
    others: list[ast.stmt]  # what the user does besides, `epoch += 1` for one


def _renewal(body: list[ast.stmt], iterator: ast.expr | None, targets: list[str]) -> _Renewal | None:
    """`it = <new>; x, y = next(it)`, and what stands beside it."""
    if len(body) < 2 or iterator is None:
        return None
    text = _text(iterator)
    renews = [s for s in body if isinstance(s, ast.Assign) and [_text(t) for t in s.targets] == [text]]
    again = _fetch_in(body[-1])
    fits = again is not None and len(again.args) <= 1 and _text(_next_of(again) or again) == text
    if len(renews) != 1 or not fits or [_text(t) for t in _targets(body[-1])] != targets:
        return None
    others = [s for s in body[:-1] if s is not renews[0]]
    nodes = [n for s in others for n in ast.walk(s)]
    leaving = (ast.Break, ast.Continue, ast.Return, ast.Raise)
    if any(isinstance(n, leaving) or (isinstance(n, (ast.Name, ast.Attribute)) and _text(n) == text) for n in nodes):
        return None
    return _Renewal(renews[0].value, others)


def _leaves(body: list[ast.stmt]) -> bool:
    """Whether statements leave the loop at their end (and nowhere else go on with it)."""
    return isinstance(body[-1], (ast.Break, ast.Return, ast.Raise)) and not any(isinstance(n, ast.Continue) for n in of_this_loop(body))


def _is_none_test(test: ast.expr, text: str) -> bool:
    return (
        isinstance(test, ast.Compare)
        and isinstance(test.ops[0], ast.Is)
        and isinstance(test.comparators[0], ast.Constant)
        and test.comparators[0].value is None
        and _text(test.left) == text
    )


class _Replace(ast.NodeTransformer):
    """One call in a copied tree by a name; found by its place and text."""

    def __init__(self, call: ast.Call, name: str) -> None:
        self.key, self.name = (call.lineno, call.col_offset, _text(call)), name

    def visit_Call(self, node: ast.Call) -> Any:
        if (node.lineno, node.col_offset, _text(node)) == self.key:
            return ast.copy_location(ast.Name(id=self.name, ctx=ast.Load()), node)
        return self.generic_visit(node)
