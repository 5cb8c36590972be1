"""What a loop iterates, drawn: ahead or in step, given back, and how its data travels."""

import collections
import dataclasses
import itertools
import random
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from cells_over import BODY, SETUP
from comparing import compare
from hubs import InProcessHub
from inprocess import _remember, generators, leased, local, run_in_folder, seed
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, RandomSampler, Sampler, Subset, TensorDataset

from depin_nb.core.errors import ConfigError, DatasetDiffers, RefusedLoop, ShipError
from depin_nb.loop.cell import LeasedCell
from depin_nb.loop.generators import Generators, Snapshot, advance
from depin_nb.loop.source import Fetching, Remote, Source, pack, unpack, wrap
from depin_nb.loop.source import policy as policies
from depin_nb.loop.source.foresee import Foresight, foresee
from depin_nb.loop.source.forms import Forms
from depin_nb.loop.source.recipe import build, recipe

X = torch.arange(40.0).reshape(20, 2)
DATA = TensorDataset(X, X[:, 0])


def drawn(iterable, *, solo=True, ahead=4, **options):
    """All items of a source as a worker opens them, and how many of them had to wait. The generators end where a local run leaves them."""
    source = Source(iterable, **options)
    assert source.peek() is not None
    source.settle(solo=solo)
    items, waited = [], 0
    while not source.over():
        units = source.take(ahead)
        if not units:
            assert source.blocked
            waited += 1
            source.step()
            units = source.take(1)
        items += [source.opener.open(unpack(pack(data)), len(items) + i, lambda v: v) for i, (data, _) in enumerate(units)]
    source.finish(len(items), done=True)
    return items, waited


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b


def loader(**options):
    return DataLoader(DATA, **{"batch_size": 6, "shuffle": True, **options})


def stream(*, draws):
    for i in range(6):
        yield X[i] + (torch.rand(2) if draws else 0)


class Late(Sampler):
    def __len__(self):
        return 8

    def __iter__(self):
        for _ in range(8):
            yield random.randrange(20)


class Endless(IterableDataset):
    def __iter__(self):
        return iter(X)


ITERABLES = {
    "range": (lambda: range(7), 0),
    "list": (lambda: [1, 2.5, "three"], 0),
    "tuple of tensors": (lambda: X.split(6), 0),
    "tensor": (lambda: X, 0),
    "array": (lambda: X.numpy(), 0),
    "deque": (lambda: collections.deque([X, X + 1]), 0),
    "dict": (lambda: {"a": 1, "b": 2}, 0),
    "items": (lambda: {"a": X}.items(), 0),
    "dataset": (lambda: DATA, 0),
    "subset": (lambda: Subset(DATA, [3, 1]), 0),
    "loader": (loader, 0),
    "loader without batching": (lambda: loader(batch_size=None), 0),
    "sampler that draws late": (lambda: loader(sampler=Late(), shuffle=None, batch_size=2), 4),
    "enumerate": (lambda: wrap(enumerate, loader(), start=3), 0),
    "zip": (lambda: wrap(zip, loader(), loader(batch_size=7), range(9)), 0),
    "islice": (lambda: wrap(itertools.islice, loader(), 1, None, 2), 0),
    "chain": (lambda: wrap(itertools.chain, loader(), loader(batch_size=11)), 2),  # the seam, and what may be another one
    "chain from a list": (lambda: wrap(itertools.chain.from_iterable, [range(3), X.split(9)]), 0),
    "cycle": (lambda: wrap(zip, range(9), wrap(itertools.cycle, loader())), 0),
    "repeat": (lambda: wrap(itertools.repeat, (X, 1), 3), 0),
    "product": (lambda: wrap(itertools.product, [1, 2], [X, X + 1], repeat=1), 0),
    "reversed": (lambda: wrap(reversed, [X, 2]), 0),
    "map": (lambda: wrap(map, lambda batch: batch[0], loader()), 1),
    "generator": (lambda: wrap(stream, draws=False), 6),  # it mentions something random
    "expression": (lambda: (x for x in [X, X]), 1),
    "generator that draws": (lambda: wrap(stream, draws=True), 6),
    "iterable dataset": (lambda: DataLoader(Endless(), batch_size=6), 1),
    "live iterator": (lambda: iter(loader()), 0),
    "of a list": (lambda: iter([X, X]), 0),
    "fetching": (lambda: Fetching(range(7), iter(loader()), lambda: iter(loader())), 1),
    "fetching to the end": (lambda: Fetching(range(99), iter(loader())), 0),
}


