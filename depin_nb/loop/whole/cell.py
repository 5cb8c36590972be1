"""A whole cell on one worker: the program that carries it there, and the half that runs it as it stands, not instrumented.

Any code at all may run, also what leasing refuses. What it says is sent on as it comes. What it leaves comes back as data: tensors by slot
as from any lease, and the content of the notebook's own objects, by number, as a `datagraph`.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...core.codec import encode
from ...core.lease import EntrySpec, Lease
from ...core.state import BUFFER, COUNTER, PARAM, State
from ..find.syntax import stored_names
from ..halves.failures import described
from ..halves.record import Outcome, _track_steps
from ..output import listening
from ..ship.capture import Shipment, ship
from ..ship.pickling import is_ghost
from ..ship.program import open_program
from ..source.opener import Plain
from ..split.callees import Callees
from .anchors import Anchors, anchors_of
from .contents import STATEFUL, content, is_own, kind_of
from .datagraph import Encoder, Unsendable
from .fingerprints import fingerprint
from .streams import Say, Sender

ANCHORS = "__depin_anchors__"
SHOW = "__depin_show__"
MAX_LEFT_BYTES = 56 << 20  # hub/reports.py takes 64 MiB of a report, logs and all
STEP_S = 0.05


class Cut(BaseException):
    """The lease isn't wanted any more. Raised between two bytecodes of the cell; no `except Exception` of a user's stops it."""


# --- in the notebook ----------------------------------------------------------------------------------


def ship_whole(
    tree: ast.Module, filename: str, names: dict[str, Any], space: dict[str, Any], send: tuple[str, ...] = ()
) -> tuple[Shipment, Anchors]:
    """The program of a cell that reads `names` of the namespace `space`, and the notebook's objects as it numbers them.

    Raises ShipError naming what can't leave.
    """
    staying: set[str] = set()
    while True:
        anchors = Anchors(notebooks({n: v for n, v in names.items() if n not in staying}, space))
        shipment = _shipped(tree, filename, {**names, ANCHORS: anchors.objects}, space, send)
        if ANCHORS not in shipment.ghosts:
            return shipment, anchors
        left = staying | (shipment.ghosts.keys() - {ANCHORS})
        staying = left if left != staying else set(names)


def _shipped(tree: ast.Module, filename: str, names: dict[str, Any], space: dict[str, Any], send: tuple[str, ...]) -> Shipment:
    body = tree.body or [ast.Pass(lineno=1, col_offset=0)]
    loop = ast.For(target=ast.Name(id="_", ctx=ast.Store()), iter=ast.Tuple(elts=[], ctx=ast.Load()), body=body, orelse=[])
    ast.copy_location(loop, body[0])
    return ship(
        names=names,
        space=space,
        opener=Plain(),
        callees=Callees(),
        loop=ast.fix_missing_locations(loop),
        filename=filename,
        solo=True,
        first=0,
        carried=(),
        grads=True,
        facts={"stored": [], "conditional": [], "accumulators": [], "stepped": [], "counters": {}},
        shared=True,
        send=send,
    )


def notebooks(names: dict[str, Any], space: dict[str, Any]) -> list[Any]:
    """The notebook's objects by number: those of what stays here are left out."""
    leaving = {name: value for name, value in names.items() if not is_ghost(value)}
    return [obj for obj in anchors_of(leaving, space) if not is_ghost(obj)]


def definitions(tree: ast.Module) -> list[ast.stmt]:
    """The cell's own functions, classes and imports: the notebook makes them itself, from the user's own text."""
    kinds = (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef, ast.Import, ast.ImportFrom)
    return [statement for statement in tree.body if isinstance(statement, kinds)]


def bound_names(tree: ast.Module) -> set[str]:
    """Names that the cell may assign."""
    globals_ = {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}
    defined = {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef))}
    imported = {
        (a.asname or a.name).partition(".")[0] for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names
    }
    handled = {n.name for n in ast.walk(tree) if isinstance(n, ast.ExceptHandler) and n.name}
    return stored_names(tree) | globals_ | defined | imported | handled


