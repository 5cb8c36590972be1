"""Questions about Python source that need no values: which names are read, stored, reached in every iteration."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Any


def with_depth(body: list[ast.stmt], depth: int = 0, *, branches_only: bool = False) -> Iterator[tuple[int, ast.AST]]:
    """Every node with the number of branches and loops around it (0: reached in every iteration)."""

    def walk(node: ast.AST, depth: int) -> Iterator[tuple[int, ast.AST]]:
        yield depth, node
        inner = (ast.If, ast.IfExp) if branches_only else (ast.If, ast.IfExp, ast.For, ast.While, ast.Try, ast.FunctionDef, ast.Lambda)
        for name, value in ast.iter_fields(node):
            deeper = depth + (isinstance(node, inner) and name in ("body", "orelse", "handlers"))
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from walk(child, deeper)

    for statement in body:
        yield from walk(statement, depth)


def read_first(body: list[ast.stmt], assigned: set[str]) -> set[str]:
    """Names that an iteration may read before it has assigned them."""
    first: set[str] = set()

    def expression(node: ast.AST | None, known: set[str]) -> None:
        if node is not None:
            bound = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            first.update(
                n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load) and n.id not in known | bound
            )

    def block(statements: list[ast.stmt], known: set[str]) -> set[str]:
        known = set(known)
        for s in statements:
            if isinstance(s, ast.Assign):
                expression(s.value, known)
                for target in s.targets:
                    first.update(
                        n.id for n in ast.walk(target) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load) and n.id not in known
                    )
                    known |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            elif isinstance(s, ast.AugAssign):
                expression(s.value, known)
                first.update(n.id for n in ast.walk(s.target) if isinstance(n, ast.Name) and n.id not in known)
            elif isinstance(s, ast.If):
                expression(s.test, known)
                known |= block(s.body, known) & block(s.orelse, known)
            elif isinstance(s, (ast.For, ast.While)):
                expression(s.iter if isinstance(s, ast.For) else s.test, known)
                inner = known | ({n.id for n in ast.walk(s.target) if isinstance(n, ast.Name)} if isinstance(s, ast.For) else set())
                block(s.body, inner)
                block(s.orelse, known)
            elif isinstance(s, ast.With):
                for item in s.items:
                    expression(item.context_expr, known)
                    known |= {n.id for n in ast.walk(item.optional_vars) if isinstance(n, ast.Name)} if item.optional_vars else set()
                known |= block(s.body, known)
            elif isinstance(s, ast.Try):
                after = block(s.body, known)
                for handler in s.handlers:
                    block(handler.body, known)
                known |= block(s.orelse, after) if not s.handlers else set()
                known |= block(s.finalbody, known)
            elif isinstance(s, ast.FunctionDef):
                local = {a.arg for a in ast.walk(s.args) if isinstance(a, ast.arg)}
                block(s.body, known | local)
                known.add(s.name)
            else:
                expression(s, known)
                known |= {n.id for n in ast.walk(s) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        return known

    block(body, assigned)
    return first


def names_in(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def stored_names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def root_name(node: ast.AST) -> str:
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def static_length(node: ast.expr, resolve: Callable[[str], Any]) -> int | None:
    """The length of `range(...)` over numbers and names, or of a named container; None for anything else (nothing is called)."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        if node.func.id in ("tqdm", "trange", "enumerate") and node.args:
            inner = node.args[0]
            return static_length(ast.Call(ast.Name("range"), [inner], []) if node.func.id == "trange" else inner, resolve)
        if node.func.id == "range":
            values = [_number(arg, resolve) for arg in node.args]
            if values and all(isinstance(v, int) for v in values):
                return len(range(*values))
    if isinstance(node, ast.Name):
        value = _number(node, resolve)
        return len(value) if isinstance(value, (range, list, tuple)) else None
    return None


def _number(node: ast.expr, resolve: Callable[[str], Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _number(node.left, resolve), _number(node.right, resolve)
        return left + right if isinstance(left, int) and isinstance(right, int) else None
    try:
        return resolve(node.id) if isinstance(node, ast.Name) else None
    except KeyError:
        return None
