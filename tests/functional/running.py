"""Cells run here and on a real hub, and what the journal says of them afterwards."""

import contextlib
import linecache
import threading
import time

from inprocess import parts_of, run_in_folder

from depin_nb.core import config
from depin_nb.hub.records.journal import Journal
from depin_nb.session import TrainOptions

PATIENCE_S = 200.0  # two cores that others use too; nothing here waits that long unless something is broken
STEP_S = 0.05


def eventually(condition, what):
    """The condition's first true value; fails after PATIENCE_S."""
    end, never = time.monotonic() + PATIENCE_S, threading.Event()
    while not (value := condition()):
        assert time.monotonic() < end, f"never came true: {what}"
        never.wait(STEP_S)
    return value


class Trained:
    """What a leased cell left: namespace, printed text, generators, the exception, the statuses it was shown, its run."""

    def __init__(self, session, setup, cell=None, **options):
        """`setup` may be a whole `Cell` of the catalogue."""
        setup, cell, files = parts_of(setup, cell)
        self.statuses = []
        self.run = None

        def train(namespace):
            self.namespace = namespace
            self.run = session.train_cell(cell, namespace, shell=None, options=TrainOptions(**options), on_status=self.statuses.append)

        self.error = None
        try:
            self.ran = run_in_folder(setup, train, files)
            self.namespace, self.text, self.generators, self.error = self.ran
        except KeyboardInterrupt as interrupt:
            self.error = interrupt
            self.text = None

    @property
    def run_id(self):
        return self.statuses[-1].run_id

    def checked(self):
        if self.error is not None:
            raise self.error
        return self


def function(source, namespace, name="fit"):
    """A function defined by `source` in `namespace`, as a notebook's cell would define it."""
    filename = f"<{name} {abs(hash(source))}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compile(source, filename, "exec"), namespace)
    return namespace[name]


@contextlib.contextmanager
def journal():
    book = Journal(config.journal_file(), writing=False)
    try:
        yield book
    finally:
        book.close()


def entries_of(run_id):
    """(entry, first index, total) of every loop entry of a run."""
    import json

    with journal() as book:
        rows = book._rows("SELECT entry, spec FROM entries WHERE run_id=? ORDER BY entry", run_id)
    specs = [(entry, json.loads(spec)) for entry, spec in rows]
    return [(entry, spec["first"], spec["total"]) for entry, spec in specs]


def merged_by_pass(run_id):
    """For each pass of the loop, the index of every unit in a merged lease, with repetitions. An entry that goes on where a
    lost worker's stopped belongs to the same pass."""
    passes = []
    with journal() as book:
        for entry, first, _ in entries_of(run_id):
            indices = [i for i, _ in book.merged_units(run_id, entry)]
            if first == 0 and not (passes and passes[-1] == []):
                passes.append(indices)
            else:
                passes[-1] = passes[-1] + indices
    return passes


def leases_of(run_id):
    with journal() as book:
        return book.leases(run_id)


def row_of(run_id):
    with journal() as book:
        return book.run(run_id)
