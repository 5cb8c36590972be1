"""The notebook half's code: the cell (and functions that hold a leased loop) with the loop's body instrumented in place.

with __depin_loops__.enter(0, <iterable>, <the cell's number>) as __depin_entry__:
    for __depin_item__ in __depin_entry__: <target and body, instrumented>
    else: __depin_entry__.ran_out = True
if __depin_entry__.has("x", locals()): x = __depin_entry__.left("x")
if __depin_entry__.ran_out: <the loop's else>

A `while`, and what a body fetches by `next()`, is in the form that loop/forms.py gives it.
"""

from __future__ import annotations

import ast
import copy
import types
from typing import Any

from ...core.errors import RefusedLoop
from ..find.definitions import compiled, is_made_of
from ..find.forms import ENDED, LOOPS, Form
from ..find.pieces import lambda_of
from ..find.sites import Site
from ..find.things import own_nodes
from .instrument import Instrument

ENTRY = "__depin_entry__"
ITEM = "__depin_item__"
_FRAME_CALLS = ("super", "locals", "globals", "vars", "dir", "eval", "exec")


def rewrite_tree(tree: Any, sites: list[Site], token: int) -> Any:
    """`tree` with the loops of `sites` (found by identity) replaced. `token`: of the cell's `Loops`."""
    return ast.fix_missing_locations(_Rewriter(sites, token).visit(tree))


def rewrite_function(function: types.FunctionType, sites: list[Site], token: int) -> types.CodeType:
    """The code of a function with its sites leased, with the same free variables, ready for `function.__code__`."""
    site = next(site for site in sites if site.function is not None and site.function.__code__ == function.__code__)
    root: Any = site.root
    if not is_made_of(function.__code__, root):
        raise RefusedLoop(
            f"{function.__name__}() isn't what its source says any more: {function.__code__.co_filename} was changed after it was loaded",
            line=site.line,
            reason="changed source",
            hint="Reload the module (`importlib.reload(module)`), or restart the kernel, and run the cell again.",
        )
    node = rewrite_tree(copy_of(root, sites), sites, token)
    return compiled(node, function.__code__)


def copy_of(root: ast.AST, sites: list[Site]) -> Any:
    """A copy of a tree that keeps the sites' own loops, by which they are found."""
    return copy.deepcopy(root, {id(site.node): site.node for site in sites})


class _Rewriter(ast.NodeTransformer):
    def __init__(self, sites: list[Site], token: int) -> None:
        self.numbers = {id(site.node): number for number, site in enumerate(sites)}
        self.sites, self.token = sites, token

    def _loop(self, node: Any) -> Any:
        number = self.numbers.get(id(node))
        return self.generic_visit(node) if number is None else leased(self.sites[number], number, self.token)

    visit_For = visit_While = _loop


def leased(site: Site, number: int, token: int) -> list[ast.stmt]:
    """One loop as its notebook half."""
    form, node = site.form, site.node
    instrument = Instrument(worker=False)
    loop = form.loop
    run = ast.For(
        target=_name(ITEM, ast.Store()),
        iter=_name(ENTRY),
        body=instrument.target(loop.target, ITEM, loop) + instrument.body(loop.body),
        orelse=[_assign(f"{ENTRY}.ran_out", ast.Constant(value=True))],
    )
    before: list[ast.stmt] = []
    iterable: ast.expr = _wrapped(copy.deepcopy(loop.iter))
    for place, fetch in enumerate(form.fetches):
        renew = ast.Constant(value=None) if fetch.renew is None else lambda_of(copy.deepcopy(fetch.renew))
        call = _loops("fetching", iterable, copy.deepcopy(fetch.iterator), renew)
        call.keywords = [ast.keyword(arg="flagged", value=ast.Constant(value=True))] if fetch.renewed else []
        before.append(_assign(_fetching(place), call))
        iterable = _name(_fetching(place))
    enter = _loops("enter", ast.Constant(value=number), iterable, ast.Constant(value=token))
    statements: list[ast.stmt] = [ast.With(items=[ast.withitem(context_expr=enter, optional_vars=_name(ENTRY, ast.Store()))], body=[run])]
    statements += [_left(name, site) for name in sorted(_stored(loop))]
    if form.fetches:
        back = [_assign(ast.unparse(f.iterator), _attribute(_fetching(i), "iterator")) for i, f in enumerate(form.fetches)]
        statements = [*before, ast.Try(body=statements, handlers=[], orelse=[], finalbody=back)]
    ended = _ended(form)
    if form.guard is not None:
        statements = _guarded(form, statements, ended)
    elif ended:
        statements.append(ast.If(test=_attribute(ENTRY, "ran_out"), body=ended, orelse=[]))
    for statement in statements:
        for child in ast.walk(statement):
            if "lineno" in child._attributes and not hasattr(child, "lineno"):
                ast.copy_location(child, node)
    return statements


