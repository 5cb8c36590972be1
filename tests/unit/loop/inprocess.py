"""Cells run here: as they are (`local`), and leased to a hub in this process (`leased`) whose workers are the real worker halves."""

import ast
import contextlib
import importlib
import io
import linecache
import logging
import os
import random
import re
import sys
import tempfile
import warnings

import numpy as np
import torch
from hubs import InProcessHub, SpreadHub

from depin_nb.loop.cell import LeasedCell

_BAR = re.compile(r"[^\r\n]*(it/s|s/it|\?it)[^\r\n]*[\r\n]?")


class Ran(tuple):
    """(namespace, printed text, generators, exception) of a cell, and a leased one's hub; `errors`: stderr; `warned`: its warnings."""

    errors = ""
    warned = ()


def seed(value=0):
    torch.manual_seed(value)
    random.seed(value)
    np.random.seed(value)


def generators():
    numpy = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), numpy[1].tolist(), numpy[2]


def local(setup, code=None):
    """A cell (`Cell`, or its setup and code) in this process: its namespace, text, generators, and the exception if it raised one."""
    setup, code, files = parts_of(setup, code)
    return run_in_folder(setup, lambda ns: exec(compile(code, "<cell>", "exec"), ns), files)


def leased(setup, code=None, *, workers=1, **options):
    """The same through a hub: with one worker exact, with several `local`, where the analysis allows it."""
    setup, code, files = parts_of(setup, code)
    hub = SpreadHub(workers, **options) if workers > 1 else InProcessHub(**options)
    _remember("<cell>", code)

    def run(ns):
        LeasedCell(code, ns, "<cell>").run(hub, lambda tree: exec(compile(ast.fix_missing_locations(tree), "<cell>", "exec"), ns))

    ran = run_in_folder(setup, run, files)
    result = Ran((*ran, hub))
    result.errors, result.warned = ran.errors, ran.warned
    return result


def parts_of(setup, code):
    """(setup, code, files) of a `Cell`, or of a setup and its code."""
    return (setup.setup, setup.code, setup.files) if code is None else (setup, code, {})


def _remember(name, text):
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)


def run_in_folder(setup, run, files=None):
    """Executes the setup, then `run(namespace)`, in a folder of its own that holds `files` and is first on sys.path."""
    namespace = {"__name__": "__main__"}
    name = f"<setup {hash(setup)}>"
    _remember(name, setup)
    text, errors, error = io.StringIO(), io.StringIO(), None
    with beside(files or {}), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(errors):
            seed()
            exec(compile(setup, name, "exec"), namespace)
            marks = text.tell(), errors.tell(), len(warned)
            try:
                run(namespace)
            except Exception as raised:
                error = raised
            after = generators()
    ran = Ran((namespace, text.getvalue()[marks[0] :], after, error))
    ran.errors = _BAR.sub("", errors.getvalue()[marks[1] :]).strip("\r\n")
    # C++ says some once a process; files are closed when the garbage collector comes by
    kept = [w for w in warned[marks[2] :] if "Triggered internally" not in str(w.message) and w.category is not ResourceWarning]
    ran.warned = [(w.category.__name__, str(w.message)) for w in kept]
    return ran


@contextlib.contextmanager
def beside(files):
    """A folder as the notebook's own: it holds `files`, is the working directory and first on sys.path. Gone afterwards, as are its modules
    and what a cell did to logging."""
    before, root = set(sys.modules), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with tempfile.TemporaryDirectory() as folder:
        for name, source in files.items():
            path = os.path.join(folder, name if os.path.splitext(name)[1] else f"{name}.py")
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                file.write(source)
        folder = os.path.realpath(folder)
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        try:
            with contextlib.chdir(folder):
                yield folder
        finally:
            sys.path.remove(folder)
            for module in set(sys.modules) - before:
                if (getattr(sys.modules[module], "__file__", None) or "").startswith(folder + os.sep):
                    del sys.modules[module]
            sys.path_importer_cache.pop(folder, None)
            linecache.checkcache()
            root.handlers[:], root.level = handlers, level


__all__ = ["InProcessHub", "Ran", "SpreadHub", "beside", "generators", "leased", "local", "parts_of", "run_in_folder", "seed"]