@pytest.mark.parametrize("name", ITERABLES)
def test_items_and_generators_are_those_of_local_iteration(name):
    make, waits = ITERABLES[name]
    seed()
    items = list(make())
    ours = generators()
    seed()
    theirs, waited = drawn(make(), leaves=False)
    assert same(items, theirs) if name != "array" else np.array_equal(items, theirs)
    assert generators() == ours
    assert waited <= waits


@pytest.mark.parametrize("name", ITERABLES)
def test_a_source_that_is_not_run_leaves_the_generators(name):
    iterable = ITERABLES[name][0]()
    seed()
    ours = generators()
    before = Generators(iterable)
    source = Source(iterable, before=before, leaves=False)
    source.peek()
    source.finish(0, done=False)
    before.restore()
    assert generators() == ours


def test_a_held_generator_goes_back_to_where_the_loop_was_left():
    def made():
        g = torch.Generator().manual_seed(1)
        return g, loader(sampler=RandomSampler(DATA, replacement=True, num_samples=100, generator=g), shuffle=None)

    g, ours = made()
    for _ in itertools.islice(ours, 4):
        pass
    h, theirs = made()
    source = Source(theirs)
    source.peek()
    source.settle(solo=True)
    assert len(source.take(12)) == 12
    assert not torch.equal(g.get_state(), h.get_state())
    source.finish(4, done=False)
    assert torch.equal(g.get_state(), h.get_state())


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_what_was_drawn_ahead_of_a_live_iterator_comes_back(taken):
    seed()
    batches = list(loader(batch_size=4))
    seed()
    it = iter(loader(batch_size=4))
    source = Source(it)
    source.peek()
    source.settle(solo=True)
    source.take(4)
    source.finish(taken, done=False)
    assert same(batches[taken:], list(it))


@pytest.mark.parametrize("kind", ["loader", "generator"])
def test_a_fetched_iterator_is_live_afterwards(kind):
    items = list(range(8))
    it = iter(DataLoader(items, batch_size=None)) if kind == "loader" else (i for i in items)
    fetching = Fetching(range(8), it)
    source = Source(fetching, leaves=True)
    source.peek()
    source.settle(solo=False)
    source.take(6)
    source.passed(3)
    source.finish(3, done=False)
    assert [next(fetching.iterator), *fetching.iterator] == [3, 4, 5, 6, 7]
    assert (fetching.iterator is it) == (kind == "loader")


def test_fetching_iterates_by_itself_as_in_a_source():
    made = lambda: Fetching(range(5), iter([10, 11]), lambda: iter([20, 21]))  # noqa: E731
    assert list(made()) == [(0, 10), (1, 11), (2, 20), (3, 21), (4, 20)]
    assert drawn(made())[0] == list(made())
    assert list(Fetching(range(5), iter([10]))) == [(0, 10)]


def test_a_generator_that_surprises_is_said():
    def sometimes():
        hidden = {"draw": torch.rand}
        for i in range(6):
            if i == 4:
                hidden["draw"](1)
            yield i

    with pytest.warns(UserWarning, match="item 4"):
        items, _ = drawn(wrap(sometimes))
    assert items == [0, 1, 2, 3, 4, 5]


def test_an_exception_of_the_iterable_waits_for_its_turn():
    def breaks():
        yield 1
        yield 2
        raise OSError("torn")

    source = Source(wrap(breaks), leaves=False)
    source.peek()
    source.settle(solo=False)
    assert [data[0][1] for data, _ in source.take(5)] == [1, 2]
    assert source.over()
    with pytest.raises(OSError, match="torn"):
        source.failed()


def foreseen(generator):
    next(generator)
    return foresee(generator)


def once(n):
    yield from torch.randperm(n).tolist()


def again(n):
    while True:
        yield from once(n)


def over(loader):
    while True:
        for batch in loader:  # noqa: UP028
            yield batch


def helper():
    return np.random.rand()


def helper_of(_):
    return helper()


def calls():
    for _ in range(3):
        yield helper()


def slices():
    for i in range(3):
        yield X[i]


FORESEEN = {
    "after its only draw": (lambda: once(4), Foresight.UNKNOWN),
    "draws again and again": (lambda: again(4), Foresight.LIKELY),
    "goes over a loader anew": (lambda: over(loader()), Foresight.LIKELY),
    "calls what draws": (calls, Foresight.LIKELY),
    "slices": (slices, Foresight.UNKNOWN),
    "list": (lambda: iter([1, 2]), Foresight.NEVER),
    "enumerate of a list": (lambda: enumerate([1, 2]), Foresight.NEVER),
    "zip with what draws": (lambda: zip([1, 2], calls(), strict=False), Foresight.LIKELY),
    "map of what draws": (lambda: map(helper_of, [1, 2]), Foresight.LIKELY),
}


