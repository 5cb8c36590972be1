"""Whether statements train: call `backward` (and `step`), in themselves or in a function of the user's that they call."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from typing import Any

from .resolve import Resolver
from .things import Function, Instance, Live, Scope

_WORDS = ("backward", "step")
_COMMON = {"forward", "__call__", "item", "append", "update", "zero_grad", *_WORDS}  # too common to tell a method by its name alone


def _is_gradient(value: Any) -> bool:
    """Whether a callable is what `torch.func.grad` or `grad_and_value` returned."""
    code = getattr(value, "__code__", None)
    return code is not None and "_functorch" in code.co_filename and "argnums" in code.co_freevars


class Trains:
    """Answers for statements in a scope; remembers what each function does."""

    def __init__(self, calls: Resolver, trees: Iterable[tuple[ast.AST, Scope]]) -> None:
        self.calls = calls
        self._known: dict[int, frozenset[str]] = {}
        self._kept: list[Any] = []
        self._methods: dict[str, list[Function]] = {}
        for tree, scope in trees:
            self._collect(tree, scope)

    def __call__(self, body: list[Any], scope: Scope) -> bool:
        return "backward" in self.words(body, scope)

    def words(self, body: list[Any], scope: Scope, without: Iterable[ast.AST] = ()) -> frozenset[str]:
        """Which of `backward` and `step` the statements come to call; `without`: parts that aren't looked into."""
        words: set[str] = set()
        left_out = {id(n) for n in without}
        for call, inner in self._calls(body, scope, left_out):
            if isinstance(call.func, ast.Attribute) and call.func.attr in _WORDS:
                words.add(call.func.attr)
            if any(isinstance(thing, Live) and _is_gradient(thing.value) for thing in self.calls.resolve(call.func, inner)):
                words.add("backward")
            for function in self._functions(call, inner):
                words |= self._function(function)
        return frozenset(words)

    # --- calls in statements -------------------------------------------------------------------------

    def _calls(self, nodes: Iterable[Any], scope: Scope, left_out: set[int]) -> Iterator[tuple[ast.Call, Scope]]:
        for node in nodes:
            if id(node) in left_out:
                continue
            if isinstance(node, ast.Call):
                yield node, scope
            inner = self.calls.scope_of(node, scope) if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda)) else scope
            yield from self._calls(ast.iter_child_nodes(node), inner, left_out)

    def _functions(self, call: ast.Call, scope: Scope) -> list[Function]:
        """What a call may run: its function, and functions handed to it (`opt.step(closure)`, `map(step, batches)`)."""
        found = [f for thing in self.calls.resolve(call.func, scope) if (f := self.calls.callable(thing)) is not None]
        for thing in self.calls.resolve(call.func, scope):  # a class: its __init__
            if isinstance(thing, Live) and isinstance(thing.value, type):
                found += [f for t in self.calls.attribute(Instance(thing), "__init__") if (f := self.calls.callable(t)) is not None]
        if not found and isinstance(call.func, ast.Attribute) and call.func.attr not in _COMMON:
            if not self.calls.resolve(call.func.value, scope):
                found = self._methods.get(call.func.attr, [])
        for argument in call.args:
            if isinstance(argument, (ast.Name, ast.Attribute)):
                for thing in self.calls.resolve(argument, scope):
                    if isinstance(thing, Function) or (isinstance(thing, Live) and callable(thing.value)):
                        function = self.calls.callable(thing)
                        if function is not None and not isinstance(thing, Instance):
                            found.append(function)
        return found

    def _function(self, function: Function) -> frozenset[str]:
        key = id(function.node)
        if key not in self._known:
            self._known[key] = frozenset()
            self._kept.append(function.node)
            body = function.node.body
            self._known[key] = self._outside_own_loops(body if isinstance(body, list) else [body], function.scope)
        return self._known[key]

    def _outside_own_loops(self, body: list[Any], scope: Scope) -> frozenset[str]:
        """Words of a function, unless it has a training loop of its own: then that is the one to lease, not its caller's."""
        loops = (n for s in body for n in ast.walk(s) if isinstance(n, (ast.For, ast.While)))
        if any(set(_WORDS) <= self.words(loop.body, scope) for loop in loops):
            return frozenset()
        return self.words(body, scope)

    # --- before any question ----------------------------------------------------------------------------

    def _collect(self, tree: Any, scope: Scope) -> None:
        """Binds arguments of the functions that the tree calls, and notes methods by their names."""
        nodes = tree.body if isinstance(tree.body, list) else [tree.body]
        for call, inner in self._calls(nodes, scope, set()):
            for thing in self.calls.resolve(call.func, inner):
                function = self.calls.callable(thing)
                if function is not None:
                    self.calls.bind(function, call, inner)
        if isinstance(tree, ast.FunctionDef) and scope.owners:
            self._methods.setdefault(tree.name, []).append(Function(tree, scope))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                inner = self.calls.scope_of(node, scope)
                for part in node.body:
                    if isinstance(part, ast.FunctionDef):
                        self._methods.setdefault(part.name, []).append(Function(part, self.calls.scope_of(part, inner)))
