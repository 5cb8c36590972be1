"""What is larger than a message: versions, steps and blobs down, changes up; broken, hostile, and over Dask's RPC."""

from __future__ import annotations

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distributed import Scheduler

from depin_nb.core.errors import CodecError, HubDied, TransferGone, UsageError
from depin_nb.core.lease import Lease, Report, StrategyConfig
from depin_nb.core.parts import MAX_PART_BYTES, Announced
from depin_nb.core.state import State
from depin_nb.hub.plugin import CoordinatorPlugin
from depin_nb.network.frames import framed, unframed
from depin_nb.network.shaping import Link
from depin_nb.training.compress import encode_change
from depin_nb.worker.link import Go, HubLink
from depin_nb.worker.transfer import Cache, Incoming, hand_in
from depin_nb.worker.versions import Versions

from .fleet import FakeWorker, first_state, hub_in, worked

LOCAL = StrategyConfig(name="local", solo=False, inner_steps=6, bits=32)
STEPS = replace(LOCAL, bits=4, down_bits=4)


@asynccontextmanager
async def entry(hub, strategy=LOCAL, total=12):
    """A run with an open entry, in which everything beyond 500 bytes travels in parts."""
    hub.coordinator.transfers.whole_bytes = 500
    ops = hub.coordinator.kernel
    run = (await ops.run_start("n", "w", "local", None, "depin", ""))["run_id"]
    digest = (await ops.blob_put(run, bytes(range(256)) * 40))["digest"]
    spec = replace(hub.spec(strategy, total), blobs=(digest,))
    number = (await ops.entry_open(run, spec.to_dict(), first_state().to_bytes()))["entry"]
    ops.units(run, number, [(i, b"%d" % i, 2) for i in range(total)], True)
    yield run, number, digest


async def leased(worker):
    worker.ops.join(worker.address, worker.profile, worker.wallet, {"name": worker.name, "backend": "depin"})
    return Lease.from_dict((await worker.ops.lease(worker.address, 5))["lease"])


async def parts(worker, run, what, size=300, begin=b""):
    data = begin
    while len(data) < what["bytes"]:
        data += bytes((await worker.ops.part(worker.address, run, what["digest"], len(data), size))["data"])
    assert hashlib.sha256(data).hexdigest() == what["digest"]
    return data


async def put(worker, lease, change, size=700, begin=0):
    about = Announced(hashlib.sha256(change).hexdigest(), len(change)).to_dict()
    at = begin
    while at < len(change):
        at = (await worker.ops.put(worker.address, lease.lease_id, about, at, change[at : at + size]))["have"]
    return about


def in_parts(report, about):
    return {**report, "change": b"", "extra": {"sent": about}}