@pytest.mark.parametrize("name", FORESEEN)
def test_what_a_draw_may_do_is_foreseen(name):
    make, expected = FORESEEN[name]
    assert foreseen(make()) is expected


Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass
class Record:
    x: object
    note: str = "a"


class Output(collections.OrderedDict):
    pass


ITEMS = [3, X, (X, [1, {"a": X}]), Point(X, 1), Record(X), Output(a=X), {"p": Point(1, 2), "s": {1, 2}}, [Record(Point(X, X))]]


@pytest.mark.parametrize("item", ITEMS, ids=lambda v: type(v).__name__)
def test_items_keep_their_types(item):
    forms = Forms()
    back = forms.opened(unpack(pack(forms.closed(item))))
    assert type(back) is type(item)
    assert repr(back) == repr(item)


def test_items_that_require_gradients_still_do():
    forms = Forms()
    leaf = torch.ones(2, requires_grad=True)
    assert forms.opened(unpack(pack(forms.closed([leaf]))))[0].requires_grad
    with pytest.raises(RefusedLoop, match="graph"):
        forms.closed([leaf * 2])


def test_what_cannot_travel_is_refused_by_name():
    with pytest.raises(RefusedLoop, match="lock objects") as refused:
        Source(wrap(lambda: (__import__("threading").Lock() for _ in range(2)))).peek()
    assert "->" in str(refused.value)


def test_only_what_moved_travels():
    before = Snapshot.now()
    assert before.moved() is None
    torch.rand(1)
    moved = before.moved()
    assert set(moved) == {"torch"}
    assert len(pack([moved])) < 5500
    after = generators()
    before.restore()
    advance(unpack(pack(moved)))
    assert generators() == after


def test_endless_needs_a_way_out():
    for iterable in (wrap(itertools.count), wrap(itertools.cycle, [1]), wrap(enumerate, wrap(itertools.repeat, X)), itertools.cycle([1])):
        with pytest.raises(RefusedLoop, match="never ends"):
            Source(iterable, leaves=False)
        Source(iterable, leaves=True)
    Source(wrap(zip, wrap(itertools.count), range(3)), leaves=False)


def test_wrapped_calls_reach_the_users_functions_as_themselves():
    given = []
    wrap(given.append, wrap(enumerate, [1]))
    assert type(given[0]) is enumerate
    with pytest.raises(TypeError):
        wrap(enumerate, 3)
    assert wrap(sorted, wrap(zip, [2, 1])) == [(1,), (2,)]


# --- how data travels -------------------------------------------------------------------------------------------


class Files(Dataset):
    """Numbers in a file, one a line."""

    def __init__(self, root, scale=1.0):
        self.root, self.scale = root, scale
        self.rows = [float(v) for v in Path(root).read_text().split()]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return torch.tensor([self.rows[i] * self.scale])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text("1 2 3 4")
    return path


def test_a_recipe_builds_the_same_dataset_and_meets_another_one(file):
    function, arguments = recipe(Files(str(file), 2.0))
    assert function is build
    assert arguments[1] == {"root": str(file), "scale": 2.0}
    assert same(list(build(*arguments)), list(Files(str(file), 2.0)))
    for text, words in (("1 2 3", "3 samples"), ("9 2 3 4", "another first sample")):
        file.write_text(text)
        with pytest.raises(DatasetDiffers, match=words) as differs:
            build(*arguments)
        assert str(file) in str(differs.value)
        assert "->" in str(differs.value)
    file.unlink()
    with pytest.raises(DatasetDiffers, match="FileNotFoundError"):
        build(*arguments)


def test_a_recipe_may_be_the_datasets_own(file):
    class Renamed(Files):
        def __init__(self, path):
            super().__init__(path)

        def depin_arguments(self):
            return {"path": self.root}

    assert recipe(Renamed(str(file)))[1][1] == {"path": str(file)}
    with pytest.raises(ShipError, match="`tensors`"):
        recipe(DATA)


