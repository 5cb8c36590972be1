"""Instruments a loop body: every operation that may touch a device-side value asks the runtime `__depin__` for its result.

One AST serves both halves. With a `Recorder` behind `__depin__` it is the worker half, with a `Replayer` the notebook half.
Locations are copied, so that tracebacks name the user's own lines.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterable
from typing import Any

from ..core.errors import RefusedLoop

RUNTIME = "__depin__"
_OPERATORS = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mult", ast.Div: "div", ast.FloorDiv: "floordiv", ast.Mod: "mod", ast.Pow: "pow",
    ast.LShift: "lshift", ast.RShift: "rshift", ast.BitOr: "bitor", ast.BitXor: "bitxor", ast.BitAnd: "bitand", ast.MatMult: "matmult",
    ast.USub: "neg", ast.UAdd: "pos", ast.Invert: "invert",
    ast.Eq: "eq", ast.NotEq: "noteq", ast.Lt: "lt", ast.LtE: "lte", ast.Gt: "gt", ast.GtE: "gte", ast.Is: "is", ast.IsNot: "isnot",
    ast.In: "in", ast.NotIn: "notin",
}  # fmt: skip
_REFUSED: dict[type[ast.AST], str] = {
    ast.Await: "`await` can't run on a worker",
    ast.Yield: "a `yield` in the loop's body can't run on a worker",
    ast.YieldFrom: "a `yield` in the loop's body can't run on a worker",
    ast.AsyncFor: "`async for` can't run on a worker",
    ast.AsyncWith: "`async with` can't run on a worker",
    ast.AsyncFunctionDef: "an async function in the loop's body can't run on a worker",
    ast.ClassDef: "a class defined in the loop's body can't be split: define it before the loop",
    ast.Nonlocal: "`nonlocal` names can't be shared between the notebook and a worker",
    ast.Match: "`match` in the loop's body isn't supported yet: use `if`",
    ast.TryStar: "`except*` in the loop's body isn't supported yet",
}


def refuse_unsupported(nodes: Iterable[ast.AST]) -> None:
    """Raises RefusedLoop at the first statement or expression that neither half could run."""
    for root in nodes:
        for node in ast.walk(root):
            reason = _REFUSED.get(type(node))
            if reason is None and isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id in ("eval", "exec", "locals", "globals", "vars", "input"):
                    reason = f"`{node.func.id}()` in the loop's body can't be split"
            if reason is not None:
                raise RefusedLoop(f"line {node.lineno}: {reason}", line=node.lineno, reason=reason)  # type: ignore[attr-defined]


class Instrument(ast.NodeTransformer):
    """Rewrites statements. `worker`: whether `return` of the outermost body becomes a signal (the worker half has no frame to leave)."""

    def __init__(self, *, worker: bool, function: bool = False) -> None:
        self.worker = worker
        self.depth = 1 if function else 0  # inside a function of its own, `return` is just that
        self.count = 0

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
            args=[_constant(number), *args],
            keywords=keywords or [],
        )
        _locate(call, node)
        return call

    def _temporary(self) -> str:
        self.count += 1
        return f"__depin_{self.count}"

    # --- expressions ----------------------------------------------------------------------------

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        if not isinstance(node.ctx, ast.Load):
            return node
        return self._ask(node, "attribute", self.visit(node.value), _constant(node.attr))

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        if not isinstance(node.ctx, ast.Load):
            return node
        return self._ask(node, "item", self.visit(node.value), self.visit(_unsliced(node.slice)))

    def visit_Call(self, node: ast.Call, used: bool = True) -> Any:
        args = [self._argument(a) for a in node.args]
        keywords = [
            ast.keyword(arg=k.arg, value=self.visit(k.value) if k.arg else self._ask(k.value, "mapping", self.visit(k.value)))
            for k in node.keywords
        ]
        if isinstance(node.func, ast.Attribute):
            return self._ask(node, "method", self.visit(node.func.value), _constant(node.func.attr), *args, keywords=keywords, used=used)
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
        return self._ask(node, "binary", _constant(_OPERATORS[type(node.op)]), self.visit(node.left), self.visit(node.right))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        if isinstance(node.op, ast.Not):
            return ast.UnaryOp(op=ast.Not(), operand=self._ask(node, "truth", self.visit(node.operand)))
        return self._ask(node, "unary", _constant(_OPERATORS[type(node.op)]), self.visit(node.operand))

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        parts = [_lambda(self.visit(v)) for v in node.values]
        return self._ask(node, "boolean", _constant(isinstance(node.op, ast.And)), *parts)

    def visit_Compare(self, node: ast.Compare) -> Any:
        names = [_OPERATORS[type(op)] for op in node.ops]
        if len(names) == 1:
            return self._ask(node, "compare", _constant(names[0]), self.visit(node.left), self.visit(node.comparators[0]))
        parts = [_lambda(self.visit(v)) for v in (node.left, *node.comparators)]
        return self._ask(node, "chain", ast.Tuple(elts=[_constant(n) for n in names], ctx=ast.Load()), *parts)

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        test = self._ask(node.test, "truth", self.visit(node.test))
        return ast.IfExp(test=test, body=self.visit(node.body), orelse=self.visit(node.orelse))

    def visit_FormattedValue(self, node: ast.FormattedValue) -> Any:
        spec = self.visit(node.format_spec) if node.format_spec else _constant("")
        value = self._ask(node.value, "format", self.visit(node.value), _constant(node.conversion), spec)
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
            generator.iter = self._ask(generator.iter, "iterate", self.visit(generator.iter), _pattern(generator.target), keywords=[])
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
        self.depth += 1
        node.body = self.visit(node.body)
        self.depth -= 1
        return node

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
            call = self._ask(target, "set_attribute", self.visit(target.value), _constant(target.attr), value)
            statement = ast.Expr(value=call)
        elif isinstance(target, ast.Subscript):
            call = self._ask(target, "set_item", self.visit(target.value), self.visit(_unsliced(target.slice)), value)
            statement = ast.Expr(value=call)
        else:
            return self._unpack(target, value, node)
        return [_locate(statement, node)]

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
        statements: list[ast.stmt] = [_locate(ast.Assign(targets=[plain], value=self._ask(node, "unpack", value, _pattern(target))), node)]
        for name, part in leaves:
            statements += self._store(part, ast.Name(id=name.id, ctx=ast.Load()), node)
        return statements

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        op, value, target = _constant(_OPERATORS[type(node.op)]), self.visit(node.value), node.target
        if isinstance(target, ast.Name):
            name = _constant("" if self.depth else target.id)
            call = self._ask(node, "augment", op, ast.Name(id=target.id, ctx=ast.Load()), value, name)
            return _locate(ast.Assign(targets=[target], value=call), node)
        if isinstance(target, ast.Attribute):
            call = self._ask(node, "augment_attribute", self.visit(target.value), _constant(target.attr), op, value)
        else:
            assert isinstance(target, ast.Subscript)
            call = self._ask(node, "augment_item", self.visit(target.value), self.visit(_unsliced(target.slice)), op, value)
        return _locate(ast.Expr(value=call), node)

    def _block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        result: list[ast.stmt] = []
        for statement in statements:
            changed = self.visit(statement)
            result.extend(changed if isinstance(changed, list) else [changed] if changed is not None else [])
        return result or ([_locate(ast.Pass(), statements[0])] if statements else [])

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
            node.target = _locate(ast.Name(id=name, ctx=ast.Store()), node)
        node.body, node.orelse = body, self._block(node.orelse)
        return node

    def target(self, target: ast.expr, name: str, node: ast.AST) -> list[ast.stmt]:
        """Statements that bind the leased loop's own target from the item in `name`."""
        return self._store(copy.deepcopy(target), ast.Name(id=name, ctx=ast.Load()), node)

    def visit_With(self, node: ast.With) -> Any:
        for item in node.items:
            item.context_expr = self._ask(item.context_expr, "context", self.visit(item.context_expr))
            if item.optional_vars is not None and not isinstance(item.optional_vars, ast.Name):
                raise RefusedLoop(f"line {node.lineno}: `with ... as` needs a single name here", line=node.lineno)
        node.body = self._block(node.body)
        return node

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
        call = self._ask(node, "leave", node.value or _constant(None))
        return _locate(ast.Expr(value=call), node)

    def visit_Delete(self, node: ast.Delete) -> Any:
        statements: list[ast.stmt] = []
        for target in node.targets:
            if isinstance(target, ast.Subscript):
                call = self._ask(target, "delete_item", self.visit(target.value), self.visit(_unsliced(target.slice)))
                statements.append(_locate(ast.Expr(value=call), node))
            elif isinstance(target, ast.Attribute):
                call = self._ask(target, "delete_attribute", self.visit(target.value), _constant(target.attr))
                statements.append(_locate(ast.Expr(value=call), node))
            else:
                statements.append(_locate(ast.Delete(targets=[target]), node))
        return statements

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        self.depth += 1
        node.body = self._block(node.body)
        self.depth -= 1
        node.decorator_list = [self.visit(d) for d in node.decorator_list]
        return node

    def visit_Global(self, node: ast.Global) -> Any:
        return node if self.depth or not self.worker else None


