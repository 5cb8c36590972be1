"""Proves from the journal's and the ledger's rows alone that a run is what it says. Pure: rows in, a report out.

What is proven, over the run and those that it continues:
- each index of each loop entry is in exactly one merged lease; an entry that was closed as done has all of its indices;
- versions chain: each one is made by one entry's opening or by one merge, on the one before it; leases in it are not too late for it;
- each accepted lease has its receipt, which says the same; a merge counts what its leases did;
- money adds up: what the run spent is what its leases cost, what receipts and vouchers say, and what was put down to be paid.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from depin_nb.core.errors import CodecError
from depin_nb.hub.records.rows import Row, RunRows
from depin_nb.ledger import store
from depin_nb.ledger.receipt import Receipt, leaf_hash, merkle_root
from depin_nb.ledger.verify import voucher_problems
from depin_nb.ledger.voucher import Voucher
from depin_nb.training.lifecycle import COUNTED, TABLE, LeaseState, Trigger
from depin_nb.training.strategy import MAX_STALENESS

MAX_UNITS = 50_000_000  # of one lease: a damaged span must not ask for more memory than any real loop does
SHOWN = 5
EARNED = frozenset({LeaseState.MERGED, LeaseState.PAID, LeaseState.DISCARDED, LeaseState.DISCARDED_PAID})
AFTER_PAYING = frozenset(after for (_, trigger), after in TABLE.items() if trigger is Trigger.PAY)
BEFORE_PAYING = frozenset(before for before, trigger in TABLE if trigger is Trigger.PAY)


@dataclass(frozen=True)
class Problem:
    """`where`: the offending row (table and key); `what`: what is wrong with it, in words."""

    where: str
    what: str


@dataclass(frozen=True)
class PassRow:
    """One pass of the loop over all runs that worked on it. `total`: its iterations, None where nobody knows; `open`: not merged yet."""

    number: int
    header: str
    runs: tuple[str, ...]
    merged: int
    total: int | None
    open: int
    leases: int
    merges: int
    closed: str


@dataclass(frozen=True)
class CheckReport:
    """`parts`: the runs that were checked, oldest first. `units_dpn`: what they spent, DPN base units."""

    run_id: str
    parts: tuple[str, ...]
    passes: tuple[PassRow, ...]
    receipts: int
    units_dpn: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "ok": self.ok}


@dataclass
class _Pass:
    header: str = ""
    runs: list[str] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)
    total: int | None = None
    gapless: bool = False
    leases: int = 0
    merges: int = 0
    closed: str = ""
    where: str = ""


class _Run:
    """The checks of one run; `problems` collects."""

    def __init__(self, rows: RunRows, problems: list[Problem]) -> None:
        self.rows, self.run_id, self.problems = rows, rows.run_id, problems
        self.entries: dict[int, tuple[Row, dict[str, Any]]] = {}
        self.merges: dict[int, Row] = {}
        self.receipts: list[Receipt] = []

    def bad(self, where: str, what: str) -> None:
        self.problems.append(Problem(where, what))

    def check(self) -> Iterator[tuple[Row, dict[str, Any], list[int], int]]:
        """Runs the checks; gives (entry, its spec, merged indices, merged leases) for each entry."""
        for table, column, number in self.rows.broken:
            self.bad(f"{table} row {number}", f"the value of `{column}` isn't of that column's type")
        self._entries()
        self.merges = {row["version"]: row for row in self.rows["merges"]}
        self._versions()
        self._read_receipts()
        by_entry = self._leases()
        self._money()
        for number, (row, spec) in sorted(self.entries.items()):
            indices, leases = by_entry[number]
            yield row, spec, indices, leases

    def _entries(self) -> None:
        for row in self.rows["entries"]:
            where = f"entries {self.run_id} {row['entry']}"
            spec = _json(row["spec"])
            if not isinstance(spec, dict) or type(spec.get("first", 0)) is not int or type(spec.get("total")) not in (int, type(None)):
                self.bad(where, "its spec can't be read")
                continue
            if spec.get("first", 0) < 0:
                self.bad(where, f"it begins at iteration {spec['first']}")
            self.entries[row["entry"]] = row, spec
        if sorted(self.entries) != list(range(1, len(self.entries) + 1)):
            self.bad(f"entries {self.run_id}", f"they are numbered {sorted(self.entries)[:SHOWN]} .., not 1, 2, ..")

    def _versions(self) -> None:
        """Each version has one maker, and stands on the one before."""
        at = -1
        of_entry: dict[int, list[Row]] = defaultdict(list)
        for row in self.merges.values():
            of_entry[row["entry"]].append(row)
        for number, (entry, _) in sorted(self.entries.items()):
            if entry["base_version"] not in (at, at + 1) or entry["base_version"] < 0:
                self.bad(f"entries {self.run_id} {number}", f"it begins from version {entry['base_version']}, and {at} was the newest")
            at = max(at, entry["base_version"])
            for row in sorted(of_entry.pop(number, []), key=lambda r: int(r["version"])):
                where = f"merges {self.run_id} {row['version']}"
                if row["version"] != at + 1:
                    self.bad(where, f"version {row['version']} follows version {at}")
                if row["base_version"] != row["version"] - 1:
                    self.bad(where, f"version {row['version']} was merged into version {row['base_version']}, not the one before it")
                at = row["version"]
        for rest in of_entry.values():
            self.bad(f"merges {self.run_id} {rest[0]['version']}", f"it belongs to entry {rest[0]['entry']}, which there isn't")
        (run,) = self.rows["runs"]
        if run["version"] != at:
            self.bad(f"runs {self.run_id}", f"its newest version is {run['version']}, and merges and entries come to {at}")

    def _read_receipts(self) -> None:
        for number, row in enumerate(self.rows["ledger_receipts"], 1):
            where = f"ledger_receipts {self.run_id} {row['position']}"
            if row["position"] != number:
                self.bad(where, f"the receipt at position {number} is missing")
            try:
                receipt = Receipt.from_bytes(row["body"])
            except CodecError as error:
                self.bad(where, f"it can't be read: {error.message}")
                continue
            if (receipt.run_id, receipt.lease_id) != (self.run_id, row["lease_id"]):
                self.bad(where, f"it is of lease {receipt.lease_id} of {receipt.run_id}, not of {row['lease_id']}")
            self.receipts.append(receipt)

    def _leases(self) -> dict[int, tuple[list[int], int]]:
        """Leases against merges and receipts. Returns the merged indices and the merged leases by entry."""
        by_lease: dict[str, Receipt] = {receipt.lease_id: receipt for receipt in self.receipts}
        merged: dict[int, tuple[list[int], int]] = defaultdict(lambda: ([], 0))
        done: Counter[int] = Counter()
        samples: Counter[int] = Counter()
        (run,) = self.rows["runs"]
        for row in self.rows["leases"]:
            where = f"leases {row['lease_id']}"
            receipt = by_lease.pop(row["lease_id"], None)
            state, indices = _state(row["state"]), _indices(row["units"])
            if state is None or indices is None or not 0 <= row["done"] <= len(indices):
                self.bad(where, "its state, its units or what is done of them can't be read")
                continue
            if (state in COUNTED) != (row["version"] is not None):
                self.bad(where, f"it is {state.value}, and its version is {row['version']}")
            if state in (BEFORE_PAYING if run["settled"] else AFTER_PAYING):
                self.bad(where, f"it is {state.value} in a run that is {'settled' if run['settled'] else 'not settled'}")
            if state in EARNED and receipt is None:
                self.bad(where, f"it is {state.value} and has no receipt")
            if receipt is not None:
                for what in _differences(row, indices, receipt, earned=state in EARNED):
                    self.bad(where, what)
            if row["version"] is None:
                continue
            entry, merge = self.entries.get(row["entry"]), self.merges.get(row["version"])
            if merge is None or merge["entry"] != row["entry"] or entry is None:
                self.bad(where, f"no merge of entry {row['entry']} made version {row['version']}, in which it should be")
                continue
            if not entry[0]["base_version"] <= row["base_version"] < row["version"]:
                self.bad(where, f"it was lent on version {row['base_version']}, and merged into version {row['version']}")
            elif row["version"] - 1 - row["base_version"] > (allowed := _staleness(entry[1])):
                made = f"it was made from version {row['base_version']}, and merged into version {row['version']}"
                self.bad(where, f"{made}: at most {allowed} merges late are allowed")
            mine = indices[: row["done"]]
            total = entry[1].get("total")
            if mine and (min(mine) < entry[1].get("first", 0) or (total is not None and max(mine) >= total)):
                self.bad(where, f"iterations {min(mine)} to {max(mine)} aren't all of its entry")
            done[row["version"]] += row["done"]
            samples[row["version"]] += receipt.samples if receipt is not None else 0
            merged[row["entry"]] = merged[row["entry"]][0] + mine, merged[row["entry"]][1] + 1
        for lease_id in by_lease:
            self.bad(f"ledger_receipts {lease_id}", "the journal has no such lease")
        for version, row in self.merges.items():
            for what, said, found in (("iterations", row["iterations"], done[version]), ("samples", row["samples"], samples[version])):
                if said != found:
                    self.bad(f"merges {self.run_id} {version}", f"it says {said} {what}, its leases did {found}")
        return merged

    def _money(self) -> None:
        (run,) = self.rows["runs"]
        where = f"runs {self.run_id}"
        earned = sum(receipt.units_dpn for receipt in self.receipts)
        if run["spent_units"] != earned:
            self.bad(where, f"it spent {run['spent_units']} base units, and its receipts add up to {earned}")
        books = self.rows["ledger_runs"]
        if len(books) != 1:
            if self.receipts or books or self.merges:
                self.bad(f"ledger_runs {self.run_id}", f"the ledger has {len(books)} rows of the run")
            return
        (book,) = books
        reserved = 0 if run["ended_at"] is not None else run["reserved_units"]
        if reserved < 0 or (book["capped"] and earned + reserved > book["budget_units"]):
            self.bad(where, f"{earned} base units spent and {reserved} reserved don't fit the budget of {book['budget_units']}")
        vouchers = [Voucher(**{k: v for k, v in row.items() if k != "frontier"}) for row in self.rows["ledger_vouchers"]]
        for what in voucher_problems(vouchers, book["session"], self.receipts):
            self.bad(f"ledger_vouchers {self.run_id}", what)
        if run["settled"] and book["state"] != store.SETTLED:
            self.bad(where, f"it counts as settled, and its ledger is {book['state']}")
        if book["state"] not in (store.SETTLING, store.SETTLED):
            return
        root = merkle_root([leaf_hash(row["body"]) for row in self.rows["ledger_receipts"]])
        if book["root"] != root:
            self.bad(f"ledger_runs {self.run_id}", "the Merkle root that was settled isn't the receipts'")
        due: Counter[str] = Counter()
        for receipt in self.receipts:
            due[receipt.wallet] += receipt.units_dpn
        paid = [(row["wallet"], row["units"]) for row in self.rows["ledger_payouts"]]
        if sorted(paid) != sorted((wallet, units) for wallet, units in due.items() if units):
            self.bad(f"ledger_payouts {self.run_id}", "what was put down to be paid isn't what the receipts add up to")


def check(parts: Sequence[RunRows]) -> CheckReport:
    """`parts`: the run and those that it continues, oldest first. Never raises for what the rows hold; it is in the report."""
    problems: list[Problem] = []
    passes: dict[int, _Pass] = defaultdict(_Pass)
    receipts = units = 0
    for rows in parts:
        if len(rows["runs"]) != 1:
            problems.append(Problem(f"runs {rows.run_id}", "the journal has no readable row of it"))
            continue
        run = _Run(rows, problems)
        sites = {row["entry"]: row for row in rows["sites"]}
        merges = Counter(row["entry"] for row in rows["merges"])
        for entry, spec, indices, leases in run.check():
            site = sites.get(entry["entry"])
            if site is None and rows["sites"]:
                run.bad(f"sites {rows.run_id} {entry['entry']}", "the entry has no place in the cell")
            _add(
                passes[site["number"] if site else entry["entry"]], rows.run_id, entry, spec, site, indices, leases, merges[entry["entry"]]
            )
        receipts += len(run.receipts)
        units += rows["runs"][0]["spent_units"]
    last = max(passes, default=0)
    found = [_pass(number, made, number < last, problems) for number, made in sorted(passes.items())]
    return CheckReport(parts[-1].run_id, tuple(p.run_id for p in parts), tuple(found), receipts, units, tuple(problems))


def _add(
    made: _Pass, run_id: str, entry: Row, spec: dict[str, Any], site: Row | None, indices: list[int], leases: int, merges: int
) -> None:
    made.header = made.header or (str(site["header"]) if site else "")
    made.runs += [] if run_id in made.runs else [run_id]
    made.counts.update(indices)
    made.total, made.closed = spec.get("total"), str(entry["reason"])
    strategy = spec.get("strategy")
    made.gapless = bool(spec.get("contiguous")) or bool(isinstance(strategy, dict) and strategy.get("solo"))
    made.leases, made.merges = made.leases + leases, made.merges + merges
    made.where = f"entries {run_id} {entry['entry']}"


def _pass(number: int, made: _Pass, followed: bool, problems: list[Problem]) -> PassRow:
    """Each index once; all of them, where the entry was closed as done; no gap, where the order matters or everything was done."""
    twice = sorted(index for index, count in made.counts.items() if count > 1)
    if twice:
        problems.append(Problem(made.where, f"pass {number}: {_some(twice)} merged more than once"))
    indices = sorted(made.counts)
    end = made.total if made.total is not None else (indices[-1] + 1 if indices else 0)
    lacking = [] if len(indices) >= end else sorted(set(range(end)) - made.counts.keys()) if end <= MAX_UNITS else [len(indices)]
    gap = any(index != place for place, index in enumerate(indices))
    if made.closed == "done" and lacking:
        problems.append(Problem(made.where, f"pass {number} was done, and {_some(lacking)} in no merged lease"))
    elif gap and made.gapless and not twice:
        problems.append(Problem(made.where, f"pass {number} was done in order, and {_some(lacking)} in no merged lease"))
    closed = made.closed or ("done" if followed else "")
    # after a `break` what remains isn't open: nobody wants it
    open_ = 0 if closed == "exit" or followed else len(lacking)
    return PassRow(number, made.header, tuple(made.runs), len(indices), made.total, open_, made.leases, made.merges, closed)


def _some(indices: Sequence[int]) -> str:
    more = f" and {len(indices) - SHOWN} more" if len(indices) > SHOWN else ""
    verb = "are" if len(indices) > 1 else "is"
    return f"iteration{'s' if len(indices) > 1 else ''} {', '.join(map(str, indices[:SHOWN]))}{more} {verb}"


def _differences(row: Row, indices: list[int], receipt: Receipt, *, earned: bool) -> Iterable[str]:
    if not earned:
        yield f"it is {row['state']} and has a receipt"
    version = -1 if row["version"] is None else row["version"]
    for name, said, written in (
        ("worker", row["worker_id"], receipt.worker_id),
        ("entry", row["entry"], receipt.entry),
        ("first iteration", indices[0] if indices else None, receipt.first),
        ("iterations", row["done"], receipt.count),
        ("FLOPs", row["flops"], receipt.flops),
        ("DPN base units", row["units_dpn"], receipt.units_dpn),
        ("cost", row["cost_units"], receipt.units_dpn),
        ("version", version, receipt.version),
    ):
        if said != written:
            yield f"{name}: the lease says {said}, its receipt {written}"


def _staleness(spec: dict[str, Any]) -> int:
    """How many merges late a lease of that entry may be."""
    strategy = spec.get("strategy")
    late = isinstance(strategy, dict) and not strategy.get("solo") and strategy.get("name") != "sync" and not spec.get("contiguous")
    return MAX_STALENESS if late else 0


def _state(text: str) -> LeaseState | None:
    try:
        return LeaseState(text)
    except ValueError:
        return None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _indices(text: str) -> list[int] | None:
    """The unit indices of a lease's spans, None when they can't be read."""
    spans = _json(text)
    if not isinstance(spans, list):
        return None
    found: list[range] = []
    for span in spans:
        if not isinstance(span, list) or len(span) != 3 or any(type(n) is not int for n in span) or span[2] < 1:
            return None
        found.append(range(*span))
        # the length of a span beyond the machine's words has no len()
        if span[1] - span[0] > MAX_UNITS * span[2] or sum(map(len, found)) > MAX_UNITS:
            return None
    return [index for span in found for index in span]