def test_versions_and_blobs_come_in_parts(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub, entry(hub) as (run, _, digest):
            worker = FakeWorker(hub, "a")
            lease = await leased(worker)
            answer = await worker.ops.version(worker.address, run, lease.base_version)
            assert set(answer["state"]) == {"digest", "bytes"}
            state = State.from_bytes(await parts(worker, run, answer["state"]))
            assert state.to_bytes() == first_state().to_bytes()
            blob = (await worker.ops.blob(worker.address, run, digest))["data"]
            assert blob == {"digest": digest, "bytes": 10_240}
            assert await parts(worker, run, blob) == bytes(range(256)) * 40
            assert (await worker.ops.blob(worker.address, run, hub.program))["data"] == b"program"

    asyncio.run(main())


def test_steps_and_references_come_in_parts(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub, entry(hub, STEPS, 24) as (run, _, _):
            hub.coordinator.transfers.whole_bytes = 200
            worker, versions, loop = FakeWorker(hub, "a"), Versions(), asyncio.get_running_loop()
            announced = []

            def ask(op, go=None, **request):
                answer = asyncio.run_coroutine_threadsafe(getattr(worker.ops, op.removeprefix("depin_"))(worker.address, **request), loop)
                answer = answer.result(30)
                announced.extend(each for each in [answer.get("state"), *answer.get("steps", ())] if isinstance(each, dict))
                return answer

            incoming = Incoming(ask, Cache(tmp_path / "cache"), lambda: 250)
            lease = await leased(worker)
            for _ in range(2):
                base = await asyncio.to_thread(versions.get, ask, lambda data: incoming.whole(data, run, Go()), run, lease.base_version)
                report = worker.report(lease, base, len(lease.units), "")
                assert (await worker.ops.report(worker.address, in_parts(report, await put(worker, lease, report["change"]))))["accepted"]
                lease = Lease.from_dict((await worker.ops.lease(worker.address, 5))["lease"])
            assert len(announced) == 2  # the first version whole, then a step
            (known,) = hub.coordinator.transfers._parcels.values()
            assert {key[0] for key in known} == {"reference", "memory"}

    asyncio.run(main())


def test_offsets_and_digests_that_were_not_announced_are_refused(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub, entry(hub) as (run, _, _):
            worker = FakeWorker(hub, "a")
            lease = await leased(worker)
            what = (await worker.ops.version(worker.address, run, lease.base_version))["state"]
            for offset, want in ((-1, 10), (what["bytes"], 10), (0, 0), (0, MAX_PART_BYTES + 1), (0.0, 10), ("0", 10), (True, 10)):
                with pytest.raises(UsageError, match="a part is of at most"):
                    await worker.ops.part(worker.address, run, what["digest"], offset, want)
            for digest in ("0" * 64, "../journal.sqlite", None):
                with pytest.raises(TransferGone):
                    await worker.ops.part(worker.address, run, digest, 0, 10)
            hub.coordinator.states.path(run, lease.base_version).unlink()
            with pytest.raises(TransferGone):
                await worker.ops.part(worker.address, run, what["digest"], 0, 10)

    asyncio.run(main())


def test_a_change_in_parts_counts_as_one_in_its_report(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub, entry(hub, total=6) as (run, number, _):
            worker = FakeWorker(hub, "a")
            lease = await leased(worker)
            report = worker.report(lease, first_state(), 6, "")
            about = await put(worker, lease, report["change"])
            assert (await worker.ops.report(worker.address, in_parts(report, about)))["accepted"]
            assert not list((tmp_path / "incoming" / run).iterdir())
            results = await hub.coordinator.kernel.results(run, number, 0, 5)
            assert [r["first"] for r in results["leases"]] == [0]
            weights = hub.coordinator.runs[run].weights
            expected = worked(first_state(), lease, 6)
            assert torch.equal(weights.tensors["model/w"], expected.tensors["model/w"])
            assert hub.coordinator.runs[run].bytes_up >= len(report["change"])
            await hub.coordinator.kernel.run_finish(run, "finished", "")
            assert not (tmp_path / "incoming" / run).exists()

    asyncio.run(main())


def test_a_change_goes_on_after_a_break_and_after_another_hub(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub, entry(hub, total=6) as (run, _, _):
            worker = FakeWorker(hub, "a")
            lease = await leased(worker)
            report = worker.report(lease, first_state(), 6, "")
            change = report["change"]
            about = Announced(hashlib.sha256(change).hexdigest(), len(change)).to_dict()
            call = worker.ops.put
            assert await call(worker.address, lease.lease_id, about, 0, change[:1000]) == {"have": 1000}
            assert await call(worker.address, lease.lease_id, about, 0, change[:1000]) == {"have": 1000}  # its answer was lost
            assert await call(worker.address, lease.lease_id, about, 500, b"x" * 700) == {"have": 1200}  # never over what is here
            assert await call(worker.address, lease.lease_id, about, 2000, b"x" * 10) == {"have": 1200}  # no holes
            hub.coordinator.transfers.start(keep=[run])
            assert await call(worker.address, lease.lease_id, about, 0, b"") == {"have": 1200}
            with pytest.raises(CodecError, match="before all of its parts"):
                await hub.coordinator.transfers.received(hub.coordinator.runs[run], hub.coordinator.members[worker.address], about)
            await put(worker, lease, change, begin=1200)
            answer = await worker.ops.report(worker.address, in_parts(report, about))
            assert not answer["accepted"]  # 200 bytes were others'
            assert "don't make what its digest says" in answer["reason"]
            lease = Lease.from_dict((await worker.ops.lease(worker.address, 5))["lease"])
            report = worker.report(lease, first_state(), 6, "")
            assert (await worker.ops.report(worker.address, in_parts(report, await put(worker, lease, report["change"]))))["accepted"]
            hub.coordinator.transfers.start()
            assert not (tmp_path / "incoming" / run).exists()

    asyncio.run(main())


def test_parts_are_bounded_before_anything_is_kept(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub, entry(hub) as (run, _, _):
            worker, other = FakeWorker(hub, "a"), FakeWorker(hub, "b")
            lease = await leased(worker)
            other.ops.join(other.address, other.profile, other.wallet, {"name": "b", "backend": "depin"})
            limit = hub.coordinator.change_limit(hub.coordinator.runs[run])
            about = {"digest": "0" * 64, "bytes": 5000}

            async def said(about, offset, data, who=worker):
                return await who.ops.put(who.address, lease.lease_id, about, offset, data)

            for wrong in ({"digest": "0" * 64, "bytes": limit + 1}, {"digest": "../x", "bytes": 10}, {"bytes": 10}, None):
                with pytest.raises(CodecError):
                    await said(wrong, 0, b"x")
            for offset, data in ((-1, b"x"), (4999, b"xx"), (5001, b""), (0.0, b"x"), (0, bytes(5001))):
                with pytest.raises(UsageError):
                    await said(about, offset, data)
            assert "refused" in await said(about, 0, b"x", other)
            assert "refused" in await worker.ops.put(worker.address, "run-1-1", about, 0, b"x")
            assert not (tmp_path / "incoming").exists()
            for number in range(10):  # one after the other: the oldest go
                await said({"digest": f"{number:064}", "bytes": 5000}, 0, b"x")
            assert len(list((tmp_path / "incoming" / run).iterdir())) == 3
            assert not (await worker.ops.report(worker.address, {"lease_id": lease.lease_id, "extra": {"sent": "what"}}))["accepted"]

    asyncio.run(main())


def test_while_the_hub_is_busy_trusted_workers_that_have_it_are_named(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub, entry(hub) as (run, _, digest):
            hub.coordinator.transfers.busy = 2
            trusted, *phones = workers = [FakeWorker(hub, "local-1", "local"), *(FakeWorker(hub, f"phone-{i}") for i in range(3))]
            for worker in workers:
                simulated = worker is not trusted
                facts = {"name": worker.name, "backend": "depin" if simulated else "local", "simulated": simulated}
                worker.ops.join(worker.address, worker.profile, worker.wallet, facts)

            async def announced(worker):
                return (await worker.ops.blob(worker.address, run, digest))["data"]

            for worker in (trusted, phones[0]):  # nobody waits yet
                what = await announced(worker)
                assert set(what) == {"digest", "bytes"}
                await parts(worker, run, what, 4000)
            for worker in phones[1:]:
                await worker.ops.part(worker.address, run, digest, 0, 100)
            assert (await announced(phones[0]))["from"] == [trusted.address]  # a phone has it too, and is never asked
            hub.coordinator.worker_lost(trusted.address)
            assert "from" not in await announced(phones[0])

    asyncio.run(main())


def test_a_long_transfer_is_shown(tmp_path: Path):
    async def main():
        async with hub_in(tmp_path) as hub, entry(hub) as (run, _, _):
            worker = FakeWorker(hub, "a")
            lease = await leased(worker)
            what = (await worker.ops.version(worker.address, run, lease.base_version))["state"]

            def shown():
                (device,) = hub.coordinator.status(hub.coordinator.runs[run]).devices
                return device.moving

            assert shown() == ""
            await worker.ops.part(worker.address, run, what["digest"], 0, 300)
            assert shown() == f"fetching 0.0 of {what['bytes'] / 1e6:.1f} MB"
            await worker.ops.part(worker.address, run, what["digest"], 300, what["bytes"])
            assert shown() == ""
            await worker.ops.put(worker.address, lease.lease_id, {"digest": "0" * 64, "bytes": 900_000}, 0, bytes(500_000))
            assert shown() == "sending 0.5 of 0.9 MB"
            hub.coordinator.worker_lost(worker.address)
            assert shown() == ""

    asyncio.run(main())


def test_over_dask_large_payloads_are_frames_and_a_cut_is_survived(tmp_path: Path):
    class Link2(HubLink):
        """Its connections break after the third part each way."""

        parts = 0

        async def call(self, op, **request):
            if op in ("depin_part", "depin_put"):
                self.parts += 1
                if self.parts == 3:
                    await self._rpc.close_rpc()
                    self._rpc = type(self._rpc)(self._rpc.address)
                    raise HubDied("the connection is lost")
            return await super().call(op, **request)

    async def main():
        torch.manual_seed(1)
        async with hub_in(tmp_path) as hub, Scheduler(host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0") as scheduler:
            plugin = CoordinatorPlugin(hub.coordinator)
            await plugin.start(scheduler)
            ops = hub.coordinator.kernel
            run = (await ops.run_start("n", "w", "local", None, "depin", ""))["run_id"]
            large = State({**first_state().tensors, "model/large": torch.randn(1 << 19)}, {**first_state().kinds, "model/large": "param"})
            number = (await ops.entry_open(run, hub.spec(LOCAL, 6).to_dict(), large.to_bytes()))["entry"]
            ops.units(run, number, [(i, b"", 2) for i in range(6)], True)
            worker, link = FakeWorker(hub, "a"), Link2(scheduler.address, "tcp://a", Link(0, 0, 0))
            link.whole_bytes, link.up_part_bytes = 1 << 20, 400_000
            await link.call("depin_join", profile="phone", wallet=worker.wallet, facts={"name": "a", "backend": "depin"})
            lease = Lease.from_dict((await link.call("depin_lease", timeout_s=5))["lease"])
            incoming = Incoming(link.ask, Cache(tmp_path / "cache"), lambda: 400_000)

            def base():
                go = Go()
                return Versions().get(
                    lambda op, **request: link.ask(op, go, **request), lambda data: incoming.whole(data, run, go), run, lease.base_version
                )

            with ThreadPoolExecutor(1) as thread:
                state = await asyncio.get_running_loop().run_in_executor(thread, base)
            assert state.to_bytes() == large.to_bytes()
            assert link.parts == 7  # 2.1 MB in 6, one of them twice
            link.parts = 0
            report = worker.report(lease, large, 6, "")
            full = State({**large.tensors, "model/large": torch.randn(1 << 19)}, dict(large.kinds), dict(large.plain))
            data, _ = encode_change(large, full, bits=32, include_inner=False)
            assert (await hand_in(link, Report.from_dict({**report, "change": data})))["accepted"]
            assert link.parts == 7
            await hub.coordinator.commits.settled(hub.coordinator.runs[run])
            assert torch.equal(hub.coordinator.runs[run].weights.tensors["model/large"], full.tensors["model/large"])
            await link.close()
            await plugin.close()

    asyncio.run(main())


def test_only_bytes_are_taken_out_of_frames():
    assert bytes(unframed(framed(b"data"))) == b"data"
    assert unframed(b"data") == b"data"
    from distributed.protocol import Serialize, serialize
    from distributed.protocol.serialize import Serialized

    for wrong in (Serialized(*serialize(b"data")), Serialize(b"data"), 7, None, Serialized({"serializer": "pickle"}, [b"x"])):
        with pytest.raises(CodecError, match="not bytes"):
            unframed(wrong)
    squeezed = framed(b"data")
    squeezed.header["compression"] = ("zlib",)
    with pytest.raises(CodecError, match="not bytes"):
        unframed(squeezed)