def _constant(value: Any) -> ast.Constant:
    return ast.Constant(value=value)


def _lambda(body: ast.expr) -> ast.Lambda:
    arguments = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    return ast.Lambda(args=arguments, body=body)


def _unsliced(node: ast.expr) -> ast.expr:
    """A subscript's index as an ordinary expression: slices become `slice(...)` objects."""
    if isinstance(node, ast.Slice):
        parts = [part or _constant(None) for part in (node.lower, node.upper, node.step)]
        return _locate(ast.Call(func=ast.Name(id="slice", ctx=ast.Load()), args=parts, keywords=[]), node)
    if isinstance(node, ast.Tuple):
        return ast.copy_location(ast.Tuple(elts=[_unsliced(e) for e in node.elts], ctx=ast.Load()), node)
    return node


def _pattern(target: ast.expr) -> ast.expr:
    """A target's shape as a nested constant: None for a leaf, "*" for a starred leaf, a tuple for a group."""

    def shape(part: ast.expr) -> Any:
        if isinstance(part, (ast.Tuple, ast.List)):
            return tuple(shape(e) for e in part.elts)
        return "*" if isinstance(part, ast.Starred) else None

    return _constant(shape(target))


def _locate(node: Any, like: ast.AST) -> Any:
    ast.copy_location(node, like)
    for child in ast.walk(node):
        if not hasattr(child, "lineno") and "lineno" in child._attributes:
            ast.copy_location(child, like)
    return node
