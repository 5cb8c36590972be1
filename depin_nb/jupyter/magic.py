"""`%depin` and `%%depin train`: parse, call the session, show. No logic of their own."""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from typing import Any

from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand

from depin_nb.core.errors import BudgetExhausted, DepinError, NoSuchRun, UsageError, VerificationError

from .commands import Command
from .complete import depin_matcher
from .parser import parse
from .trouble import install, users_frames

_offered = False


def load(ip: Any) -> None:
    """Registers the magics, their completion and the compact rendering of errors on a shell. Loading twice is the same as once."""
    ip.register_magics(DepinMagics)
    completer = getattr(ip, "Completer", None)
    if completer is not None and depin_matcher not in completer.custom_matchers:
        completer.custom_matchers.append(depin_matcher)
    install()
    _offer()


def _offer() -> None:
    """Says, once a kernel, how a run that was cut short goes on. Never raises: the magics must load."""
    global _offered
    from contextlib import suppress

    from depin_nb.core import config

    said = None
    with suppress(OSError, DepinError):
        path = config.journal_file()
        if _offered or not path.exists():
            return
        _offered = True
        import time

        from depin_nb.hub.info import hub_pid
        from depin_nb.hub.records.resumable import offer

        said = offer(path, now=time.time(), hub_lives=hub_pid() is not None)
    if said is not None:
        print(said)


def unload(ip: Any) -> None:
    """Takes the magics and their completion away again."""
    for kind in ("line", "cell"):
        ip.magics_manager.magics[kind].pop("depin", None)
    completer = getattr(ip, "Completer", None)
    if completer is not None and depin_matcher in completer.custom_matchers:
        completer.custom_matchers.remove(depin_matcher)