def test_auto_sends_samples_of_what_is_big_or_stuck(monkeypatch, file):
    assert policies.choose_way(DATA, "auto") == ("whole", "")
    stuck = Files(str(file))
    stuck.open = open(file)  # noqa: SIM115
    assert policies.choose_way(stuck, "auto")[0] == "samples"
    stuck.open.close()
    monkeypatch.setattr(policies, "WHOLE_BYTES", 100)
    assert policies.choose_way(DATA, "auto")[0] == "samples"
    assert policies.choose_way(DATA, "whole")[0] == "whole"
    with pytest.raises(ConfigError, match="whol"):
        Source(range(2), way="whol")


class WayHub(InProcessHub):
    """Notes each blob that isn't there yet."""

    def __init__(self, way, blobs):
        super().__init__()
        self.data, self.blobs, self.put = way, blobs, []

    def open(self, shipment, spec, state):
        self.put += [digest for digest in shipment.blobs if digest not in self.blobs]
        self.units = 0
        return super().open(shipment, spec, state)

    def feed(self, units, *, closed):
        self.units += sum(len(u.data) for u in units)
        return super().feed(units, closed=closed)


def leased_in(way, cell, blobs=None, setup=SETUP):
    hub = WayHub(way, {} if blobs is None else blobs)
    _remember("<cell>", cell)

    def run(ns):
        import ast

        LeasedCell(cell, ns, "<cell>").run(hub, lambda tree: exec(compile(ast.fix_missing_locations(tree), "<cell>", "exec"), ns))

    return run_in_folder(setup, run, {"rows.txt": "3 1 2 5 4 6"}), hub


PATHS = """
from pathlib import Path
class Lines(Dataset):
    def __init__(self, root, scale=0.1):
        self.root, self.scale = root, scale
        self.rows = [float(v) for v in Path(root).read_text().split()]
    def __len__(self):
        return len(self.rows)
    def __getitem__(self, i):
        return self.scale * self.rows[i] * torch.ones(4) + 0.01 * torch.randn(4), torch.tensor(i % 2)
lines = Lines("rows.txt")
"""
OVER_LINES = f"""
loader = DataLoader(Subset(lines, range(5)), batch_size=2, shuffle=True)
for epoch in range(2):
    for x, y in loader:{BODY}        print(len(loader.dataset))
"""


@pytest.mark.parametrize("way", ["whole", "samples", "worker"])
def test_each_way_is_exact(way):
    setup = SETUP + PATHS.replace("lines = ", "from pathlib import Path\nPath('rows.txt').write_text('3 1 2 5 4 6')\nlines = ")
    ours, text, after, error = local(setup, OVER_LINES)
    assert error is None
    (theirs, leased_text, leased_after, leased_error), hub = leased_in(way, OVER_LINES, setup=setup)
    if leased_error is not None:
        raise leased_error
    assert leased_text == text
    compare(ours, theirs)
    assert leased_after == after
    note = hub.plans[0].source_note
    assert {"whole": "", "samples": "fetched here", "worker": "builds"}[way] in note


def test_only_samples_and_no_dataset_travel():
    cell = f"loader = DataLoader(data, batch_size=8)\nfor x, y in loader:{BODY}"
    whole, samples = leased_in("whole", cell)[1], leased_in("samples", cell)[1]
    assert len(whole.put) > len(samples.put)
    assert samples.units > whole.units + 24 * 16


def test_a_body_that_reads_a_dataset_that_is_not_there_says_what_to_do():
    cell = f"loader = DataLoader(data, batch_size=8)\nfor x, y in loader:{BODY}        print(data[0][0].sum().item())\n"
    (*_, error), _ = leased_in("samples", cell)
    assert isinstance(error, ShipError)
    assert "--data whole" in str(error)


def test_a_dataset_reaches_the_hub_once():
    """The second pass, another cell and a rerun send none of the blobs again."""
    blobs = {}
    cell = f"loader = DataLoader(data, batch_size=8, shuffle=True)\nfor epoch in range(2):\n    for x, y in loader:{BODY}"
    _, first = leased_in("whole", cell, blobs)
    assert first.entries == 2
    assert len(first.put) == len(set(first.put)) > 0
    _, second = leased_in("whole", cell, blobs)
    assert second.put == []
    _, other = leased_in("whole", f"for x, y in DataLoader(Subset(data, range(9)), batch_size=3):{BODY}", blobs)
    assert other.put == []


def test_a_loop_over_models_needs_one_worker():
    source = Source([torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)])
    assert "models" in source.solo
    assert Source(X.split(3)).solo == ""


