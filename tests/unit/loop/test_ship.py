"""What travels with a program: values as they are, nothing that must stay, everything that is needed, and the words for it."""

import ast
import json
import linecache
import os
import socket
import sys

import numpy as np
import pytest
import torch
from inprocess import leased, local

from depin_nb.core.codec import decode
from depin_nb.core.errors import MissingPackage, ShipError, WithheldError
from depin_nb.loop.ship import devices, packages
from depin_nb.loop.ship.capture import LOOP_DATA, ship
from depin_nb.loop.ship.compiled import uncompiled
from depin_nb.loop.ship.program import open_program
from depin_nb.loop.ship.secrets import Withheld, looks_secret, telling_name
from depin_nb.loop.ship.storages import shared_storages
from depin_nb.loop.source import Source
from depin_nb.loop.split.callees import Callees
from depin_nb.loop.values import Ghost

FACTS = {"stored": [], "conditional": [], "accumulators": [], "stepped": [], "counters": {}}
LOOP = ast.parse("for i in range(3):\n    pass").body[0]


def shipped(names, *, loop=LOOP, send=(), space=None, callees=None):
    source = Source(range(3))
    return ship(
        names=names,
        space={} if space is None else space,
        opener=source.opener,
        callees=callees or Callees(),
        loop=loop,
        filename="<cell>",
        solo=True,
        first=0,
        carried=(),
        grads=False,
        facts=FACTS,
        shared=True,
        send=send,
    )


def opened(names, **options):
    made = shipped(names, **options)
    with uncompiled():
        return made, open_program(made.program, made.blobs.__getitem__)


def sent_bytes(made):
    return made.program + b"".join(made.blobs.values())


# --- tensors and memory ------------------------------------------------------------------------------


def test_a_view_sends_itself_and_not_its_storage():
    big = torch.randn(1000, 100)
    made, program = opened({"row": big[0], "column": big[:, 3], "matrix": np.asarray(big)[5:7].T})
    assert made.nbytes < 30_000
    assert torch.equal(program.env["row"], big[0])
    assert torch.equal(program.env["column"], big[:, 3])
    assert np.array_equal(program.env["matrix"], np.asarray(big)[5:7].T)


def test_tensors_that_overlap_arrive_sharing_their_memory():
    w = torch.arange(12.0)
    table, tail = w.view(3, 4), w[8:]
    _, program = opened({"w": w, "table": table, "tail": tail, "other": torch.zeros(2)})
    env = program.env
    env["w"][9] = -1.0
    assert env["table"][2, 1] == -1.0
    assert env["tail"][1] == -1.0
    assert env["other"].untyped_storage().data_ptr() != env["w"].untyped_storage().data_ptr()


def test_pieces_beside_each_other_are_sent_once_and_not_tied():
    pieces = list(torch.randn(100, 10).split(10))
    assert shared_storages(pieces) == []
    made, program = opened({"pieces": pieces})
    assert 4000 < made.nbytes < 12_000
    assert all(torch.equal(a, b) for a, b in zip(pieces, program.env["pieces"], strict=True))


def test_a_sparse_tensor_arrives_as_it_is():
    sparse = torch.sparse_coo_tensor([[0, 2], [1, 0]], [3.0, 0.0], (3, 2), check_invariants=True)
    _, program = opened({"adjacency": sparse})
    assert program.env["adjacency"].is_sparse
    assert torch.equal(program.env["adjacency"].coalesce().values(), sparse.coalesce().values())


def test_a_tensor_that_loses_its_history_is_said():
    w = torch.ones(2, requires_grad=True)
    made, _ = opened({"scaled": w * 2, "w": w})
    assert len(made.caveats) == 1
    assert "`scaled` was computed before the loop" in made.caveats[0]


def test_opening_a_program_leaves_the_users_own_classes_alone():
    cell = """
for i in range(3):
    t.go(i)
print(seen, T.go is before, T.go.__globals__ is globals())
"""
    setup = """
import torch, torch.nn as nn, torch.nn.functional as F
X, Y, seen = torch.randn(8, 3), torch.zeros(8).long(), []
net = nn.Linear(3, 2)
opt = torch.optim.SGD(net.parameters(), 0.1)
class T:
    def go(self, i):
        opt.zero_grad()
        F.cross_entropy(net(X), Y).backward()
        opt.step()
        seen.append(i)
t, before = T(), T.go
"""
    ours, theirs = local(setup, cell), leased(setup, cell)
    assert theirs[3] is None
    assert theirs[1] == ours[1] == "[0, 1, 2] True True\n"


