"""A user's function as a tree: from its source, with the line numbers of its file, private names and `super()` spelled out."""

from __future__ import annotations

import ast
import copy
import inspect
import linecache
import sys
import tokenize
import types
from pathlib import Path
from typing import Any

_OWN = Path(__file__).absolute().parents[2].as_posix() + "/"  # this package


def is_user_file(filename: str) -> bool:
    """Whether code of that file is the user's own (a cell's or a local file's) and not an installed package's or Python's."""
    name = filename.replace("\\", "/")
    installed = "site-packages" in name or "dist-packages" in name or "/lib/python3" in name or "<frozen" in name
    return not installed and not name.startswith(_OWN)


def is_user_code(code: types.CodeType) -> bool:
    return is_user_file(code.co_filename)


def is_user_module(name: str) -> bool:
    """Whether a module is the user's own: the notebook, or a file beside it."""
    if name == "__main__":
        return True
    module = sys.modules.get(name)
    if module is None:
        return name.partition(".")[0] not in sys.stdlib_module_names
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and is_user_file(file)


def source_of(function: types.FunctionType) -> str | None:
    """The text of a user's `def`, as it stands in its file; None when there is none, or it isn't a `def`."""
    if not is_user_code(function.__code__):
        return None
    try:
        linecache.checkcache(function.__code__.co_filename)
        lines = linecache.getlines(function.__code__.co_filename)
        source = "".join(inspect.getblock(lines[function.__code__.co_firstlineno - 1 :]))
        node = parse_source(source, function.__code__)
    except (SyntaxError, IndexError, ValueError, tokenize.TokenError):
        return None
    return source if node.name == function.__code__.co_name else None


def parse_function(function: types.FunctionType) -> tuple[ast.FunctionDef, str] | None:
    """A user's function as a tree with the line numbers of its file, and its source; None when there is no source."""
    source = source_of(function)
    return None if source is None else (parse_source(source, function.__code__), source)


def parse_source(source: str, code: types.CodeType) -> ast.FunctionDef:
    """The tree of the `def` that `code` was made of. Raises SyntaxError or ValueError where the text isn't one `def`."""
    indented = source[:1] in (" ", "\t")
    tree: Any = ast.parse(f"if 1:\n{source}" if indented else source)
    node = tree.body[0].body[0] if indented else tree.body[0]
    if not isinstance(node, ast.FunctionDef):
        raise ValueError("not a def")
    ast.increment_lineno(node, code.co_firstlineno - (2 if indented else 1))
    return spelled_out(node, class_of(code.co_qualname))


def class_of(qualname: str) -> str:
    """The class in whose body a function's text stands, from its qualified name; "" when in none."""
    parts = qualname.split(".")
    for part, following in zip(reversed(parts[:-1]), reversed(parts[1:]), strict=True):
        if part != "<locals>" and following != "<locals>":
            return part
    return ""


def spelled_out(node: Any, owner: str = "") -> Any:
    """The same tree, in place, with `self.__x` as `self._Owner__x` and `super()` as `super(__class__, self)`.

    Instrumented code runs outside its class, where the short forms mean nothing.
    """
    return _SpelledOut(owner).visit(node)


class _SpelledOut(ast.NodeTransformer):
    def __init__(self, owner: str) -> None:
        self.owner = owner.lstrip("_")
        self.firsts: list[str] = []

    def _private(self, name: str) -> str:
        return f"_{self.owner}{name}" if self.owner and name.startswith("__") and not name.endswith("__") else name

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        outer, self.owner = self.owner, node.name.lstrip("_")
        self.generic_visit(node)
        self.owner = outer
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        arguments = [*node.args.posonlyargs, *node.args.args]
        self.firsts.append(arguments[0].arg if arguments else "")
        self.generic_visit(node)
        self.firsts.pop()
        return node

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        self.generic_visit(node)
        node.attr = self._private(node.attr)
        return node

    def visit_Name(self, node: ast.Name) -> Any:
        node.id = self._private(node.id)
        return node

    def visit_arg(self, node: ast.arg) -> Any:
        self.generic_visit(node)
        node.arg = self._private(node.arg)
        return node

    def visit_Call(self, node: ast.Call) -> Any:
        self.generic_visit(node)
        plain = isinstance(node.func, ast.Name) and node.func.id == "super" and not node.args and not node.keywords
        if plain and self.firsts and self.firsts[-1]:
            node.args = [ast.copy_location(ast.Name(id=name, ctx=ast.Load()), node) for name in ("__class__", self.firsts[-1])]
        return node


def compiled(node: ast.FunctionDef, code: types.CodeType) -> types.CodeType:
    """`node` as code that fits a function of `code`: with the same free variables, file and qualified name."""
    node.decorator_list = []
    unused = ast.parse("if 0:\n    pass").body[0]  # names every free variable, so that none is lost; the compiler drops it
    assert isinstance(unused, ast.If)
    unused.body = [ast.Expr(value=ast.Name(id=name, ctx=ast.Load())) for name in code.co_freevars] or [ast.Pass()]
    node.body = [*node.body, ast.copy_location(unused, node.body[-1])]
    factory = ast.parse("def __depin_factory__():\n    pass").body[0]
    assert isinstance(factory, ast.FunctionDef)
    # A factory gives the function the same free variables, in the same order, as the original.
    factory.body = [*(ast.parse(f"{name} = None").body[0] for name in code.co_freevars), node]
    module = ast.fix_missing_locations(ast.Module(body=[factory], type_ignores=[]))
    outer = compile(module, code.co_filename, "exec", dont_inherit=True)
    inner = next(c for c in outer.co_consts if isinstance(c, types.CodeType))
    made = next(c for c in inner.co_consts if isinstance(c, types.CodeType) and c.co_name == code.co_name)
    return _renamed(made, made.co_qualname, code.co_qualname)


def _renamed(code: types.CodeType, before: str, after: str) -> types.CodeType:
    """Code with its qualified name, and those of the functions in it, as if it stood where the original does."""
    constants = tuple(_renamed(c, before, after) if isinstance(c, types.CodeType) else c for c in code.co_consts)
    return code.replace(co_qualname=after + code.co_qualname.removeprefix(before), co_consts=constants)


def is_made_of(code: types.CodeType, node: ast.FunctionDef) -> bool:
    """Whether `code` may have been made of the tree: a file may have changed since."""
    made = compiled(copy.deepcopy(node), code)
    return made.co_varnames == code.co_varnames and set(made.co_names) == set(code.co_names)
