"""Packages: what workers say of theirs, and that one that lacks some gets no lease of a program that needs them."""

import asyncio

import pytest

from depin_nb.core.lease import EntrySpec
from depin_nb.core.packages import MAX_PACKAGES, checked, lacking, other_versions
from depin_nb.ledger.wallet import Wallets

from .fleet import SYNC, first_state, hub_in

HAVE = {"torch": "2.13", "Scikit_Learn": "1.7"}


def test_names_compare_as_the_package_index_does():
    assert lacking({"scikit-learn": "1.7", "tokenizers": "0.22", "torch": "2.13"}, HAVE) == ["tokenizers"]
    assert other_versions({"scikit.learn": "1.6", "torch": "2.13", "x": "1"}, HAVE) == ["scikit.learn 1.7"]


@pytest.mark.parametrize("odd", [None, [], "torch", 3])
def test_what_is_no_list_of_packages_counts_as_unsaid(odd):
    assert checked(odd) is None


def test_malformed_and_endless_lists_are_cut():
    assert checked({"torch": "2", 3: "x", "y": 4, "": "1", "n" * 200: "1", "v": "9" * 100}) == {"torch": "2"}
    assert len(checked({f"p{i}": "1" for i in range(3 * MAX_PACKAGES)})) == MAX_PACKAGES


def joined(hub, tmp_path, name, **facts):
    hub.coordinator.workers.join(f"tcp://{name}", "local", Wallets(tmp_path / "keys").device(name).address, {"name": name, **facts})


def test_the_hub_tells_who_lacks_what(tmp_path):
    async def scenario():
        async with hub_in(tmp_path) as hub:
            joined(hub, tmp_path, "full", packages={**HAVE, "tokenizers": "0.21"}, compiles=True)
            joined(hub, tmp_path, "bare", packages=HAVE, compiles=False)
            joined(hub, tmp_path, "silent")
            joined(hub, tmp_path, "odd", packages=["torch"])
            return hub.coordinator.kernel.needs({"torch": "2.13", "tokenizers": "0.22"})

    assert asyncio.run(scenario()) == {
        "lacks": {"bare": ["tokenizers"]},
        "other": {"full": ["tokenizers 0.21"]},
        "small": {},
        "uncompiled": ["bare"],
        "links": {},
    }


def test_no_lease_for_a_worker_that_lacks_a_package(tmp_path):
    async def scenario():
        async with hub_in(tmp_path) as hub:
            joined(hub, tmp_path, "full", packages={**HAVE, "tokenizers": "0.22"})
            joined(hub, tmp_path, "bare", packages=HAVE)
            kernel = hub.coordinator.kernel
            run = (await kernel.run_start("a run"))["run_id"]
            spec = hub.spec(SYNC, total=4).to_dict()
            await kernel.entry_open(run, {**spec, "packages": {"tokenizers": "0.22"}}, first_state().to_bytes())
            able = [m.worker_id for m in hub.coordinator.muster.members(hub.coordinator.runs[run])]
            await kernel.entry_open(run, spec, None)
            return able, [m.worker_id for m in hub.coordinator.muster.members(hub.coordinator.runs[run])]

    able, everybody = asyncio.run(scenario())
    assert able == ["full"]
    assert sorted(everybody) == ["bare", "full"]


def test_a_spec_without_packages_reads_as_before():
    spec = EntrySpec("p", (), SYNC, 1, 2, 3, 0.1, 4)
    data = spec.to_dict()
    assert EntrySpec.from_dict(data) == spec
    del data["packages"]
    assert EntrySpec.from_dict(data) == spec
