"""Pieces of trees that the instrumentation is built of."""

from __future__ import annotations

import ast
from typing import Any


def binds(node: ast.AST) -> bool:
    """Whether an expression assigns a name by `:=`."""
    return any(isinstance(n, ast.NamedExpr) for n in ast.walk(node))


def own_names(node: ast.FunctionDef) -> set[str]:
    """Names that are a function's own: its arguments and what it assigns, less what it declares to be others'."""
    arguments = {a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg)}
    stored = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    others = {name for n in ast.walk(node) if isinstance(n, (ast.Global, ast.Nonlocal)) for name in n.names}
    return (arguments | stored) - others


def is_value_pattern(pattern: ast.pattern) -> bool:
    if isinstance(pattern, ast.MatchOr):
        return all(is_value_pattern(p) for p in pattern.patterns)
    return isinstance(pattern, (ast.MatchValue, ast.MatchSingleton)) or (isinstance(pattern, ast.MatchAs) and pattern.name is None)


def pattern_test(case: ast.pattern, name: str) -> ast.expr:
    """A pattern of values as a comparison with the subject in `name`."""
    subject = ast.Name(id=name, ctx=ast.Load())
    test: ast.expr = constant(True)  # `_`
    if isinstance(case, ast.MatchValue):
        test = ast.Compare(left=subject, ops=[ast.Eq()], comparators=[case.value])
    elif isinstance(case, ast.MatchSingleton):
        test = ast.Compare(left=subject, ops=[ast.Is()], comparators=[constant(case.value)])
    elif isinstance(case, ast.MatchOr):
        test = ast.BoolOp(op=ast.Or(), values=[pattern_test(part, name) for part in case.patterns])
    return locate(test, case)


def constant(value: Any) -> ast.Constant:
    return ast.Constant(value=value)


def lambda_of(body: ast.expr) -> ast.Lambda:
    arguments = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    return ast.Lambda(args=arguments, body=body)


def unsliced(node: ast.expr) -> ast.expr:
    """A subscript's index as an ordinary expression: slices become `slice(...)` objects."""
    if isinstance(node, ast.Slice):
        parts = [part or constant(None) for part in (node.lower, node.upper, node.step)]
        return locate(ast.Call(func=ast.Name(id="slice", ctx=ast.Load()), args=parts, keywords=[]), node)
    if isinstance(node, ast.Tuple):
        return ast.copy_location(ast.Tuple(elts=[unsliced(e) for e in node.elts], ctx=ast.Load()), node)
    return node


def shape_of(target: ast.expr) -> ast.expr:
    """A target's shape as a nested constant: None for a leaf, "*" for a starred leaf, a tuple for a group."""

    def shape(part: ast.expr) -> Any:
        if isinstance(part, (ast.Tuple, ast.List)):
            return tuple(shape(e) for e in part.elts)
        return "*" if isinstance(part, ast.Starred) else None

    return constant(shape(target))


def locate(node: Any, like: ast.AST) -> Any:
    ast.copy_location(node, like)
    for child in ast.walk(node):
        if not hasattr(child, "lineno") and "lineno" in child._attributes:
            ast.copy_location(child, like)
    return node