def _ended(form: Form) -> list[ast.stmt]:
    """What follows when there was no next pass: the user's `else`, or what the user does when an iterator is exhausted."""
    ended = copy.deepcopy(form.orelse) if form.guard is None else []
    for place, fetch in reversed(list(enumerate(form.fetches))):
        last = ast.Call(func=_attribute(_fetching(place), "last"), args=[], keywords=[])
        assert fetch.beside is not None
        target = _assign(ast.unparse(fetch.beside), last)
        once = ast.While(test=ast.Constant(value=True), body=[target, *copy.deepcopy([*fetch.before, *fetch.ending])], orelse=[])
        ended = [ast.If(test=_attribute(_fetching(place), "exhausted"), body=[once], orelse=ended)]
    return ended


def _guarded(form: Form, statements: list[ast.stmt], ended: list[ast.stmt]) -> list[ast.stmt]:
    """`while test:` tested before the first pass; with an `else`, that part runs when the test ended the loop."""
    assert form.guard is not None
    if ended:
        statements = [*statements, ast.If(test=_attribute(ENTRY, "ran_out"), body=ended, orelse=[])]
    if not form.flagged:
        return [ast.If(test=copy.deepcopy(form.guard), body=statements, orelse=[])]
    flag = _assign(ENDED, ast.UnaryOp(op=ast.Not(), operand=copy.deepcopy(form.guard)))
    run = ast.If(test=ast.UnaryOp(op=ast.Not(), operand=_name(ENDED)), body=statements, orelse=[])
    return [flag, run, ast.If(test=_name(ENDED), body=copy.deepcopy(form.orelse), orelse=[])]


def _stored(loop: ast.For) -> set[str]:
    parts = (loop.target, *loop.body)
    stored = {n.id for part in parts for n in ast.walk(part) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return {name for name in stored if not name.startswith("__depin_")}


def _left(name: str, site: Site) -> ast.stmt:
    names = "globals()" if name in _declared_global(site) else "locals()"
    return ast.parse(f"if {ENTRY}.has({name!r}, {names}): {name} = {ENTRY}.left({name!r})").body[0]


def _declared_global(site: Site) -> set[str]:
    if not isinstance(site.scope, ast.FunctionDef):
        return set()
    return {name for n in own_nodes(site.scope) if isinstance(n, ast.Global) for name in n.names}


def _wrapped(node: ast.expr) -> ast.expr:
    """The calls in the loop's header (`enumerate(tqdm(loader))`) by way of `wrap`, which keeps what it knows in sight.

    Only those whose results are handed to one another: what a lambda or comprehension there calls is its own affair.
    """
    if isinstance(node, ast.Starred):
        node.value = _wrapped(node.value)
    if not isinstance(node, ast.Call) or _is_ours(node):
        return node
    node.args = [_wrapped(a) for a in node.args]
    node.keywords = [ast.keyword(arg=k.arg, value=_wrapped(k.value)) for k in node.keywords]
    named = isinstance(node.func, (ast.Name, ast.Attribute))
    if not named or (isinstance(node.func, ast.Name) and node.func.id in _FRAME_CALLS):
        return node
    call = _loops("wrap", node.func, *node.args)
    call.keywords = node.keywords
    return ast.copy_location(call, node)


def _is_ours(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) and node.func.value.id == LOOPS


def _fetching(place: int) -> str:
    return f"__depin_fetching_{place}__"


def _name(name: str, ctx: ast.expr_context | None = None) -> ast.Name:
    return ast.Name(id=name, ctx=ctx or ast.Load())


def _attribute(name: str, attribute: str) -> ast.Attribute:
    return ast.Attribute(value=_name(name), attr=attribute, ctx=ast.Load())


def _assign(target: str, value: ast.expr) -> ast.stmt:
    statement = ast.parse(f"{target} = 0").body[0]
    assert isinstance(statement, ast.Assign)
    statement.value = value
    return statement


def _loops(method: str, *args: ast.expr) -> ast.Call:
    return ast.Call(func=_attribute(LOOPS, method), args=list(args), keywords=[])