# --- what must stay ------------------------------------------------------------------------------------

AWS = "AKIA" + "ABCDEFGHIJKLMNOP"
PEM = "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIE\n"


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("password", "hunter22", True),
        ("DB_PASSWORD", "hunter22", True),
        ("apiKey", b"12345678", True),
        ("aws_secret_access_key", "abcdefgh", True),
        ("private_key", "abcdefgh", True),
        ("token", "0123456789abcdef", True),
        ("token", "<pad>", False),
        ("auth_token", "two words are no token", False),
        ("tokens", "0123456789abcdef", False),
        ("tokenizer_name", "bert-base-uncased-long", False),
        ("password", "", False),
        ("password_length", 12, False),
        ("secretary", "someone else", False),
        ("api", "key-like-but-named-otherwise", False),
    ],
)
def test_names_that_tell_a_secret(name, value, secret):
    assert telling_name(name, value) is secret


@pytest.mark.parametrize(
    ("value", "secret"),
    [
        (AWS, True),
        ("x " + "ghp_" + "a1" * 18, True),
        ("github_pat_" + "A1" * 15, True),
        ("sk-" + "proj-" + "a1B2" * 6, True),
        ("hf_" + "abcde" * 7, True),
        ("xoxb-" + "1234567890-abcdef", True),
        (PEM, True),
        ("eyJ" + "hbGciOiJIUzI1NiJ9.eyJ" + "zdWIiOiIxMjM0NSJ9.c2lnbmF0dXJl", True),
        ("a sentence about sk-learn and hf_models", False),
        ("cross-entropy-with-label-smoothing", False),
        (list(range(64)), False),
        ([1] * 64, False),
        ({"PATH": "/bin", "HOME": "/root", "USER": "me", "LANG": "C"}, True),
        ({"PATH": "/bin", "HOME": 3, "USER": "me", "LANG": "C"}, False),
        (os.environ, True),
    ],
)
def test_values_that_look_like_keys(value, secret):
    assert looks_secret(value) is secret


def test_wallets_are_secrets_however_they_are_kept():
    from solders.keypair import Keypair

    pair = Keypair()
    assert looks_secret(pair)
    assert looks_secret(list(bytes(pair)))
    assert looks_secret(tuple(json.loads(pair.to_json())))
    assert looks_secret(bytes(pair))
    assert looks_secret(str(pair))


class Config:
    def __init__(self):
        self.lr, self.password, self.nested = 0.1, "hunter-22", {"api_key": "k-1234567", "url": "https://example.org"}


def test_secrets_are_withheld_wherever_they_are_and_named():
    key = "sk-" + "live" * 8
    names = {"config": Config(), "hf_token": "hf_" + "abcde" * 7, "headers": ["a", key], "env": dict(os.environ, PATH="/bin", HOME="/root")}
    made, program = opened(names)
    blob = sent_bytes(made)
    for secret in (b"hunter-22", b"k-1234567", b"hf_abcde", key.encode()):
        assert secret not in blob
    assert made.manifest.withheld == ("hf_token", "config.password", "config.api_key", "headers", "env")
    assert program.env["config"].lr == 0.1
    assert program.env["config"].nested["url"] == "https://example.org"
    for value in (program.env["hf_token"], program.env["config"].password, program.env["env"]):
        assert type(value) is Withheld
        with pytest.raises(WithheldError, match="looks like a secret"):
            f"{value}"
        with pytest.raises(WithheldError):
            value.lower()


def test_a_key_in_source_text_does_not_travel():
    loop = ast.parse(f"for i in range(3):\n    call({AWS!r})").body[0]
    made = shipped({}, loop=loop)
    assert AWS.encode() not in sent_bytes(made)
    assert loop.body[0].value.args[0].value == AWS  # the user's own stays


def callee_with_a_key():
    """A cell's function `step` with two texts that look like keys, one of them in a function of its own."""
    keys = AWS, "sk-" + "live" * 8
    text = f"def step(x):\n    key = {keys[0]!r}\n    def inner():\n        return {keys[1]!r}\n    return x, len(key), inner()\n"
    name = "<a cell with keys>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    space = {"__name__": "__main__"}
    exec(compile(text, name, "exec"), space)
    return space["step"], keys


