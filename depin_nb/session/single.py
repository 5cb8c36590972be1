"""`--single`: the whole cell on one remote worker, whatever it holds. What it says is shown as it comes; its names come back at the end.

The worker's bytes are hostile: they are opened as data alone (`loop.datagraph`), and put in place all together or not at all.
"""

from __future__ import annotations

import ast
import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch

from ..core.codec import decode
from ..core.errors import CodecError, HubError, NoWorkers, RefusedLoop
from ..core.lease import EntrySpec, StrategyConfig, Unit
from ..core.state import RNG, State
from ..loop.contract import Results
from ..loop.halves.failures import rebuilt
from ..loop.output import show
from ..loop.ship.capture import Shipment
from ..loop.source import pack
from ..loop.whole.anchors import Anchors
from ..loop.whole.cell import bound_names, definitions, ship_whole
from ..loop.whole.contents import content, is_own, kind_of
from ..loop.whole.datagraph import Decoder
from ..metering import price
from ..metering.bytime import flops_of_time
from .detached.binding import Undo, bind
from .detached.capture import needed_names, refuse_shell
from .detached.results import Left
from .lessor import POLL_S, Lessor

LIMIT_S = 3600.0  # what a cell may take, where the user doesn't say
ATTEMPTS = 2  # a lost worker: the cell starts once more from its top
MAX_LEFT_BYTES = 64 << 20
MAX_CHUNK_BYTES = 1 << 20