@magics_class
class DepinMagics(Magics):
    """The magic `depin`; each subcommand is one method."""

    @no_var_expand  # or IPython would take $0.10 for a variable
    @line_cell_magic
    def depin(self, line: str, cell: str | None = None) -> None:
        """Trains this notebook's PyTorch loops on a cluster. `%depin` alone shows the commands."""
        __tracebackhide__ = True  # IPython leaves frames with this name out of what it shows
        args = parse(line, cell=cell is not None)
        if args.help:
            self._help(args.command)
        elif cell is not None:
            self._train(args, cell)
        else:
            getattr(self, f"_{args.command.name}")(args)

    def _help(self, only: Command | None) -> None:
        from .tables import help_text

        _display(help_text(only))

    def _up(self, args: Namespace) -> None:
        from depin_nb import wiring

        from .tables import Shown, workers

        handle = _display(Shown("<i>Starting…</i>", "Starting…"))
        shown = Shown("<i>Not started.</i>", "Not started.")
        try:
            session = wiring.up(args.backend, args.workers, args.budget)
            shown = workers(session.workers())
        finally:
            handle.update(shown)

    def _status(self, _args: Namespace) -> None:
        from .html import html
        from .tables import Shown, workers
        from .text import text_block

        session = _session()
        _display(workers(session.workers()))
        for status in session.statuses():
            _display(Shown(html(status), text_block(status)))

    def _scale(self, args: Namespace) -> None:
        from .tables import workers

        session = _session()
        session.scale(args.count, args.backend)
        _display(workers(session.workers()))

    def _down(self, _args: Namespace) -> None:
        from depin_nb import wiring

        wiring.down()

    def _runs(self, args: Namespace) -> None:
        from depin_nb import wiring

        from .tables import checked, checkpoints, runs

        if args.action is None:
            _display(runs(wiring.runs()))
            return
        if args.action == "import":
            if args.run is None:
                raise UsageError("import takes a run's folder", hint="Such as `%depin runs import ~/run-7f3c`.")
            print(wiring.import_run(args.run))
            return
        run_id = args.run or _newest(wiring.runs())
        if args.action == "checkpoints":
            _display(checkpoints(run_id, wiring.checkpoints(run_id)))
            return
        if args.action == "export":
            print(wiring.export_run(run_id, args.folder))
            return
        report = wiring.check(run_id)
        _display(checked(report))
        if not report.ok:
            found = [f"{p.where}: {p.what}" for p in report.problems]
            raise VerificationError(f"{report.run_id} isn't what its journal says", run_id=report.run_id, problems=found)

    def _attach(self, args: Namespace) -> None:
        from depin_nb import wiring

        from .following import follow

        run = wiring.attach(args.run or _newest(wiring.runs()))
        follow(run, self.shell, _session().control if wiring.lives() else None)

    def _logs(self, args: Namespace) -> None:
        from depin_nb import wiring

        from .following import print_logs

        print_logs(wiring.detached(args.run), follow=args.follow)

    def _bind(self, args: Namespace) -> None:
        from depin_nb import wiring

        shell: Any = self.shell
        wiring.detached(args.run).bind(shell.user_ns, partial=args.partial)

    def _ledger(self, args: Namespace) -> None:
        from depin_nb import wiring

        from .tables import payouts

        run_id = args.run or _newest(wiring.runs())
        report = wiring.verify(run_id)
        _display(payouts(report))
        if not report.ok:
            raise VerificationError(f"the payouts of {run_id} don't agree with its receipts", run_id=run_id, problems=report.problems)

    def _budget(self, args: Namespace) -> None:
        session = _session()
        session.budget = args.amount
        for status in session.statuses():
            if not status.ended:
                session.control(status.run_id, "budget", args.amount)

    def _pause(self, args: Namespace) -> None:
        self._control(args)

    def _resume(self, args: Namespace) -> None:
        self._control(args)

    def _stop(self, args: Namespace) -> None:
        self._control(args)

    def _share(self, args: Namespace) -> None:
        if args.weight is None and args.priority is None:
            raise UsageError("a share is a weight, a priority or both", hint="Such as `%depin share --weight 2`.")
        status = _session().control(args.run, "share", {"weight": args.weight, "priority": args.priority})
        print(f"{status.run_id}: weight {status.weight:g}, {status.priority}")

    def _debug(self, _args: Namespace) -> None:
        from .debugging import post_mortem

        post_mortem(self.shell)

    def _control(self, args: Namespace) -> None:
        _session().control(args.run, args.command.name)

    def _train(self, args: Namespace, cell: str) -> None:
        from depin_nb.session import TrainOptions

        __tracebackhide__ = True
        session = _session()
        shell: Any = self.shell
        options = TrainOptions(
            strategy=args.strategy,
            budget=args.budget,
            name=args.name,
            workers=args.workers,
            inner_steps=args.inner_steps,
            bits=args.bits,
            resume=args.resume,
            send=args.send,
            data=args.data,
            quorum=args.quorum,
            weight=args.weight,
            priority=args.priority,
        )
        _together(args)
        if args.detach:
            from .tables import detached

            _display(detached(session.detach_cell(cell, shell.user_ns, shell=shell, options=options)))
            return
        if args.dry_run:
            from .tables import plan

            _display(plan(session.plan_cell(cell, shell.user_ns, shell=shell, options=options)))
            return
        from .display import LiveDisplay

        live = LiveDisplay(shell, control=session.control)
        state = "failed"
        status = None
        try:
            train = partial(session.single_cell, limit_s=args.limit) if args.single else session.train_cell
            status = train(cell, shell.user_ns, shell=shell, options=options, on_status=live.update).status
        except KeyboardInterrupt:
            state = "interrupted"
            raise
        except BudgetExhausted:
            state = "budget"
            raise
        except DepinError:
            raise
        except Exception as error:  # the cell's own
            raise error.with_traceback(users_frames(error))  # noqa: B904
        finally:
            live.finish(status, state=state)


def _together(args: Namespace) -> None:
    """Raises UsageError for options that say different things."""
    given = [name for name in ("detach", "single", "dry_run") if getattr(args, name)] + (["resume"] if args.resume is not None else [])
    if len(given) > 1:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"{options} don't go together", hint="Choose one of them.")
    if args.limit is not None and not args.single:
        raise UsageError("--limit is for --single", hint="`%%depin train --single --limit 600` gives a cell ten minutes.")


def _session() -> Any:
    """The session of this kernel. Raises NoHub."""
    from depin_nb import wiring

    return wiring.current()


def _newest(runs: list[dict[str, Any]]) -> str:
    if not runs:
        raise NoSuchRun("the journal has no run yet", run_id="")
    return str(runs[0]["run_id"])


def _display(shown: Any) -> Any:
    from IPython.display import display

    return display(shown, display_id=True)  # type: ignore[no-untyped-call,unused-ignore]
