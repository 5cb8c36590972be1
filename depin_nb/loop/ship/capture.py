"""Ships what the worker half reads: one pickle graph that keeps every alias, with tensors outside it.

The kernel writes programs and only workers open them; the other way nothing is ever pickled. Tensors leave the pickle: contents that
training changes travel as the run's `State`, all others as blobs by sha256, so that a dataset reaches a worker once. Objects that
can't or mustn't leave (open files, progress bars, writers, locks) arrive as ghosts: every use of them is silent there. What looks like
a secret is withheld: every use of that raises.
"""

from __future__ import annotations

import ast
import io
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.utils.data import Dataset

from ...core.codec import encode
from ...core.errors import ShipError
from ..output import surroundings
from ..source import Opener
from ..split.callees import Callees
from ..values import Ghost, tensors_in
from .culprit import culprit
from .devices import mentioned
from .hooks import filled_by_hooks, hooks_of
from .labels import Labels
from .local_modules import by_value, contents, local_modules
from .manifest import Item, Manifest, kind_of, sorted_items
from .objects import Roots
from .packages import needed
from .pickling import STATEFUL, Finder, Found, Scope, is_ghost, picklable
from .program import FORMAT
from .secrets import Withheld, keys_in, redacted, text_in, without_secrets
from .shipper import Shipper

LOOP_DATA, DATASET = "the loop's own data", "dataset"
_MAX_GHOSTED = 32  # parts of plain objects that can't be sent: more of them means that the object itself isn't meant to


@dataclass
class Shipment:
    """A program as bytes, the blobs that it refers to, and what was left behind. `roots` are the user's own objects.

    `caveats`: sentences for the plan. `owned`: names of containers that only hooks on the worker fill. `compiled`: names of models and
    functions that need a compiler.
    """

    program: bytes
    blobs: dict[str, bytes]
    roots: Roots
    ghosts: dict[str, Any]
    manifest: Manifest = Manifest()
    caveats: tuple[str, ...] = ()
    owned: tuple[str, ...] = ()
    compiled: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        return len(self.program) + sum(map(len, self.blobs.values()))


def numeric_flags() -> dict[str, Any]:
    return {
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "matmul": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
    }


def ship(
    *,
    names: dict[str, Any],
    space: dict[str, Any],
    opener: Opener,
    callees: Callees,
    loop: ast.For,
    filename: str,
    solo: bool,
    first: int,
    carried: tuple[str, ...],
    grads: bool,
    facts: dict[str, Any],
    shared: bool,
    tensors: Iterable[torch.Tensor] = (),
    send: Iterable[str] = (),
) -> Shipment:
    """One program from the names that the worker half reads. `space` is the globals of the user's functions; `shared`: the loop
    stands in a cell, so those globals are its own names too. `facts["stepped"]`: schedulers, or their labels. `tensors`: those beside
    the models that the body changes in place, as far as its text tells. `send`: names that travel although they look like secrets.

    Raises ShipError naming what can't leave. Nothing of the user's is changed.
    """
    modules = local_modules()
    env = dict(names)
    scope = Scope(space, env if shared else {"__name__": "__main__"}, modules, frozenset(send))
    with by_value(modules):
        found = Found()
        ghosts, items = _look(env, scope, found, opener)
        parts = _modules(scope, found, loop)
        labels = Labels(names, space)
        roots = _roots(found, labels, tensors)
        roots.carried, roots.grads = carried, grads
        mutable = {id(t) for _, _, t in roots.slots()}
        for optimizer in roots.optimizers.values():
            mutable.update(id(v) for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor))
        kept = {id(names[n]) for n in facts.get("accumulators", ()) if n in names}
        kept.update(id(tensor) for metric in found.metrics.values() for tensor in tensors_in(getattr(metric, "__dict__", None)))
        roots.watched = {labels.of(t): t for key, t in found.tensors.items() if key not in mutable and key not in kept and t.is_leaf}
        hooks = hooks_of(found.tensors.values())
        owned = filled_by_hooks(roots.modules.values(), {n: v for n, v in names.items() if n in env and n not in ghosts})
        file = io.BytesIO()
        shipper = Shipper(file, scope, found, mutable)
        held = [roots.modules, roots.optimizers, roots.schedulers, roots.scalers, roots.tensors, roots.watched]
        try:
            shipper.dump((env, opener, held, parts, hooks))
        except ShipError:
            raise
        except Exception as error:
            raise _unshippable(error, "the loop's names") from error
    sent_loop, lines = without_secrets(loop)
    packages = needed(found.roots - {name.split(".")[0] for name in modules})
    program = encode(
        {
            "format": FORMAT,
            "graph": file.getvalue(),
            "table": shipper.table,
            "loop": pickle.dumps(sent_loop),
            "filename": filename,
            "sources": [[*key, source if key[2] in scope.send else redacted(source)] for key, source in callees.sources.items()],
            "flags": {**numeric_flags(), **surroundings()},
            "carried": list(carried),
            "grads": grads,
            "solo": solo,
            "first": first,
            "facts": {**facts, "stepped": [n for n, s in roots.schedulers.items() if any(o is s or o == n for o in facts["stepped"])]},
            "packages": packages,
            "owned": sorted(owned),
            "devices": sorted(found.devices | mentioned(found.texts, found.used, loop)),
        }
    )
    texts = [text_in("the loop", line) for line in lines]
    for (_, first, name), source in callees.sources.items():
        texts += [text_in(f"{name}()", line) for line in keys_in(source, first)] if name not in scope.send else []
    withheld = tuple(dict.fromkeys([*scope.withheld.values(), *texts]))
    stays = tuple(f"{name} ({type(value).__name__})" for name, value in ghosts.items()) + tuple(dict.fromkeys(scope.ghosted.values()))
    compiled = [f"{labels.known(key) or 'a model'} ({backend})" for key, backend in found.compiled.items()]
    return Shipment(
        program,
        shipper.blobs,
        roots,
        ghosts,
        Manifest(sorted_items(items), withheld, stays, tuple(packages.items())),
        _caveats(found, labels, frozenset(facts["stored"])),
        tuple(owned),
        tuple(c for c in dict.fromkeys(compiled) if "inductor" in c),
    )