# --- on the worker ------------------------------------------------------------------------------------


class WholeHalf:
    """One program, opened. As `record.WorkerHalf`, but the lease's one unit is the cell, once. `say` takes what the cell says."""

    def __init__(self, program: bytes, blob: Callable[[str], bytes], say: Say) -> None:
        self.program = open_program(program, blob)
        self.env, self.roots = self.program.env, self.program.roots
        self.anchors = Anchors(self.env.pop(ANCHORS, []))
        self._say = say
        self._base: State = State()
        _track_steps(self.roots)
        self.code = _compiled(self.program.loop.body, self.program.filename)

    def load(self, state: State) -> None:
        self._base = state
        self.roots.write(state, self.env, rng=True)

    def state(self) -> State:
        """What the version has slots for; what is new among the notebook's objects travels with their contents."""
        state, base = self.roots.read(self.env, rng=True), self._base.tensors
        for slot, kind in list(state.kinds.items()):
            known = slot in base and base[slot].shape == state.tensors[slot].shape and base[slot].dtype == state.tensors[slot].dtype
            if kind in (PARAM, BUFFER, COUNTER) and not known:
                del state.tensors[slot], state.kinds[slot]
        return state

    def run(
        self,
        lease: Lease,
        spec: EntrySpec,
        *,
        go: Callable[[], bool],
        paced: Callable[[float], None] = lambda seconds: None,
        reduce: Any = None,
    ) -> Outcome:
        """Runs the cell. `go` is asked while it runs; False ends it (`Outcome.stopped`)."""
        names, deep, prints = dict(self.env), {n: fingerprint(v) for n, v in self.env.items()}, self.anchors.prints()
        sender, start, failed = Sender(self._say), time.perf_counter(), None
        try:
            with _numerics(self.program.flags), listening(sender.put, self.program.flags):
                self.env[SHOW] = _show
                try:
                    with _cut_when_unwanted(go):
                        exec(self.code, self.env)  # the user's own cell, on the machine that was given it
                except Cut:
                    return Outcome(stopped=True)
                except BaseException as error:
                    failed = described(error)
                finally:
                    self.env.pop(SHOW, None)
        finally:
            sender.close()
        seconds = time.perf_counter() - start
        left = self._left(names, deep, prints)
        paced(seconds)
        return Outcome(1, [encode({"error": failed})], left, "error" if failed is not None else "", [], seconds)

    # --- what is left -----------------------------------------------------------------------------

    def _left(self, names: dict[str, Any], deep: dict[str, bytes], prints: list[bytes]) -> bytes:
        """{"nodes", "names", "contents", "touched", "deleted", "missing"} as codec bytes; what can't come back is among the missing."""
        encoder = Encoder(self.anchors.number, self._known)
        missing: list[str] = []
        changed = [i for i, (a, b) in enumerate(zip(prints, self.anchors.prints(), strict=True)) if a != b]
        slots = {id(t) for _, _, t in self.roots.slots()}
        contents: dict[int, Any] = {}
        for number in changed:
            obj = self.anchors.objects[number]
            if kind_of(obj) not in (*STATEFUL, "code", "") and id(obj) not in slots:
                contents[number] = self._content(encoder, obj, missing)
        new: dict[str, int] = {}
        for name, value in self.env.items():
            if name.startswith("__") or (name in names and value is names[name] and kind_of(value)):
                continue
            if isinstance(value, type(ast)) or (is_own(value) and self.anchors.number(value) is None):
                continue  # a module or a definition: the notebook makes it from the cell's text
            if name in names and value is names[name] and fingerprint(value) == deep[name]:
                continue
            try:
                new[name] = encoder.value(value)
            except Unsendable as error:
                missing.append(f"{name} ({error})")
        left = {
            "names": new,
            "contents": {i: c for i, c in contents.items() if c is not None},
            "touched": [n for n in names if n in self.env and not n.startswith("__") and fingerprint(self.env[n]) != deep[n]],
            "deleted": [n for n in names if n not in self.env],
        }
        return _fitted(encoder.nodes, left, missing)

    def _known(self, code: Any) -> bool:
        """Whether the notebook finds a function or class by its name: it is one of the cell's names, or came from the notebook."""
        return self.env.get(code.__name__) is code or self.anchors.number(code) is not None

    def _content(self, encoder: Encoder, obj: Any, missing: list[str]) -> Any:
        kind, held = kind_of(obj), content(obj)
        if kind in ("tensor", "array", "bytearray"):
            return [kind, held.detach() if isinstance(held, torch.Tensor) else held]
        if kind == "generator":
            return [kind, held]
        if kind not in ("module", "instance"):
            return self._encoded(encoder, kind, held, type(obj).__name__, missing)
        kept = {}
        parts = held if kind == "instance" else held["own"]
        for name, value in parts.items():
            try:
                kept[name] = encoder.value(value)
            except Unsendable as error:
                missing.append(f"{type(obj).__name__}.{name} ({error})")
        if kind == "instance":
            return [kind, kept]
        structure = {part: held[part] for part in ("parameters", "buffers", "modules")}
        inner = self._encoded(encoder, kind, structure, type(obj).__name__, missing)
        return None if inner is None else [kind, {**inner[1], "own": kept, "training": held["training"]}]

    @staticmethod
    def _encoded(encoder: Encoder, kind: str, held: Any, name: str, missing: list[str]) -> Any:
        try:
            return [kind, encoder.content(kind, held)]
        except Unsendable as error:
            missing.append(f"what a {name} holds ({error})")
            return None