def test_a_wrapped_dataset_is_built_by_its_parts(file):
    joined = ConcatDataset([Subset(Files(str(file)), [1]), Files(str(file), 3.0)])
    found = policies.stand_ins(joined, "worker")
    assert [kept.scale for kept, _ in found.values()] == [1.0, 3.0]


def test_remotes_say_what_they_are():
    with pytest.raises(AttributeError, match="stayed on a worker"):
        Remote().item


SNAPSHOTS = {
    "x, y in loader": 1,
    "i, (x, y) in enumerate(loader)": 1,
    "(x, y), _ in zip(loader, loader)": 1,
    "x, y in list(loader)": 1,
    "x, y in map(tuple, iter([[X[:4], Y[:4]]] * 9))": None,
}


@pytest.mark.parametrize("header", SNAPSHOTS)
def test_generators_are_not_looked_at_where_draws_are_known(header, monkeypatch):
    """A loop with twice the iterations takes as many looks."""
    setup = """
import torch, torch.nn as nn
from torch.utils.data import DataLoader, TensorDataset
X, Y = torch.randn({n}, 3), torch.randint(0, 2, ({n},))
loader = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)
model = nn.Linear(3, 2)
opt = torch.optim.SGD(model.parameters(), lr=0.1)
"""
    body = f"""
for {header}:
    opt.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    opt.step()
"""
    looks = []
    real = Snapshot.now.__func__
    monkeypatch.setattr(Snapshot, "now", classmethod(lambda cls: looks.append(1) or real(cls)))
    counts = []
    for n in (24, 48):
        looks.clear()
        *_, error, _ = leased(setup.format(n=n), body.replace("* 9", f"* {n // 4}"))
        assert error is None
        counts.append(len(looks))
    assert counts[0] == counts[1]
    assert SNAPSHOTS[header] in (None, counts[0])


class OnDisk(Dataset):
    """As torchvision's ImageFolder: paths in a list, read one by one."""

    def __init__(self, root):
        self.root = root
        self.samples = [(str(path), i % 2) for i, path in enumerate(sorted(Path(root).glob("*.pt")))]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        path, label = self.samples[index]
        return torch.load(path), label


class ByFolder(OnDisk):
    def __getitem__(self, index):
        return self._read(index), index % 2

    def _read(self, index):
        return torch.load(self.root / f"{index}.pt")


class InMemory(OnDisk):
    """As torchvision's MNIST: it has a folder and reads it once."""

    def __init__(self, root):
        super().__init__(root)
        self.data = [torch.load(path) for path, _ in self.samples]

    def __getitem__(self, index):
        return self.data[index], index % 2


@pytest.mark.parametrize(("kind", "read"), [(OnDisk, "OnDisk.samples"), (ByFolder, "ByFolder.root"), (InMemory, "")])
def test_a_dataset_of_local_files_travels_by_samples_to_other_machines(kind, read, tmp_path):
    for i in range(8):
        torch.save(torch.full((3,), float(i)), tmp_path / f"{i}.pt")
    dataset = kind(tmp_path)
    for each in (dataset, Subset(dataset, range(4)), ConcatDataset([dataset, dataset])):
        assert policies.choose_way(each, "auto") == ("whole", "")
        way, why = policies.choose_way(each, "auto", elsewhere=True)
        assert way == ("samples" if read else "whole")
        assert f"`{read}`" in why if read else why == ""
        assert policies.choose_way(each, "whole", elsewhere=True) == ("whole", "")


@pytest.mark.parametrize("kinds", [["local", "local"], ["local", "phone"], []])
def test_which_workers_share_the_disk(kinds, tmp_path):
    for i in range(8):
        torch.save(torch.full((3,), float(i)), tmp_path / f"{i}.pt")

    class Hub(InProcessHub):
        workers = [types.SimpleNamespace(kind=kind) for kind in kinds]

    setup = f"import torch\nfrom torch.utils.data import DataLoader\nloader = DataLoader(Files({str(tmp_path)!r}), batch_size=2)\n"
    setup += "model = torch.nn.Linear(3, 1)\nopt = torch.optim.SGD(model.parameters(), 0.1)"
    cell = "for x, y in loader:\n    opt.zero_grad()\n    (model(x).squeeze() - y).pow(2).mean().backward()\n    opt.step()\n"
    space, hub = {"__name__": "__main__", "Files": OnDisk}, Hub()
    exec(setup, space)
    LeasedCell(cell, space, "<cell>").run(hub, lambda tree: exec(compile(tree, "<cell>", "exec"), space))
    assert ("reads files of this machine" in hub.plans[0].source_note) is ("phone" in kinds)