def _look(env: dict[str, Any], scope: Scope, found: Found, opener: Opener) -> tuple[dict[str, Any], list[Item]]:
    """Looks at every name by itself; replaces in `env` what stays, so that the rest can be written. Returns what stays, and the items."""
    ghosts: dict[str, Any] = {}
    items: list[Item] = []
    finder = Finder(scope, found)
    finder._secrets(env)
    for name, value in list(env.items()):
        if is_ghost(value):
            ghosts[name], env[name] = value, Ghost(name)
            continue
        finder.at = name
        try:
            nbytes = finder.look(value)
        except Exception as error:
            let_go = _let_go(name, value, scope, error)
            finder = Finder(scope, found, name)  # the other's memo holds what it didn't finish
            if let_go:
                nbytes = finder.look(value)
            else:
                ghosts[name], env[name] = value, Ghost(name)
                continue
        if id(value) in scope.withheld:
            env[name] = Withheld(scope.withheld[id(value)])
        else:
            items.append(Item(name, kind_of(value, scope.modules), nbytes))
    finder.at = ""
    try:
        nbytes = finder.look(opener)
    except Exception as error:
        found_at = culprit(opener, lambda part: picklable(part, scope) is not None)
        raise _unshippable(error, f"the loader's {found_at.path.removeprefix('.')}") from error
    within = Found()
    Finder(scope, within).look(opener)
    items.append(Item(LOOP_DATA, DATASET if within.data or within.tensors or within.arrays else "values", nbytes))
    return ghosts, items


def _let_go(name: str, value: Any, scope: Scope, error: Exception) -> bool:
    """Makes ghosts of the parts of a plain object that can't be sent; False when the object as a whole can't.

    Raises ShipError with the path to the part when it belongs to something that trains, loads or computes.
    """
    for _ in range(_MAX_GHOSTED):
        at = culprit(value, lambda part: picklable(part, scope) is not None)
        needed_by = next((o for o in (*at.owners, at.value) if isinstance(o, (*STATEFUL, Dataset, type))), None)
        if needed_by is not None or not at.owners:
            if needed_by is not None or isinstance(value, (Dataset, type)) or callable(value):
                raise _unshippable(error, f"`{name}{at.path}`", name, type(at.value).__name__) from error
            return False
        scope.let_go(at.value, f"{name}{at.path} ({type(at.value).__name__})")
        again = picklable(value, scope)
        if again is None:
            return True
        error = again
    return False


def _unshippable(error: Exception, what: str, name: str = "", kind: str = "") -> ShipError:
    return ShipError(
        f"{what} can't be sent to a worker: {type(error).__name__}: {error}",
        name=name,
        kind=kind,
        hint="Keep open files, locks, sockets and generators out of models, optimizers and datasets (or make them in __getstate__).",
    )


def _modules(scope: Scope, found: Found, loop: ast.For) -> dict[str, dict[str, Any]]:
    """What the user's own modules hold that the program mentions, for each module that is used as an object."""
    mentioned_names = {n.attr for n in ast.walk(loop) if isinstance(n, ast.Attribute)}
    parts: dict[str, dict[str, Any]] = {}
    while True:
        before = len(found.modules), len(found.used)
        for name, module in list(found.modules.items()):
            parts.setdefault(name, {})
            for key, value in contents(module, mentioned_names | found.used).items():
                if key in parts[name]:
                    continue
                parts[name][key] = Ghost(key)
                finder = Finder(scope, found, key)
                finder._secrets({key: value})
                if not is_ghost(value) and picklable(value, scope) is None:
                    finder.look(value)
                    parts[name][key] = value
        if before == (len(found.modules), len(found.used)):
            return parts


def _roots(found: Found, labels: Labels, tensors: Iterable[torch.Tensor]) -> Roots:
    """Every root under the user's name for it; submodules belong to their outermost module."""
    roots = Roots()
    inner = {id(child) for m in found.stateful.values() if isinstance(m, torch.nn.Module) for child in m.modules() if child is not m}
    for obj in found.stateful.values():
        if isinstance(obj, torch.nn.Module):
            if id(obj) not in inner:
                roots.modules[labels.of(obj)] = obj
        elif isinstance(obj, Optimizer):
            roots.optimizers[labels.of(obj)] = obj
        elif isinstance(obj, GradScaler):
            roots.scalers[labels.of(obj)] = obj
        else:
            roots.schedulers[labels.of(obj)] = obj
    known = {id(t) for _, _, t in roots.slots()}
    changed = {id(t): t for t in tensors if id(t) in found.tensors and id(t) not in known}
    for leaf in {**found.leaves, **changed}.values():
        roots.tensors[labels.of(leaf)] = leaf
    return roots


def _caveats(found: Found, labels: Labels, stored: frozenset[str]) -> tuple[str, ...]:
    """Sentences for the plan. A name that the loop assigns itself loses nothing that matters."""
    said = []
    for tensor in [t for key, t in found.detached.items() if labels.known(key) not in stored][:3]:
        name = labels.known(id(tensor)) or f"a tensor of shape {tuple(tensor.shape)}"
        said.append(f"`{name}` was computed before the loop: it arrives without that history, so no gradient flows back through it")
    return tuple(said)
