"""The operations over a real Dask scheduler on loopback, as kernel and workers call them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from distributed import Scheduler
from distributed.core import rpc

from depin_nb.core import errors
from depin_nb.core.errors import BudgetExhausted, HubError
from depin_nb.core.lease import Lease
from depin_nb.hub.answers import error_answer
from depin_nb.hub.plugin import CoordinatorPlugin

from .fleet import LOCAL, FakeWorker, first_state, hub_in


class Remote:
    """A coordinator's operations over RPC, in the form that the fake worker calls."""

    def __init__(self, address: str) -> None:
        self.rpc = rpc(address)

    def __getattr__(self, op: str):
        names = {"lease": ("worker", "timeout_s"), "report": ("worker", "report"), "version": ("worker", "run", "version", "have")}[op]

        async def call(*args):
            return await getattr(self.rpc, f"depin_{op}")(**dict(zip(names, args, strict=True)))

        return call


class RemoteWorker(FakeWorker):
    remote: Remote

    @property
    def ops(self):
        return self.remote


def test_an_entry_over_rpc(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub, Scheduler(host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0") as scheduler:
            plugin = CoordinatorPlugin(hub.coordinator)
            scheduler.add_plugin(plugin)
            await plugin.start(scheduler)
            kernel, remote = rpc(scheduler.address), Remote(scheduler.address)
            worker = RemoteWorker(hub, "a")
            worker.remote = remote
            answer = await remote.rpc.depin_join(worker=worker.address, profile="phone", wallet=worker.wallet, facts={"name": "a"})
            assert set(answer) == {"session", "hub", "keep", "later"}
            serving = asyncio.ensure_future(worker._work())

            run = (await kernel.depin_run_start(name="n", where="w", strategy="auto", budget="$1", backend="depin", source=""))["run_id"]
            assert (await kernel.depin_blob_missing(run=run, digests=[hub.program, "0" * 64]))["missing"] == ("0" * 64,)
            digest = (await kernel.depin_blob_put(run=run, data=b"block"))["digest"]
            spec = {**hub.spec(LOCAL, 12).to_dict(), "blobs": (digest,)}
            opened = await kernel.depin_entry_open(run=run, spec=spec, state=first_state().to_bytes())
            units = [(i, b"%d" % i, 2) for i in range(12)]
            await kernel.depin_units(run=run, entry=opened["entry"], units=units, closed=True)
            got, logs = 0, []
            while got < 12:
                answer = await kernel.depin_results(run=run, entry=opened["entry"], after=got, timeout_s=5)
                for lease in answer["leases"]:
                    logs += lease["logs"]
                    got += len(lease["logs"])
            assert (await remote.rpc.depin_entry(worker=worker.address, run=run, entry=opened["entry"]))["spec"]["program"] == hub.program
            assert (await remote.rpc.depin_blob(worker=worker.address, run=run, digest=digest))["data"] == b"block"
            assert len(logs) == 12
            assert isinstance(worker.leases[0], Lease)
            hub.clock.at_s += 500  # the user's own code takes long: the connection says that the kernel lives
            plugin._kernels_alive()
            hub.coordinator.tick()
            assert not hub.coordinator.runs[run].finishing.locked()
            await kernel.depin_entry_close(run=run, entry=opened["entry"], reason="done")
            status = (await kernel.depin_run_finish(run=run, outcome="finished", message=""))["status"]
            assert status["state"] == "finished"

            wrong = await kernel.depin_units(run="run-none", entry=1, units=[], closed=True)
            assert wrong["error"]["type"] == "NoSuchRun"
            assert wrong["error"]["fields"] == {"run_id": "run-none"}
            assert (await kernel.depin_units(nonsense=1))["error"]["type"] == "HubError"
            run = (await kernel.depin_run_start(name="n"))["run_id"]
            await kernel.close_rpc()
            while not all(comm.closed() for comm in plugin._kernels[run]):
                await asyncio.sleep(0)
            hub.clock.at_s += 500
            plugin._kernels_alive()
            hub.coordinator.tick()
            while run in hub.coordinator.runs:
                assert await hub.coordinator.changed.wait(10)
            assert hub.journal.run(run).state == "interrupted"
            plugin.remove_worker(scheduler, worker.address)
            assert worker.address not in hub.coordinator.members
            await serving
            await remote.rpc.close_rpc()
            await plugin.close()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_errors_are_plain_data():
    answer = error_answer(BudgetExhausted("no", run_id="r", spent={"units": 1, "currency": "USD"}, budget=None))
    assert answer["error"]["type"] == "BudgetExhausted"
    assert answer["error"]["fields"] == {"run_id": "r", "spent": {"units": 1, "currency": "USD"}, "budget": None}
    assert answer["error"]["hint"]

    class Own(HubError):
        pass

    assert error_answer(Own("x", thing=object()))["error"]["type"] == "HubError"
    assert hasattr(errors, error_answer(ValueError("y"))["error"]["type"])