@dataclass
class Single:
    """One cell, refused or shipped, run, bound. `undo` takes back what was bound."""

    tree: ast.Module
    filename: str
    space: dict[str, Any]
    lessor: Lessor
    limit_s: float = LIMIT_S
    missing: tuple[str, ...] = ()
    undo: Undo | None = None
    _anchors: Anchors = field(init=False)
    _said: int = 0

    def run(self) -> None:
        """Raises what the cell raised, with its lines; KeyboardInterrupt, BudgetExhausted, NoWorkers, HubDied as a leased loop does.

        Also when the cell raised, what it had done by then is in the notebook, as it would be here.
        """
        self._check()
        names = needed_names(self.tree, self.space)
        shipment, self._anchors = ship_whole(self.tree, self.filename, names, self.space, self.lessor.send)
        self.lessor.admit(shipment)
        state = shipment.roots.read({}, rng=True)
        self._start(shipment)
        for attempt in range(1, ATTEMPTS + 1):
            results = self._attempt(shipment, state)
            if results is not None:
                self._finish(results, shipment)
                return
            if attempt < ATTEMPTS:
                show("err", "depin: the worker is gone; the cell starts again from its top on another one\n", self.space)
        raise NoWorkers("two workers were lost while they ran this cell; nothing of it is in the notebook", hint="Run the cell again.")

    def _check(self) -> None:
        refuse_shell(self.tree)
        if not self.lessor.workers:
            raise NoWorkers("no worker has joined the hub")
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.Await, ast.AsyncFor, ast.AsyncWith)) and not _in_function(self.tree, node):
                line = node.lineno
                raise RefusedLoop(f"line {line}: top-level `await` needs the notebook's own event loop", line=line, reason="await")
        for device in self.lessor.workers:
            flops_of_time(price.load(), device.kind, self.limit_s)  # a device whose time has no price is refused before anything is sent

    def _start(self, shipment: Shipment) -> None:
        lessor = self.lessor
        stays = [f"{name} stays here: on the worker, uses of it do nothing" for name in shipment.ghosts]
        answer = lessor.client.call(
            "run_start",
            name=lessor.options.name or "the whole cell",
            where="the whole cell",
            strategy="single: on one worker, not split",
            budget=None if lessor.options.budget is None else lessor.options.budget.to_dict(),
            backend=lessor.backend,
            source=lessor.source,
            passes=1,
            workers=lessor.options.workers,
            keep=False,
            share=lessor.options.share(),
            notices=[*shipment.caveats, *stays, f"paid by time, at most {self.limit_s:g} s; its FLOPs are not known"],
        )
        lessor.run_id = answer["run_id"]
        lessor.client.hint = "`%depin up`, then run the cell again."

    def _attempt(self, shipment: Shipment, state: State) -> Results | None:
        """The cell's one part, None when its worker was lost. The entry stays open for its state."""
        spec = EntrySpec(
            program=hashlib.sha256(shipment.program).hexdigest(),
            blobs=tuple(shipment.blobs),
            strategy=StrategyConfig(name="sync", solo=True),
            total=1,
            seed=0,
            flops_per_iteration=0,
            seconds_per_iteration=1.0,
            memory_bytes=2 * state.nbytes(),
            limit_s=self.limit_s,
        )
        lessor = self.lessor
        self._said = 0
        lessor.open(shipment, spec, state)
        try:
            lessor.feed([Unit(0, pack(0), 1)], closed=True)
            while True:
                self._listen(POLL_S)
                results = lessor.results(0.0)
                if results.error is not None:
                    self._listen(0.0)
                    raise results.error
                if results.parts:
                    self._listen(0.0)
                    return results
                if results.state == "solo-lost":
                    return None
        except KeyboardInterrupt:
            lessor.close("interrupt")
            raise

    def _listen(self, timeout_s: float) -> None:
        """Shows what has come, in order."""
        answer = self.lessor.client.call("output", run=self.lessor.run_id, entry=self.lessor.entry, after=self._said, timeout_s=timeout_s)
        for chunk in answer["chunks"]:
            self._said += 1
            try:
                channel, payload = decode(chunk, max_bytes=MAX_CHUNK_BYTES)
            except (CodecError, ValueError, TypeError):
                continue
            show(channel, payload, self.space)

    def _finish(self, results: Results, shipment: Shipment) -> None:
        part = results.parts[0]
        state = self.lessor.close("done")
        try:
            left = self._opened(part.left, state)
            error = decode(part.logs[0], max_bytes=MAX_LEFT_BYTES)["error"]
        except (CodecError, LookupError, TypeError) as wrong:
            raise HubError(f"what the worker sent back can't be read: {wrong}; nothing of it is in the notebook") from None
        self.undo = bind(left, self.space, anchors=self._anchors, roots=shipment.roots)
        self._grads(shipment, state)
        self.missing = left.missing
        if self.missing:
            show("err", f"depin: could not come back from the worker: {'; '.join(self.missing)}\n", self.space)
        if error is not None:
            raise rebuilt(error, self.space).with_traceback(None)

    @staticmethod
    def _grads(shipment: Shipment, state: State) -> None:
        for slot, _, tensor in shipment.roots.slots():
            if tensor.requires_grad and f"{slot}.grad" not in state.tensors:
                tensor.grad = None

    # --- a hostile answer ---------------------------------------------------------------------------

    def _opened(self, data: bytes, state: State) -> Left:
        """The names and contents that the worker sent, checked. Raises CodecError."""
        message = decode(data, max_bytes=MAX_LEFT_BYTES)
        keys = {"nodes": list, "names": dict, "contents": dict, "touched": list, "deleted": list, "missing": list}
        if type(message) is not dict or set(message) != set(keys) or any(type(message[k]) is not kind for k, kind in keys.items()):
            raise CodecError("not what a cell leaves")
        texts = [*message["touched"], *message["deleted"], *message["missing"], *message["names"]]
        if not all(type(text) is str for text in texts):
            raise CodecError("not names")
        made, failed = self._defined()
        decoder = Decoder(message["nodes"], self._anchors.objects, lambda name: made.get(name, self._known(name)))
        allowed = bound_names(self.tree) | {n for n in self.space if not n.startswith("__")}
        missing = [*(text[:200] for text in message["missing"][:100]), *failed]
        names: dict[str, Any] = {}
        for name, index in message["names"].items():
            value = decoder.known(lambda: (decoder.value(index),), name, missing) if name in allowed else None  # noqa: B023
            if value is not None:
                names[name] = value[0]
        contents: dict[int, Any] = {}
        for number, held in message["contents"].items():
            what = f"what a {type(decoder.anchor(number)).__name__} holds"
            value = decoder.known(lambda: (self._content(decoder, number, held),), what, missing)  # noqa: B023
            if value is not None:
                contents[number] = value[0]
        generators = State(
            {k: t for k, t in state.tensors.items() if state.kinds[k] == RNG},
            {k: kind for k, kind in state.kinds.items() if kind == RNG},
            {k: v for k, v in state.plain.items() if k.startswith("rng/")},
        )
        deleted = tuple(name for name in message["deleted"] if name in bound_names(self.tree))
        return Left({**made, **names}, contents, state, generators, tuple(message["touched"]), deleted, tuple(missing), None)

    def _defined(self) -> tuple[dict[str, Any], list[str]]:
        """The cell's own functions, classes and imports, made here from the user's text; what can't be made is named."""
        made: dict[str, Any] = {}
        failed: list[str] = []
        before = dict(self.space)
        for statement in definitions(self.tree):
            module = ast.Module(body=[statement], type_ignores=[])
            try:
                exec(compile(module, self.filename, "exec", dont_inherit=True), self.space)  # a definition of the user's own cell
            except Exception as error:
                failed.append(f"{getattr(statement, 'name', ast.unparse(statement))} ({type(error).__name__} here)")
        for name in list(self.space):
            if name not in before or self.space[name] is not before[name]:
                made[name] = self.space[name]
                if name in before:
                    self.space[name] = before[name]
                else:
                    del self.space[name]
        return {n: v for n, v in made.items() if not n.startswith("__")}, failed

    def _known(self, name: str) -> Any:
        value = self.space.get(name)
        if is_own(value):
            return value
        return next((c for c in self._anchors.objects if kind_of(c) == "code" and getattr(c, "__name__", "") == name), None)

    def _content(self, decoder: Decoder, number: Any, held: Any) -> Any:
        """One object's new content, of the kind that it has here."""
        obj = decoder.anchor(number)
        if type(held) is not list or len(held) != 2 or held[0] != kind_of(obj):
            raise CodecError("a content of another kind than its object")
        kind, value = held
        if kind == "tensor":
            if not isinstance(value, torch.Tensor):
                raise CodecError("not a tensor")
            return value.requires_grad_(obj.requires_grad)
        if kind in ("array", "bytearray"):
            if type(value) is not (bytes if kind == "bytearray" else type(obj)):
                raise CodecError("not an array or bytes")
            return value
        if kind == "generator":
            return value  # checked by the generator itself, which refuses what isn't a state of its own
        if kind == "dict":
            return decoder.pairs(value)
        if kind in ("list", "set", "deque"):
            return decoder.many(value)
        if type(value) is not dict or not all(type(k) is str for k in value):
            raise CodecError("an object's content is malformed")
        if kind == "instance":
            return {name: decoder.value(index) for name, index in value.items()}
        return self._module(decoder, obj, value)

    @staticmethod
    def _module(decoder: Decoder, obj: torch.nn.Module, value: dict[str, Any]) -> Any:
        parts = {"parameters": torch.nn.Parameter, "buffers": torch.Tensor, "modules": torch.nn.Module}
        if set(value) != {*parts, "own", "training"} or not all(type(value[k]) is dict for k in (*parts, "own")):
            raise CodecError("a module's content is malformed")
        made: dict[str, Any] = {k: {n: decoder.value(i) for n, i in value[k].items()} for k in (*parts, "own")}
        for part, kind in parts.items():
            if not all(v is None or isinstance(v, kind) for v in made[part].values()):
                raise CodecError(f"a module's {part} are something else")
        here = content(obj)["own"]
        made["own"] = {**{k: v for k, v in here.items() if k not in made["own"]}, **made["own"]}
        return {**made, "training": bool(value["training"])}


def _in_function(tree: ast.Module, node: ast.AST) -> bool:
    inner = (n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))
    return any(node in ast.walk(function) for function in inner)
