"""Expressions of a body: each operation that may touch a device-side value becomes a question to the runtime."""

from __future__ import annotations

import ast
from typing import Any

from ...core.errors import RefusedLoop
from ..find.pieces import binds, constant, lambda_of, locate, shape_of, unsliced

RUNTIME = "__depin__"
OPERATORS = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mult", ast.Div: "div", ast.FloorDiv: "floordiv", ast.Mod: "mod", ast.Pow: "pow",
    ast.LShift: "lshift", ast.RShift: "rshift", ast.BitOr: "bitor", ast.BitXor: "bitxor", ast.BitAnd: "bitand", ast.MatMult: "matmult",
    ast.USub: "neg", ast.UAdd: "pos", ast.Invert: "invert",
    ast.Eq: "eq", ast.NotEq: "noteq", ast.Lt: "lt", ast.LtE: "lte", ast.Gt: "gt", ast.GtE: "gte", ast.Is: "is", ast.IsNot: "isnot",
    ast.In: "in", ast.NotIn: "notin",
}  # fmt: skip


class Expressions(ast.NodeTransformer):
    """Rewrites expressions. Both halves number their questions alike: `count` goes up with each."""

    def __init__(self, *, function: bool = False) -> None:
        self.depth = 1 if function else 0  # inside a function of its own, `return` is just that
        self.count = 0

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
        return self._ask(node, "binary", constant(OPERATORS[type(node.op)]), self.visit(node.left), self.visit(node.right))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        if isinstance(node.op, ast.Not):
            return ast.UnaryOp(op=ast.Not(), operand=self._ask(node, "truth", self.visit(node.operand)))
        return self._ask(node, "unary", constant(OPERATORS[type(node.op)]), self.visit(node.operand))

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        if binds(node):
            return self._boolean_binding(node)
        parts = [lambda_of(self.visit(v)) for v in node.values]
        return self._ask(node, "boolean", constant(isinstance(node.op, ast.And)), *parts)

    def visit_Compare(self, node: ast.Compare) -> Any:
        names = [OPERATORS[type(op)] for op in node.ops]
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
