"""Plain text for a terminal: columns, amounts, times. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.amount import DPN, Amount
from ..core.status import Status
from ..hub.versions.checkpoint_files import Checkpoint, best


def columns(rows: Sequence[Sequence[str]], heads: Sequence[str], *, right: Sequence[int] = ()) -> str:
    """Aligned columns under `heads`; `right`: which ones are aligned at the right."""
    lines = [list(map(str, heads)), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join(
        "  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    )


def when(at: float | None) -> str:
    return "-" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def amount(data: Mapping[str, Any] | None) -> str:
    """An amount's or figure's dict for people, with its tag if it has one."""
    if not data:
        return "-"
    text = Amount.from_dict(dict(data)).text()
    return f"{text} {data['tag']}" if data.get("tag") else text


def workers(snapshot: Mapping[str, Any]) -> str:
    """The workers of a status API answer."""
    joined = {w["worker_id"]: w for w in snapshot["workers"]}
    rows = []
    for process in snapshot["hub"]["workers"]:
        device = joined.get(process["name"], {})
        state = device.get("state") or "starting"
        kind = process["profile"] + (" (simulated)" if process["simulated"] else "")
        rows.append([process["name"], kind, state, str(process["pid"]), device.get("price", ""), device.get("wallet", "")])
    return (
        columns(rows, ["worker", "kind", "state", "pid", "price", "wallet"], right=[3])
        if rows
        else "no workers: `depin scale 2` starts two"
    )


def active(statuses: Sequence[Mapping[str, Any]]) -> str:
    """The runs of a status API answer."""
    rows = []
    for data in statuses:
        run = Status.from_dict(dict(data))
        done = f"{run.iterations_done}/{run.iterations_total}" if run.iterations_total else str(run.iterations_done)
        loss = f"{run.loss[-1][1]:.4g}" if run.loss else "-"
        rows.append([run.run_id, run.name, run.state, done, loss, str(run.spent), run.budget.text() if run.budget else "-", run.share])
    return columns(rows, ["run", "name", "state", "iterations", "loss", "spent", "budget", "share"], right=[3, 4]) if rows else "no runs"


def progress(run: Status) -> str:
    """A run in one line."""
    done = f"{run.iterations_done}/{run.iterations_total}" if run.iterations_total else str(run.iterations_done)
    loss = f"  loss {run.loss[-1][1]:.4g}" if run.loss else ""
    return f"{run.run_id}  {run.state}  {done} iterations{loss}  {run.spent} spent"


def journal(rows: Sequence[Mapping[str, Any]]) -> str:
    """The journal's runs."""
    table = []
    for row in rows:
        summary = row.get("summary") or {}
        spent = amount(summary.get("spent"))
        devices = "" if not summary.get("simulated") else " (simulated)"
        table.append(
            [
                row["run_id"],
                row["name"],
                row["state"] + (", can be resumed" if row.get("resumable") else ""),
                row["strategy"].partition(":")[0],
                row["backend"] + devices,
                when(row["started_at"]),
                spent,
            ]
        )
    return columns(table, ["run", "name", "state", "strategy", "backend", "started", "spent"]) if table else "no runs yet"


def run(row: Mapping[str, Any]) -> str:
    """One run of the journal, in full."""
    summary = row.get("summary") or {}
    losses = row.get("losses") or ()
    took = None if row["ended_at"] is None else row["ended_at"] - row["started_at"]
    lines = [
        ("run", f"{row['run_id']}  {row['name']}"),
        ("state", row["state"] + (f": {row['message']}" if row["message"] else "") + (", can be resumed" if row.get("resumable") else "")),
        ("continues", row.get("continues") or "-"),
        ("where", row["where"]),
        ("strategy", row["strategy"]),
        ("backend", row["backend"] + (" (simulated)" if summary.get("simulated") else "")),
        ("started", when(row["started_at"])),
        ("took", "-" if took is None else f"{took:.1f} s"),
        ("merges", f"{len(row['merges'])}, newest version {row['version']}"),
        ("iterations", str(sum(merge["iterations"] for merge in row["merges"]))),
        ("samples", str(sum(merge["samples"] for merge in row["merges"]))),
        ("loss", f"{losses[0][1]:.4g} -> {losses[-1][1]:.4g} ({len(losses)} points)" if losses else "-"),
        ("budget", amount(row["budget"])),
        ("spent", amount(summary.get("spent"))),
        ("paid", amount(summary.get("tokens_paid")) + (" settled" if row["settled"] else " (not settled)")),
        ("signatures", ", ".join(summary.get("signatures", ())) or "-"),
    ]
    lines += [("notice", text) for text in summary.get("notices", ())]
    return "\n".join(f"{name:<11} {text}" for name, text in lines)


def checked(report: Mapping[str, Any]) -> str:
    """A check of a run: a line for each pass of the loop, then the offending rows, or that there are none."""
    rows = []
    for r in report["passes"]:
        merged = f"{r['merged']:,}" + (f"/{r['total']:,}" if r["total"] is not None else "")
        counts = [f"{r[name]:,}" for name in ("open", "leases", "merges")]
        rows.append([str(r["number"]), ", ".join(r["runs"]), merged, *counts, r["closed"] or "-"])
    heads = ["pass", "runs", "iterations merged", "open", "leases", "merges", "closed"]
    lines = [columns(rows, heads, right=[2, 3, 4, 5]) if rows else "no loop entries", ""]
    lines += [f"PROBLEM  {problem['where']}: {problem['what']}" for problem in report["problems"]]
    if count := len(report["problems"]):
        lines.append(f"{count} PROBLEM{'S' if count > 1 else ''}")
    else:
        sums = f"{report['receipts']:,} receipts, {dpn(report['units_dpn'])} metered"
        lines.append(f"proven: each iteration counts once, and the books add up ({sums})")
    return "\n".join(lines)


def checkpoints(found: Sequence[Checkpoint]) -> str:
    """A run's checkpoints, the best by loss marked."""
    chosen = best(found)
    rows = []
    for c in found:
        loss = "-" if c.loss is None else f"{c.loss:.4g}{' (best)' if c is chosen else ''}"
        rows.append([str(c.version), str(c.told.entry), f"{c.told.iteration:,}", loss, when(c.told.at), str(c.path)])
    heads = ["version", "entry", "iteration", "loss", "written", "folder"]
    return columns(rows, heads, right=[0, 1, 2]) if rows else "no checkpoints: one is written each minute, and at a run's end"


def dpn(units: int) -> str:
    """DPN base units for people."""
    return Amount(units, DPN).text()


def verified(report: Mapping[str, Any], dpn: Any) -> str:
    """A verification: a line for each wallet, then what is wrong, or that nothing is. `dpn`: base units as text."""
    rows = [
        [r["worker_id"], r["wallet"], str(r["receipts"]), dpn(r["units_by_receipts"]), dpn(r["units_by_chain"]),
         "ok" if r["units_by_receipts"] == r["units_by_chain"] else "DIFFERS"]
        for r in report["rows"]
    ]  # fmt: skip
    heads = ["worker", "wallet", "receipts", "by receipts", "by chain", ""]
    lines = [columns(rows, heads, right=[2, 3, 4]) if rows else "no payouts", ""]
    lines.append(f"chain        {report['chain']}")
    lines.append(f"Merkle root  {report['merkle_root']}")
    lines.append(f"refunded     {dpn(report['refunded'])}")
    lines += [f"PROBLEM      {problem}" for problem in report["problems"]]
    lines.append("verified: receipts and chain agree" if report["ok"] else "NOT VERIFIED")
    return "\n".join(lines)
