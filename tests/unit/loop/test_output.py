"""What evaluations on a worker print, warn and log reaches the notebook once, in its place; what isn't the lease's own stays away."""

import io
import logging
import sys
import threading
import warnings

import pytest
from cells_beside import CELLS, SETUP
from inprocess import leased, local

from depin_nb.core.codec import encode
from depin_nb.loop import output
from depin_nb.loop.halves.entries import SAID
from depin_nb.loop.halves.replay import Replayer
from depin_nb.loop.split.callees import Callees

SAYS = CELLS["beside: said in the model and the dataset"]


def test_once_and_in_order():
    ours, theirs = local(SAYS), leased(SAYS)
    assert ours[1] == theirs[1]
    assert theirs[1].splitlines()[:6] == ["fetch 0", "fetch 1", "fetch 2", "body 0", "forward (3, 6)", "after 0"]
    assert theirs.warned == ours.warned
    assert len(ours.warned) >= 1


def test_several_workers_show_each_iteration_once():
    text = leased(SAYS, workers=3)[1]
    assert text == local(SAYS)[1]


@pytest.mark.parametrize("after", [1, 2])
def test_a_lost_worker_shows_nothing_twice(after):
    assert leased(SAYS, lose_after=after, lease=1)[1] == local(SAYS)[1]


def test_only_the_leases_own_thread_is_heard():
    said, stdout = [], io.StringIO()
    before, sys.stdout = sys.stdout, stdout
    try:
        with output.listening(lambda *entry: said.append(entry), {}):
            print("mine")
            other = threading.Thread(target=lambda: (print("other"), logging.getLogger("beside.other").debug("unheard")))
            other.start()
            other.join()
        print("after")
    finally:
        sys.stdout = before
    assert "".join(text for _, text in said) == "mine\n"
    assert stdout.getvalue() == "other\nafter\n"


def test_levels_and_filters_are_the_notebooks():
    said = []
    settings = {
        "levels": {"": logging.WARNING, "loud": logging.DEBUG},
        "disabled": 0,
        "filters": [["error", None, "builtins.RuntimeWarning", None, 0], ["ignore", "quiet", "builtins.UserWarning", None, 0]],
    }
    with output.listening(lambda *entry: said.append(entry), settings):
        logging.getLogger("silent").info("no")
        logging.getLogger("loud.inner").debug("yes %d", 3)
        warnings.warn("quiet please", stacklevel=1)
        warnings.warn("heard", stacklevel=1)
        with pytest.raises(RuntimeWarning):
            warnings.warn("as an error", RuntimeWarning, stacklevel=1)
    assert [(channel, payload[2] if channel == "log" else payload[1]) for channel, payload in said] == [("log", "yes 3"), ("warn", "heard")]
    assert said[1][1][0] == "builtins.UserWarning"


def test_the_users_filters_and_registries_hold_here():
    namespace = {}
    payload = ["builtins.UserWarning", "again", "<cell>", 3, "__main__"]
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        output.show("warn", payload, namespace)
        output.show("warn", payload, namespace)
        output.show("warn", [*payload[:3], 4, "__main__"], namespace)
    assert [(str(w.message), w.lineno) for w in shown] == [("again", 3), ("again", 4)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="again"):
            output.show("warn", payload, {})


@pytest.mark.parametrize(
    ("channel", "payload"),
    [("out", 3), ("nowhere", "text"), ("warn", []), ("warn", ["os.system", 1, 2, 3, 4]), ("log", ["root", "high", "t", "p", 1, "f", None])],
)
def test_what_does_not_fit_is_not_shown(channel, payload, capsys):
    output.show(channel, payload, {})
    assert capsys.readouterr().out == ""


def test_no_logger_and_no_class_is_made_on_a_workers_word():
    known = set(logging.root.manager.loggerDict)
    heard = []
    handler = logging.Handler()
    handler.emit = heard.append
    logging.root.addHandler(handler)
    try:
        output.show("log", ["made.up." + "x" * 5000, logging.ERROR, "text", "path", 1, "f", None], {})
    finally:
        logging.root.removeHandler(handler)
    assert [r.getMessage() for r in heard] == ["text"]
    assert len(heard[0].name) <= 200
    assert set(logging.root.manager.loggerDict) == known
    with pytest.warns(UserWarning, match=r"nosuch.Kind: text"):
        output.show("warn", ["nosuch.Kind", "text", "f", 1, "m"], {})
    assert "nosuch" not in sys.modules


CHATTY = """
for i, (x, y) in enumerate(DataLoader(data, batch_size=20)):
    opt.zero_grad()
    criterion(loud(x), y).backward()
    opt.step()
    print("\\nbody", i)
"""


def test_output_is_bounded():
    setup = (
        SETUP + "class Loud(nn.Module):\n    def forward(self, x):\n        print('y' * 200_000)\n        return model(x)\nloud = Loud()\n"
    )
    text = leased(setup, CHATTY)[1]
    assert text.count("... cut") == 2
    assert text.count("body") == 2
    assert len(text) < 2 * output.MAX_ITERATION_BYTES + 1000


def test_the_rehearsal_shows_nothing(capsys):
    half = Replayer(Callees(), {}, rehearsal=True)
    half.begin(encode([0, [[-1, 0, SAID, ["out", "unseen"]]]]))
    half.finish()
    assert capsys.readouterr().out == ""
    half = Replayer(Callees(), {})
    half.begin(encode([0, [[-1, 0, SAID, ["out", "seen\x1b[31m"]]]]))
    half.finish()
    assert capsys.readouterr().out == "seen\x1b[31m"


WARNS = """
for x, y in loader:
    opt.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    opt.step()
    warnings.warn("from the body")
    logging.getLogger("beside.where").warning("from the body")
"""


def test_the_bodys_own_warnings_name_the_users_line():
    lines = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append((record.lineno, record.pathname))

    handler = Keep()
    logging.getLogger("beside.where").addHandler(handler)
    try:
        for run in (local, leased):
            run(SETUP, WARNS)
    finally:
        logging.getLogger("beside.where").removeHandler(handler)
    assert set(lines) == {(8, "<cell>")}
    assert len(lines) == 10