def _fitted(nodes: list[Any], left: dict[str, Any], missing: list[str]) -> bytes:
    data = encode({"nodes": nodes, **left, "missing": missing})
    if len(data) <= MAX_LEFT_BYTES:
        return data
    room = f"all names together are {len(data) >> 20} MiB, {MAX_LEFT_BYTES >> 20} can come back"
    lost = [*missing, *(f"{name} ({room})" for name in left["names"]), f"what lists, dicts and objects hold ({room})"]
    return encode({"nodes": [], "names": {}, "contents": {}, "touched": [], "deleted": [], "missing": lost})


def _compiled(body: list[ast.stmt], filename: str) -> Any:
    """The cell as code; the value of a last expression is shown, as a notebook does."""
    if body and isinstance(last := body[-1], ast.Expr):
        show = ast.Call(func=ast.Name(id=SHOW, ctx=ast.Load()), args=[last.value], keywords=[])
        body = [*body[:-1], ast.copy_location(ast.Expr(value=show), last)]
    return compile(ast.fix_missing_locations(ast.Module(body=body, type_ignores=[])), filename, "exec", dont_inherit=True)


def _show(value: Any) -> None:
    if value is not None:
        print(repr(value))


@contextlib.contextmanager
def _numerics(flags: dict[str, Any]) -> Iterator[None]:
    """The kernel's numeric settings."""
    dtype, threads, matmul = torch.get_default_dtype(), torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_default_dtype(getattr(torch, flags["dtype"]))
    torch.set_float32_matmul_precision(flags["matmul"])
    torch.set_num_threads(flags["threads"])
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(matmul)
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _cut_when_unwanted(go: Callable[[], bool]) -> Iterator[None]:
    """Raises Cut in this thread, between two bytecodes, once `go` says no; again and again while code of the user's catches it."""
    thread, over, lock = threading.get_ident(), threading.Event(), threading.Lock()
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc

    def watch() -> None:
        while not over.wait(STEP_S):
            if not go():
                with lock:
                    if not over.is_set():
                        raise_in(ctypes.c_ulong(thread), ctypes.py_object(Cut))

    watching = threading.Thread(target=watch, name="depin-unwanted", daemon=True)
    watching.start()
    try:
        yield
    finally:
        while not over.is_set():
            with contextlib.suppress(Cut), lock:
                over.set()
        raise_in(ctypes.c_ulong(thread), None)  # one that hasn't been raised yet stays away
        watching.join()
