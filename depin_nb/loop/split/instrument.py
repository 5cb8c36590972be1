"""Instruments a loop body: every operation that may touch a device-side value asks the runtime `__depin__` for its result.

One AST serves both halves. With a `Recorder` behind `__depin__` it is the worker half, with a `Replayer` the notebook half.
Locations are copied, so that tracebacks name the user's own lines.
"""

from __future__ import annotations

import ast
import copy
from typing import Any

from ...core.errors import RefusedLoop
from ..find.pieces import binds, constant, is_value_pattern, lambda_of, locate, own_names, pattern_test, shape_of, unsliced

RUNTIME = "__depin__"
_OPERATORS = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mult", ast.Div: "div", ast.FloorDiv: "floordiv", ast.Mod: "mod", ast.Pow: "pow",
    ast.LShift: "lshift", ast.RShift: "rshift", ast.BitOr: "bitor", ast.BitXor: "bitxor", ast.BitAnd: "bitand", ast.MatMult: "matmult",
    ast.USub: "neg", ast.UAdd: "pos", ast.Invert: "invert",
    ast.Eq: "eq", ast.NotEq: "noteq", ast.Lt: "lt", ast.LtE: "lte", ast.Gt: "gt", ast.GtE: "gte", ast.Is: "is", ast.IsNot: "isnot",
    ast.In: "in", ast.NotIn: "notin",
}  # fmt: skip


