"""The error tree. Every error says what happened, carries typed fields, and ends with what to do next."""

from __future__ import annotations

from typing import Any


class DepinError(Exception):
    """Base of all errors of depin_nb: a message, a hint (the next step) and typed fields; survives pickling."""

    default_hint = ""

    def __init__(self, message: str, *, hint: str = "", **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.default_hint
        self.fields = fields

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("fields", {})
        if name in fields:
            return fields[name]
        raise AttributeError(name)

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.hint}" if self.hint else self.message

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), self.message, self.hint, self.fields)


def _rebuild(kind: type[DepinError], message: str, hint: str, fields: dict[str, Any]) -> DepinError:
    return kind(message, hint=hint, **fields)


class UsageError(DepinError):
    """A magic, command or argument was not understood."""

    default_hint = "`%depin` alone prints a short help."


class ConfigError(DepinError):
    """A setting has a value that can't be used."""


# --- the loop -------------------------------------------------------------------------------------


class LoopError(DepinError):
    """Base of what can go wrong between a cell and its leases."""


class RefusedLoop(LoopError):
    """A loop can't be leased; the user's objects are untouched. Fields: line (int), source (str), reason (str)."""

    default_hint = "Run the cell without %%depin, or write the inner loop as `for x, y in loader:` with backward() and step() in it."


class ShipError(LoopError):
    """A name that the worker half reads can't be sent. Fields: name (str), kind (str)."""


class WithheldError(ShipError):
    """The worker half uses a value that stayed in the notebook because it looks like a secret. Fields: name (str)."""

    default_hint = 'Keep it out of the loop, or let it travel with `--send NAME` (in a script: send=("NAME",)).'


class MissingPackage(LoopError):
    """A worker lacks packages that the program refers to. Fields: packages (list of str)."""

    default_hint = "Install them where the workers run, or keep them out of the loop and its dataset."


class DatasetDiffers(LoopError):
    """A worker's own copy of a dataset isn't the notebook's, or isn't there. Fields: place (str), problem (str)."""

    default_hint = "Put the same files at that path on every worker, or send the data: `--data whole` or `--data samples`."


class ReplayError(LoopError):
    """The notebook half and a worker's log disagree: an error of depin_nb's, never the user's. Fields: line, detail."""

    default_hint = "The loop was not applied. Please report the cell; `%%depin train --strategy sync` on one worker may still run it."


class RemoteError(LoopError):
    """A worker raised an exception whose type the notebook doesn't know. Fields: type_name (str)."""


class BindError(LoopError):
    """A run's results can't be brought into the notebook; nothing there has changed. Fields: names."""

    default_hint = "`depin_nb.attach(RUN).state_dict()` gives the weights alone."


# --- hub and workers --------------------------------------------------------------------------------


class HubError(DepinError):
    """Base of what can go wrong with the hub."""


class NoHub(HubError):
    """No hub is running where one was expected."""

    default_hint = "`%depin up local` or `%depin up depin` starts one."


class HubDied(HubError):
    """The hub stopped answering in the middle of something."""

    default_hint = "`%depin up` starts it again from its journal; nothing that was merged is lost."


class HubRestarted(HubDied):
    """Another hub has the run by now, and waits for its notebook. Fields: run_id."""


class NoWorkers(HubError):
    """No worker is there to take a lease."""

    default_hint = "`%depin scale 2` starts two workers."


class OutOfMemory(HubError):
    """A loop needs more memory than a worker has. Fields: needed (bytes), workers (list of str)."""

    default_hint = "Use a smaller batch or model, or workers with more memory."


class NoSuchRun(HubError):
    """A run id isn't in the journal. Fields: run_id."""

    default_hint = "`%depin runs` lists the runs."


class ResumeError(HubError):
    """A run can't be resumed, or the cell isn't the one that it ran. Fields: run_id (str), line (int)."""

    default_hint = "Run the cell without --resume, or undo what was changed in it."


class JournalError(HubError):
    """The journal can't be read or written. Fields: path."""


class JournalDamaged(JournalError):
    """The journal's file isn't what was written to it. Fields: path."""


class DiskFull(HubError):
    """Nothing more fits onto the disk of the state folder. What was merged is on it, whole. Fields: path."""

    default_hint = "Free some space on the disk that holds DEPIN_HOME, then try again."


class CheckpointError(HubError):
    """A checkpoint isn't whole, or isn't one. Fields: path."""

    default_hint = "`depin runs checkpoints RUN` lists those that can be read."


class RunFolderError(HubError):
    """A run can't be exported, or a folder isn't a run that can be imported; nothing has changed. Fields: path, run_id."""

    default_hint = "`depin runs export RUN` on the hub that has the run makes a folder anew."


class TransferGone(HubError):
    """What a hub announced isn't there any more. Fields: digest."""

    default_hint = "It is asked for anew; if it happens again, the hub's log says why."


class WorkerError(HubError):
    """A worker could not be started or stopped. Fields: worker."""


# --- bytes ------------------------------------------------------------------------------------------


class CodecError(DepinError):
    """Bytes that don't follow the codec, or a value that it can't carry."""


# --- money ------------------------------------------------------------------------------------------


class MoneyError(DepinError):
    """Base of what can go wrong with prices, budgets and payments."""


class AmountError(MoneyError):
    """Amounts of different currencies were mixed, or text isn't an amount."""

    default_hint = "Write amounts like $0.10 or 25 DPN."


class BudgetExhausted(MoneyError):
    """The next lease would overspend the budget: the run was checkpointed and stopped. Fields: run_id, spent, budget."""

    default_hint = "The model holds the last merge. Raise it with --budget and run the cell again to go on."


class ChainError(MoneyError):
    """The chain refused or did not confirm a transaction. Fields: signature, logs."""


class SettlementError(MoneyError):
    """A run could not be settled; it is tried again at the next start. Fields: run_id."""


class VerificationError(MoneyError):
    """What the chain says and what the receipts say differ. Fields: run_id, problems."""


class WalletError(MoneyError):
    """A wallet or key can't be used. Never contains key material."""