@pytest.mark.parametrize("read", [True, False])
def test_a_key_in_a_functions_text_is_named_with_its_line(read):
    step, keys = callee_with_a_key()
    callees = Callees()
    if read:
        assert callees.add(step)
    made = shipped({"step": step}, space=step.__globals__, callees=callees)
    assert made.manifest.withheld == ("a text in step(), line 2", "a text in step(), line 4")
    assert not any(key.encode() in sent_bytes(made) for key in keys)
    assert step(1)[1:] == (len(AWS), keys[1])
    made = shipped({"step": step}, space=step.__globals__, callees=callees, send=("step",))
    assert made.manifest.withheld == ()
    assert all(key.encode() in sent_bytes(made) for key in keys)


def test_a_key_in_the_loops_own_text_is_named_with_its_line():
    from solders.keypair import Keypair

    pair = str(Keypair())
    loop = ast.parse(f"for i in range(3):\n    call({AWS!r})\n    call('fine', {pair!r})").body[0]
    made = shipped({}, loop=loop)
    assert made.manifest.withheld == ("a text in the loop, line 2", "a text in the loop, line 3")
    assert pair.encode() not in sent_bytes(made)


def test_send_lets_names_travel():
    made, program = opened({"config": {"api_key": "k-1234567", "password": "hunter-22"}}, send=("api_key",))
    assert made.manifest.withheld == ("config.password",)
    assert program.env["config"]["api_key"] == "k-1234567"
    made, program = opened({"config": {"api_key": "k-1234567", "password": "hunter-22"}}, send=("config",))
    assert made.manifest.withheld == ()
    assert program.env["config"]["password"] == "hunter-22"


SETUP = """
import torch, torch.nn as nn, torch.nn.functional as F
X, Y = torch.randn(8, 3), torch.zeros(8).long()
net = nn.Linear(3, 2)
opt = torch.optim.SGD(net.parameters(), 0.1)
api_key = "k-12345678"
def fetch(x, key):
    return x + len(key)
"""
USES = """
for i in range(4):
    opt.zero_grad()
    F.cross_entropy(net(fetch(X, api_key){extra}), Y).backward()
    opt.step()
"""


def test_using_a_secret_on_a_worker_is_refused_by_name_before_anything_runs():
    *_, error, hub = leased(SETUP, USES.format(extra=""))
    assert type(error) is WithheldError
    assert "`api_key`" in str(error)
    assert "--send" in str(error)
    assert hub.entries == 0


def test_using_a_secret_later_ends_the_loop_with_its_name():
    cell = USES.format(extra=" if i == 2 else X")
    *_, error, hub = leased(SETUP, cell)
    assert type(error) is WithheldError
    assert "`api_key`" in str(error)
    assert hub.entries == 1


