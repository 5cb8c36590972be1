"""What a run did, read from its journal after it ended. The one place of the benchmarks that knows the journal's tables."""

from __future__ import annotations

from dataclasses import dataclass

from depin_nb.core import config
from depin_nb.core.status import Status
from depin_nb.hub.records.journal import Journal


@dataclass(frozen=True)
class Work:
    """One worker's merged leases: iterations, and the seconds that it computed for them (waits that simulate its speed included)."""

    iterations: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.iterations / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class Book:
    """`begun`: when its first loop entry was opened; `merges`: (when, iterations); both on the wall clock. `lost`: (when, worker), as the
    hub noticed."""

    run_id: str
    begun: float
    merges: tuple[tuple[float, int], ...]
    work: dict[str, Work]
    lost: tuple[tuple[float, str], ...]
    twice: int
    missing: int
    status: Status | None

    @property
    def ended(self) -> float:
        return self.merges[-1][0]

    @property
    def window_s(self) -> float:
        """From the opening of the loop to its last merge."""
        return self.ended - self.begun

    @property
    def iterations(self) -> int:
        return sum(count for _, count in self.merges)

    def utilisation(self, workers: int) -> float:
        """The share of the workers' time in the window that was computing which the model contains."""
        return sum(w.seconds for w in self.work.values()) / (workers * self.window_s)

    @property
    def throughput(self) -> float:
        """Merged iterations a second, from the opening of the loop to its last merge."""
        return self.iterations / self.window_s

    def pace_s(self) -> float:
        """Seconds an iteration from the first merge on: without starting up."""
        return (self.ended - self.merges[0][0]) / max(1, self.iterations - self.merges[0][1])


def read(run_id: str) -> Book:
    """The book of a run that ended."""
    journal = Journal(config.journal_file(), writing=False)
    try:
        row = journal.run(run_id)
        query = journal.connection.execute
        work = {
            worker: Work(int(done), float(seconds))
            for worker, done, seconds in query(
                "SELECT worker_id, SUM(done), SUM(seconds) FROM leases WHERE run_id=? AND version IS NOT NULL GROUP BY worker_id", (run_id,)
            )
        }
        entries = query("SELECT entry, opened_at, spec FROM entries WHERE run_id=? ORDER BY entry", (run_id,)).fetchall()
        indices = [[index for index, _ in journal.merged_units(run_id, entry)] for entry, _, _ in entries]
        gone = [(e.at, str(e.data.get("worker", ""))) for e in journal.events(run_id) if e.kind in ("worker-lost", "expired", "solo-lost")]
        return Book(
            run_id,
            entries[0][1],
            tuple((m.at, m.iterations) for m in row.merges),
            work,
            tuple(gone),
            twice=sum(len(i) - len(set(i)) for i in indices),
            missing=sum(max(i) + 1 - min(i) - len(set(i)) for i in indices if i),
            status=Status.from_dict(row.summary) if row.summary else None,
        )
    finally:
        journal.close()
