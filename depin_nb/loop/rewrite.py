"""The notebook half's code: the cell (and functions that hold a leased loop) with the loop's body instrumented in place.

with __depin_loops__.enter(0, <iterable>) as __depin_entry:
    for __depin_item in __depin_entry: <target and body, instrumented>
if __depin_entry.has("x", locals()): x = __depin_entry.left("x")
"""

from __future__ import annotations

import ast
import copy
import types
from typing import Any

from .find import Site
from .split import RUNTIME, Instrument

LOOPS = "__depin_loops__"
ENTRY = "__depin_entry__"
ITEM = "__depin_item__"


def rewrite_tree(tree: Any, sites: list[Site]) -> Any:
    """`tree` with the loops of `sites` (found by identity) replaced."""
    return ast.fix_missing_locations(_Rewriter(sites).visit(tree))


def rewrite_function(function: types.FunctionType, node: ast.FunctionDef, sites: list[Site]) -> types.CodeType:
    """The code of a function with its sites leased, with the same free variables, ready for `function.__code__`."""
    node = rewrite_tree(node, sites)
    node.decorator_list = []
    code = function.__code__
    factory = ast.parse("def __depin_factory__():\n    pass").body[0]
    assert isinstance(factory, ast.FunctionDef)
    factory.body = [*(ast.parse(f"{name} = None").body[0] for name in code.co_freevars), node]
    outer = compile(ast.fix_missing_locations(ast.Module(body=[factory], type_ignores=[])), code.co_filename, "exec", dont_inherit=True)
    inner = next(c for c in outer.co_consts if isinstance(c, types.CodeType))
    return next(c for c in inner.co_consts if isinstance(c, types.CodeType) and c.co_name == code.co_name)


class _Rewriter(ast.NodeTransformer):
    def __init__(self, sites: list[Site]) -> None:
        self.numbers = {id(site.loop): number for number, site in enumerate(sites)}

    def visit_For(self, node: ast.For) -> Any:
        number = self.numbers.get(id(node))
        if number is None:
            return self.generic_visit(node)
        return leased(node, number)


def leased(node: ast.For, number: int) -> list[ast.stmt]:
    """One `for` as its notebook half."""
    instrument = Instrument(worker=False)
    body = instrument.target(node.target, ITEM, node) + instrument.body(node.body)
    loop = ast.For(
        target=ast.Name(id=ITEM, ctx=ast.Store()),
        iter=ast.Name(id=ENTRY, ctx=ast.Load()),
        body=body,
        orelse=node.orelse,
    )
    enter = ast.Call(
        func=ast.Attribute(value=ast.Name(id=LOOPS, ctx=ast.Load()), attr="enter", ctx=ast.Load()),
        args=[ast.Constant(value=number), _Wrapped().visit(copy.deepcopy(node.iter))],
        keywords=[],
    )
    block = ast.With(items=[ast.withitem(context_expr=enter, optional_vars=ast.Name(id=ENTRY, ctx=ast.Store()))], body=[loop])
    names = sorted(
        {n.id for part in (node.target, *node.body) for n in ast.walk(part) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    )
    after = [ast.parse(f"if {ENTRY}.has({name!r}, locals()): {name} = {ENTRY}.left({name!r})").body[0] for name in names]
    statements: list[ast.stmt] = [block, *after]
    for statement in statements:
        for child in ast.walk(statement):
            if "lineno" in child._attributes and (statement is not block or not hasattr(child, "lineno")):
                ast.copy_location(child, node)
    return statements


class _Wrapped(ast.NodeTransformer):
    """`enumerate(x)` and `zip(a, b)` in the loop's header keep what they iterate in sight."""

    def visit_Call(self, node: ast.Call) -> Any:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id in ("enumerate", "zip"):
            wrap = ast.Attribute(value=ast.Name(id=LOOPS, ctx=ast.Load()), attr="wrap", ctx=ast.Load())
            return ast.copy_location(ast.Call(func=wrap, args=[node.func, *node.args], keywords=node.keywords), node)
        return node


__all__ = ["ENTRY", "ITEM", "LOOPS", "RUNTIME", "leased", "rewrite_function", "rewrite_tree"]
