"""Instruments a loop body: every operation that may touch a device-side value asks the runtime `__depin__` for its result.

One AST serves both halves. With a `Recorder` behind `__depin__` it is the worker half, with a `Replayer` the notebook half.
Locations are copied, so that tracebacks name the user's own lines.
"""

from __future__ import annotations

import ast
import copy
from typing import Any

from ..find.pieces import constant, is_value_pattern, locate, own_names, pattern_test, shape_of, unsliced
from .expressions import OPERATORS, Expressions


class Instrument(Expressions):
    """Rewrites statements. `worker`: whether `return` of the outermost body becomes a signal (the worker half has no frame to leave)."""

    def __init__(self, *, worker: bool, function: bool = False) -> None:
        super().__init__(function=function)
        self.worker = worker
        self.bound: list[set[str]] = []  # names of the functions around, inside the body

    def body(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """A transformed copy of `statements`."""
        result: list[ast.stmt] = []
        for statement in copy.deepcopy(statements):
            changed = self.visit(statement)
            result.extend(changed if isinstance(changed, list) else [changed] if changed is not None else [])
        return result

    def visit_Expr(self, node: ast.Expr) -> Any:
        if isinstance(node.value, ast.Constant):
            return node
        node.value = self.visit_Call(node.value, used=False) if isinstance(node.value, ast.Call) else self.visit(node.value)
        return node

    def visit_Assign(self, node: ast.Assign) -> Any:
        value = self.visit(node.value)
        if len(node.targets) == 1:
            return self._store(node.targets[0], value, node)
        name = self._temporary()
        statements = self._store(ast.Name(id=name, ctx=ast.Store()), value, node)
        for target in node.targets:
            statements += self._store(target, ast.Name(id=name, ctx=ast.Load()), node)
        return statements

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        return None if node.value is None else self._store(node.target, self.visit(node.value), node)

    def _store(self, target: ast.expr, value: ast.expr, node: ast.AST) -> list[ast.stmt]:
        if isinstance(target, ast.Name):
            statement: ast.stmt = ast.Assign(targets=[target], value=value)
        elif isinstance(target, ast.Attribute):
            call = self._ask(target, "set_attribute", self.visit(target.value), constant(target.attr), value)
            statement = ast.Expr(value=call)
        elif isinstance(target, ast.Subscript):
            call = self._ask(target, "set_item", self.visit(target.value), self.visit(unsliced(target.slice)), value)
            statement = ast.Expr(value=call)
        else:
            return self._unpack(target, value, node)
        return [locate(statement, node)]

    def _unpack(self, target: ast.expr, value: ast.expr, node: ast.AST) -> list[ast.stmt]:
        """`a, (b, c[i]) = value`: the runtime unpacks by the target's pattern, then each leaf is stored."""
        leaves: list[tuple[ast.Name, ast.expr]] = []

        def rename(part: ast.expr) -> ast.expr:
            if isinstance(part, (ast.Tuple, ast.List)):
                return ast.Tuple(elts=[rename(e) for e in part.elts], ctx=ast.Store())
            if isinstance(part, ast.Starred):
                return ast.Starred(value=rename(part.value), ctx=ast.Store())
            if isinstance(part, ast.Name):
                return part
            name = ast.Name(id=self._temporary(), ctx=ast.Store())
            leaves.append((name, part))
            return name

        plain = rename(target)
        statements: list[ast.stmt] = [locate(ast.Assign(targets=[plain], value=self._ask(node, "unpack", value, shape_of(target))), node)]
        for name, part in leaves:
            statements += self._store(part, ast.Name(id=name.id, ctx=ast.Load()), node)
        return statements

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        op, value, target = constant(OPERATORS[type(node.op)]), self.visit(node.value), node.target
        if isinstance(target, ast.Name):
            name = constant("" if self.depth else target.id)
            call = self._ask(node, "augment", op, ast.Name(id=target.id, ctx=ast.Load()), value, name)
            return locate(ast.Assign(targets=[target], value=call), node)
        if isinstance(target, ast.Attribute):
            call = self._ask(node, "augment_attribute", self.visit(target.value), constant(target.attr), op, value)
        else:
            assert isinstance(target, ast.Subscript)
            call = self._ask(node, "augment_item", self.visit(target.value), self.visit(unsliced(target.slice)), op, value)
        return locate(ast.Expr(value=call), node)

    def _block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        result: list[ast.stmt] = []
        for statement in statements:
            changed = self.visit(statement)
            result.extend(changed if isinstance(changed, list) else [changed] if changed is not None else [])
        return result or ([locate(ast.Pass(), statements[0])] if statements else [])

    def visit_If(self, node: ast.If) -> Any:
        node.test = self._ask(node.test, "truth", self.visit(node.test))
        node.body, node.orelse = self._block(node.body), self._block(node.orelse)
        return node

    def visit_While(self, node: ast.While) -> Any:
        node.test = self._ask(node.test, "truth", self.visit(node.test))
        node.body, node.orelse = self._block(node.body), self._block(node.orelse)
        return node

    def visit_For(self, node: ast.For) -> Any:
        node.iter = self._ask(node.iter, "iterate", self.visit(node.iter))
        body = self._block(node.body)
        if not isinstance(node.target, ast.Name):
            name = self._temporary()
            body = self._store(node.target, ast.Name(id=name, ctx=ast.Load()), node) + body
            node.target = locate(ast.Name(id=name, ctx=ast.Store()), node)
        node.body, node.orelse = body, self._block(node.orelse)
        return node

    def target(self, target: ast.expr, name: str, node: ast.AST) -> list[ast.stmt]:
        """Statements that bind the leased loop's own target from the item in `name`."""
        return self._store(copy.deepcopy(target), ast.Name(id=name, ctx=ast.Load()), node)

    def visit_With(self, node: ast.With) -> Any:
        stores: list[ast.stmt] = []
        for item in node.items:
            item.context_expr = self._ask(item.context_expr, "context", self.visit(item.context_expr))
            if item.optional_vars is not None and not isinstance(item.optional_vars, ast.Name):
                name = self._temporary()
                stores += self._store(item.optional_vars, ast.Name(id=name, ctx=ast.Load()), node)
                item.optional_vars = locate(ast.Name(id=name, ctx=ast.Store()), node)
        node.body = stores + self._block(node.body)
        return node

    def visit_Match(self, node: ast.Match) -> Any:
        """Patterns of values become comparisons, each of which may be device-side; others are matched as they stand."""
        if not all(is_value_pattern(case.pattern) for case in node.cases):
            node.subject = self.visit(node.subject)
            for case in node.cases:
                case.guard = None if case.guard is None else self._ask(case.guard, "truth", self.visit(case.guard))
                case.body = self._block(case.body)
            return node
        name = self._temporary()
        chain: list[ast.stmt] = []
        for case in reversed(node.cases):
            test = pattern_test(case.pattern, name)
            if case.guard is not None:
                test = ast.BoolOp(op=ast.And(), values=[test, case.guard])
            branch = ast.If(test=test, body=case.body, orelse=chain)
            chain = [locate(branch, case.body[0])]
        return self._store(ast.Name(id=name, ctx=ast.Store()), self.visit(node.subject), node) + self._block(chain)

    def visit_Try(self, node: ast.Try) -> Any:
        node.body, node.orelse, node.finalbody = self._block(node.body), self._block(node.orelse), self._block(node.finalbody)
        for handler in node.handlers:
            handler.body = self._block(handler.body)
        return node

    def visit_Assert(self, node: ast.Assert) -> Any:
        node.test = self._ask(node.test, "truth", self.visit(node.test))
        node.msg = self.visit(node.msg) if node.msg else None
        return node

    def visit_Return(self, node: ast.Return) -> Any:
        node.value = self.visit(node.value) if node.value else None
        if self.depth or not self.worker:
            return node
        call = self._ask(node, "leave", node.value or constant(None))
        return locate(ast.Expr(value=call), node)

    def visit_Delete(self, node: ast.Delete) -> Any:
        statements: list[ast.stmt] = []
        for target in node.targets:
            if isinstance(target, ast.Subscript):
                call = self._ask(target, "delete_item", self.visit(target.value), self.visit(unsliced(target.slice)))
                statements.append(locate(ast.Expr(value=call), node))
            elif isinstance(target, ast.Attribute):
                call = self._ask(target, "delete_attribute", self.visit(target.value), constant(target.attr))
                statements.append(locate(ast.Expr(value=call), node))
            else:
                statements.append(locate(ast.Delete(targets=[target]), node))
        return statements

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        node.decorator_list = [self.visit(d) for d in node.decorator_list]
        self._defaults(node.args)
        self.bound.append(own_names(node))
        self.depth += 1
        node.body = self._block(node.body)
        self.depth -= 1
        self.bound.pop()
        return node

    def visit_Global(self, node: ast.Global) -> Any:
        return node if self.depth or not self.worker else None

    def visit_Nonlocal(self, node: ast.Nonlocal) -> Any:
        """In the worker half the loop's own names are a module's: what a nested function shares with them is global there."""
        shared = [name for name in node.names if not any(name in names for names in self.bound[:-1])]
        if not self.worker or not shared:
            return node
        if not self.depth:
            return None
        inner = [name for name in node.names if name not in shared]
        statements: list[ast.stmt] = [locate(ast.Global(names=shared), node)]
        return statements + ([locate(ast.Nonlocal(names=inner), node)] if inner else [])