def test_open_files_send_nothing_of_their_contents(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("private words")
    with path.open() as file:
        made, program = opened({"file": file, "logs": {"file": file}})
    assert b"private words" not in sent_bytes(made)
    assert type(program.env["file"]) is Ghost
    assert type(program.env["logs"]["file"]) is Ghost


class Plain:
    def __init__(self, **parts):
        self.__dict__.update(parts)


class Stuck:
    def __reduce__(self):
        raise TypeError("stuck")


def test_what_cannot_be_sent_stays_and_the_rest_of_its_owner_travels():
    trainer = Plain(model=torch.nn.Linear(2, 2), monitor=Plain(handlers=[Stuck()]), epochs=3)
    made, program = opened({"trainer": trainer, "stuck": Stuck()})
    assert set(made.manifest.stays) == {"stuck (Stuck)", "trainer.monitor.handlers[0] (Stuck)"}
    assert program.env["trainer"].epochs == 3
    assert type(program.env["trainer"].monitor.handlers[0]) is Ghost
    assert list(made.roots.modules) == ["trainer.model"]


STUCK = Stuck()


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda m: setattr(m[0], "monitor", [Stuck()]), "`model.0.monitor[0]`"),
        (lambda m: m.register_forward_hook(lambda *a, s=STUCK: None), "`model"),
    ],
)
def test_what_a_model_needs_and_cannot_be_sent_is_named_by_its_path(make, path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    make(model)
    with pytest.raises(ShipError) as raised:
        shipped({"model": model})
    assert path in str(raised.value)
    assert "stuck" in str(raised.value)
    assert "->" in str(raised.value)


def test_a_dataset_with_a_socket_is_named():
    class Rows(torch.utils.data.Dataset):
        def __init__(self, connection):
            self.connection = connection

    with socket.socket() as connection:
        _, program = opened({"rows": Rows(connection)})
    assert type(program.env["rows"].connection) is Ghost
    with pytest.raises(ShipError, match="connection"):
        shipped({"rows": Rows(Stuck())})


# --- what is needed ------------------------------------------------------------------------------------


def test_packages_are_named_with_their_versions():
    from importlib.metadata import version

    made = shipped({"dumps": __import__("msgpack").packb, "model": torch.nn.Linear(1, 1), "loads": json.loads})
    found = dict(made.manifest.packages)
    assert found["torch"] == version("torch")
    assert found["msgpack"] == version("msgpack")
    assert not {"json", "builtins", "depin-nb"} & set(found)


def test_a_package_imported_inside_a_function_counts():
    space = {}
    exec("def collate(rows):\n    import msgpack\n    return msgpack.packb(rows)", space)
    assert "msgpack" in dict(shipped({"collate": space["collate"]}, space=space).manifest.packages)


def test_a_worker_that_lacks_a_package_says_so_before_it_opens_anything(monkeypatch):
    made = shipped({"x": 1})
    parts = decode(made.program)
    assert "torch" in parts["packages"]
    monkeypatch.setattr(packages, "version_of", _nothing_but("torch"))
    packages.check({"torch": "2"})
    with pytest.raises(MissingPackage, match="lacks tokenizers") as raised:
        packages.check({"torch": "2", "tokenizers": "0.1"})
    assert raised.value.packages == ["tokenizers"]


def _nothing_but(name):
    def version_of(wanted):
        return "1" if wanted == name else None

    version_of.cache_clear = lambda: None
    return version_of


def test_local_modules_are_written_by_value_and_share_their_globals(tmp_path, monkeypatch):
    package = tmp_path / "toolbox"
    package.mkdir()
    (package / "__init__.py").write_text("from .parts import LIMIT, bump\n")
    (package / "parts.py").write_text(
        "import math\nLIMIT = [0]\nUNUSED = object()\nclass Box:\n    def area(self): return math.pi * len(LIMIT)\n"
        "def bump(n):\n    LIMIT.append(n)\n    return Box().area()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import toolbox

    loop = ast.parse("for i in range(3):\n    toolbox.bump(i)\n    toolbox.parts.LIMIT").body[0]
    made = shipped({"toolbox": toolbox, "bump": toolbox.bump, "limit": toolbox.LIMIT}, loop=loop)
    loaded = {name: sys.modules.pop(name) for name in ("toolbox", "toolbox.parts")}
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    program = open_program(made.program, made.blobs.__getitem__)
    env = program.env
    assert env["toolbox"] is not loaded["toolbox"]
    assert env["bump"] is env["toolbox"].bump
    env["bump"](7)
    assert env["limit"] == env["toolbox"].LIMIT == [0, 7]
    assert env["toolbox"].parts.LIMIT is env["limit"]
    assert not hasattr(env["toolbox"].parts, "UNUSED")
    assert loaded["toolbox"].LIMIT == [0]
    for name in ("toolbox", "toolbox.parts"):
        sys.modules.pop(name, None)


# --- the manifest ----------------------------------------------------------------------------------------


def test_the_manifest_names_kinds_and_bytes_once():
    data = torch.randn(500, 4)
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    made = shipped({"data": data, "again": data, "model": model, "optimizer": optimizer, "epochs": 3, "helper": lambda x: x, "np": np})
    items = {item.name: item for item in made.manifest.items}
    assert {n: i.kind for n, i in items.items()} == {
        "data": "tensor",
        "again": "tensor",
        "model": "model",
        "optimizer": "optimizer",
        "epochs": "number",
        "helper": "function",
        "np": "module, by name",
        LOOP_DATA: "values",
    }
    assert items["data"].nbytes >= 8000
    assert items["again"].nbytes < 100
    assert made.manifest.items[0].name == "data"
    shown, others = made.manifest.largest(3)
    assert len(shown) == 3
    assert others.name == "5 more"
    assert sum(i.nbytes for i in shown) + others.nbytes == made.manifest.nbytes


# --- devices -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that has to be absent")
def test_calls_that_name_an_absent_device_go_to_the_workers_own():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(2, 2)

        def forward(self, x):
            mask = torch.ones(x.shape, device="cuda:0")
            eye = torch.eye(2, device=torch.device("cuda"))
            return self.fc((x.to("cuda") * mask.cuda()) @ eye.to(device="cuda", non_blocking=True))

    with devices.following(["cuda"]):
        net = Net().cuda().to("cuda:0")
        out = net(torch.ones(3, 2).pin_memory())
        out.sum().backward()
        assert torch.zeros(2).to(torch.device("mps") if torch.backends.mps.is_available() else "cpu").device.type == "cpu"
    assert out.device.type == "cpu"
    assert net.fc.weight.grad is not None
    with pytest.raises((RuntimeError, AssertionError)):
        torch.ones(1).to("cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that has to be absent")
def test_a_program_from_a_machine_with_a_gpu_opens_on_a_cpu():
    from depin_nb.core.codec import encode

    made = shipped({"model": torch.nn.Linear(2, 2), "x": torch.ones(3), "device": torch.device("cuda", 1)})
    parts = decode(made.program)
    assert "cuda" in parts["devices"]
    for entry in parts["table"]:
        entry["device"] = "cuda"
    program = open_program(encode(parts), made.blobs.__getitem__)
    assert program.env["device"] == torch.device("cpu")
    assert program.env["x"].device.type == program.env["model"].weight.device.type == "cpu"
    assert program.devices == ("cpu", "cuda")


def test_a_program_of_this_machine_alone_needs_no_mode():
    made = shipped({"x": torch.ones(2), "device": torch.device("cpu")})
    assert decode(made.program)["devices"] == ["cpu"]
    loop = ast.parse("for i in range(3):\n    x.cuda()\n    y = torch.zeros(2, device='mps:0')").body[0]
    assert decode(shipped({}, loop=loop).program)["devices"] == ["cuda", "mps"]


# --- several workers, and what forbids them ---------------------------------------------------------------

KEEPING = {
    "count": ("self.steps += 1\n        return self.fc(x)", "net.steps"),
    "buffer in place": ("self.queue.mul_(0.9).add_(x.detach().mean())\n        return self.fc(x)", None),
    "last value only": ("self.last = x.detach().mean().item()\n        return self.fc(x)", None),
    "a plain tensor": ("bank[0] += x.detach().sum()\n        return self.fc(x)", "bank"),
}


@pytest.mark.parametrize("name", KEEPING)
def test_what_a_model_keeps_beside_its_weights_needs_one_worker(name):
    body, kept = KEEPING[name]
    setup = f"""
import torch, torch.nn as nn, torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset
loader = DataLoader(TensorDataset(torch.randn(24, 3), torch.zeros(24).long()), batch_size=4)
bank = torch.zeros(2)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.steps, self.last = nn.Linear(3, 2), 0, None
        self.register_buffer("queue", torch.zeros(1))
    def forward(self, x):
        {body}
net = Net()
opt = torch.optim.SGD(net.parameters(), 0.1)
"""
    cell = """
for x, y in loader:
    opt.zero_grad()
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    opt.step()
"""
    *_, error, hub = leased(setup, cell, workers=3)
    assert error is None
    reason = hub.plans[-1].solo_reason
    assert (reason is None) == (kept is None), reason
    assert kept is None or kept in reason
    ours, theirs = local(setup, cell)[0], leased(setup, cell)[0]
    assert ours["net"].steps == theirs["net"].steps
    assert ours["net"].last == theirs["net"].last
    assert torch.equal(ours["bank"], theirs["bank"])
    assert torch.equal(ours["net"].queue, theirs["net"].queue)


LARGE = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.memory, self.fixed, self.small = torch.zeros(300_000), torch.zeros(300_000), torch.zeros(3)
    def forward(self, x):
        self.memory = self.memory + 1
        self.small = self.small + 1
        return self.fc(x) + self.memory[0] + self.fixed[0]
net = Net()
opt = torch.optim.SGD(net.parameters(), 0.1)
"""
STEPS = """
for i in range(3):
    opt.zero_grad()
    F.cross_entropy(net(X), Y).backward()
    opt.step()
"""


def test_a_large_attribute_that_does_not_come_back_is_in_the_plan():
    namespace, *_, error, hub = leased(SETUP + LARGE, STEPS)
    assert error is None
    (caveat,) = [said for said in hub.plans[-1].facts.caveats if "stays there" in said]
    assert "`net.memory`" in caveat
    assert "1.2 MB" in caveat
    assert namespace["net"].small[0] == 3
    assert namespace["net"].memory[0] == 0