class Instrument(ast.NodeTransformer):
    """Rewrites statements. `worker`: whether `return` of the outermost body becomes a signal (the worker half has no frame to leave)."""

    def __init__(self, *, worker: bool, function: bool = False) -> None:
        self.worker = worker
        self.depth = 1 if function else 0  # inside a function of its own, `return` is just that
        self.count = 0
        self.bound: list[set[str]] = []  # names of the functions around, inside the body

    def body(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """A transformed copy of `statements`."""
        result: list[ast.stmt] = []
        for statement in copy.deepcopy(statements):
            changed = self.visit(statement)
            result.extend(changed if isinstance(changed, list) else [changed] if changed is not None else [])
        return result

    # --- building -----------------------------------------------------------------------------

    def _ask(self, node: ast.AST, method: str, *args: ast.expr, keywords: list[ast.keyword] | None = None, used: bool = True) -> ast.Call:
        self.count += 1
        number = self.count if used else -self.count
        call = ast.Call(
            func=ast.Attribute(value=ast.Name(id=RUNTIME, ctx=ast.Load()), attr=method, ctx=ast.Load()),
            args=[constant(number), *args],
            keywords=keywords or [],
        )
        locate(call, node)
        return call

    def _temporary(self) -> str:
        self.count += 1
        return f"__depin_{self.count}"

    # --- expressions ----------------------------------------------------------------------------

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        if not isinstance(node.ctx, ast.Load):
            return node
        return self._ask(node, "attribute", self.visit(node.value), constant(node.attr))

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        if not isinstance(node.ctx, ast.Load):
            return node
        return self._ask(node, "item", self.visit(node.value), self.visit(unsliced(node.slice)))

    def visit_Call(self, node: ast.Call, used: bool = True) -> Any:
        args = [self._argument(a) for a in node.args]
        keywords = [
            ast.keyword(arg=k.arg, value=self.visit(k.value) if k.arg else self._ask(k.value, "mapping", self.visit(k.value)))
            for k in node.keywords
        ]
        if isinstance(node.func, ast.Name) and node.func.id == "next" and node.args and isinstance(node.args[0], ast.GeneratorExp):
            args[0] = locate(ast.Call(func=ast.Name(id="iter", ctx=ast.Load()), args=[args[0]], keywords=[]), node)
        if isinstance(node.func, ast.Attribute):
            return self._ask(node, "method", self.visit(node.func.value), constant(node.func.attr), *args, keywords=keywords, used=used)
        return self._ask(node, "call", self.visit(node.func), *args, keywords=keywords, used=used)

    def _argument(self, node: ast.expr) -> ast.expr:
        if isinstance(node, ast.Starred):
            return ast.Starred(value=self._ask(node, "spread", self.visit(node.value)), ctx=ast.Load())
        result: ast.expr = self.visit(node)
        return result

    def visit_Starred(self, node: ast.Starred) -> Any:
        if isinstance(node.ctx, ast.Load):
            node.value = self._ask(node, "spread", self.visit(node.value))
        return node

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        return self._ask(node, "binary", constant(_OPERATORS[type(node.op)]), self.visit(node.left), self.visit(node.right))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        if isinstance(node.op, ast.Not):
            return ast.UnaryOp(op=ast.Not(), operand=self._ask(node, "truth", self.visit(node.operand)))
        return self._ask(node, "unary", constant(_OPERATORS[type(node.op)]), self.visit(node.operand))

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        if binds(node):
            return self._boolean_binding(node)
        parts = [lambda_of(self.visit(v)) for v in node.values]
        return self._ask(node, "boolean", constant(isinstance(node.op, ast.And)), *parts)

    def visit_Compare(self, node: ast.Compare) -> Any:
        names = [_OPERATORS[type(op)] for op in node.ops]
        if len(names) == 1:
            return self._ask(node, "compare", constant(names[0]), self.visit(node.left), self.visit(node.comparators[0]))
        if binds(node):
            return self._chain_binding(node)
        parts = [lambda_of(self.visit(v)) for v in (node.left, *node.comparators)]
        return self._ask(node, "chain", ast.Tuple(elts=[constant(n) for n in names], ctx=ast.Load()), *parts)

    def _boolean_binding(self, node: ast.BoolOp) -> Any:
        """`a and (y := f())`: a lambda would keep `y` to itself, so it becomes a conditional expression."""
        result: ast.expr = self.visit(node.values[-1])
        for value in reversed(node.values[:-1]):
            name = self._temporary()
            held = ast.NamedExpr(target=ast.Name(id=name, ctx=ast.Store()), value=self.visit(value))
            again = ast.Name(id=name, ctx=ast.Load())
            pair = (result, again) if isinstance(node.op, ast.And) else (again, result)
            result = ast.IfExp(test=self._ask(value, "truth", held), body=pair[0], orelse=pair[1])
        return locate(result, node)

    def _chain_binding(self, node: ast.Compare) -> Any:
        """`a < (b := f()) < c` as `a < (t := (b := f())) and t < c`."""
        parts: list[ast.expr] = []
        left = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            name = self._temporary()
            held = ast.NamedExpr(target=ast.Name(id=name, ctx=ast.Store()), value=right)
            parts.append(locate(ast.Compare(left=left, ops=[op], comparators=[held]), node))
            left = ast.Name(id=name, ctx=ast.Load())
        return self._boolean_binding(locate(ast.BoolOp(op=ast.And(), values=parts), node))

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        test = self._ask(node.test, "truth", self.visit(node.test))
        return ast.IfExp(test=test, body=self.visit(node.body), orelse=self.visit(node.orelse))

    def visit_FormattedValue(self, node: ast.FormattedValue) -> Any:
        spec = self.visit(node.format_spec) if node.format_spec else constant("")
        value = self._ask(node.value, "format", self.visit(node.value), constant(node.conversion), spec)
        return ast.FormattedValue(value=value, conversion=-1, format_spec=None)

    def _display(self, node: ast.expr) -> Any:
        return self._ask(node, "fresh", self.generic_visit(node))  # type: ignore[arg-type]

    def visit_List(self, node: ast.List) -> Any:
        return self._display(node) if isinstance(node.ctx, ast.Load) else node

    visit_Dict = visit_Set = _display

    def _comprehension(self, node: Any) -> Any:
        for generator in node.generators:
            if not isinstance(generator.target, (ast.Name, ast.Tuple)):
                raise RefusedLoop(f"line {node.lineno}: this comprehension's target isn't supported", line=node.lineno)
            generator.iter = self._ask(generator.iter, "iterate", self.visit(generator.iter), shape_of(generator.target), keywords=[])
            generator.ifs = [self._ask(test, "truth", self.visit(test)) for test in generator.ifs]
        for name in ("elt", "key", "value"):
            if hasattr(node, name):
                setattr(node, name, self.visit(getattr(node, name)))
        return self._ask(node, "fresh", node)

    visit_ListComp = visit_SetComp = visit_DictComp = _comprehension

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> Any:
        # evaluated at once, so that both halves take their turns in the same order
        return self._comprehension(ast.copy_location(ast.ListComp(elt=node.elt, generators=node.generators), node))

    def visit_Lambda(self, node: ast.Lambda) -> Any:
        self._defaults(node.args)
        self.depth += 1
        node.body = self.visit(node.body)
        self.depth -= 1
        return node

    def _defaults(self, arguments: ast.arguments) -> None:
        arguments.defaults = [self.visit(d) for d in arguments.defaults]
        arguments.kw_defaults = [d if d is None else self.visit(d) for d in arguments.kw_defaults]

    # --- statements -----------------------------------------------------------------------------

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
        op, value, target = constant(_OPERATORS[type(node.op)]), self.visit(node.value), node.target
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
