"""Long transfers of a worker: they go on where they stood, other workers of the machine have them too, and only what is right is used."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading

import pytest

from depin_nb.core.errors import CodecError, HubDied, HubError
from depin_nb.core.lease import Report
from depin_nb.core.parts import MAX_PART_BYTES, MIN_PART_BYTES, WHOLE_BYTES, Announced, announced, megabytes, part_bytes
from depin_nb.worker.link import Dropped, Go
from depin_nb.worker.transfer import Cache, Incoming, hand_in

THING = os.urandom(10_000)
WHAT = Announced(hashlib.sha256(THING).hexdigest(), len(THING))


class Source:
    """Gives parts of THING, and writes down from where; fails at the calls in `breaks`."""

    def __init__(self, breaks=(), data=THING):
        self.breaks, self.data, self.offsets = set(breaks), data, []

    def __call__(self, offset, want):
        self.offsets.append(offset)
        if len(self.offsets) in self.breaks:
            raise HubDied("the connection is lost")
        return self.data[offset : offset + want]


def fetched(cache, source, go=None, part=3000):
    return bytes(cache.fetch(WHAT, source, go or Go(), part))


def test_a_broken_transfer_goes_on_where_it_stood(tmp_path):
    source = Source(breaks=[3])
    with pytest.raises(HubDied):
        fetched(Cache(tmp_path), source)
    assert fetched(Cache(tmp_path), source) == THING  # another process
    assert source.offsets == [0, 3000, 6000, 6000, 9000]


def test_another_worker_of_the_machine_asks_for_nothing(tmp_path):
    fetched(Cache(tmp_path), Source())
    other = Source()
    assert fetched(Cache(tmp_path), other) == THING
    assert other.offsets == []


def test_an_altered_file_is_fetched_again(tmp_path):
    fetched(Cache(tmp_path), Source())
    path = tmp_path / WHAT.digest
    path.write_bytes(b"x" + path.read_bytes()[1:])
    source = Source()
    assert fetched(Cache(tmp_path), source) == THING
    assert source.offsets == [0, 3000, 6000, 9000]


def test_a_beginning_that_was_altered_or_too_long_is_fetched_again(tmp_path):
    for left in (b"x" * 6000, THING + b"more"):
        (tmp_path / f"{WHAT.digest}.part").write_bytes(left)
        assert fetched(Cache(tmp_path), Source()) == THING
        (tmp_path / WHAT.digest).unlink()


def test_what_is_not_as_announced_is_refused_and_not_kept(tmp_path):
    with pytest.raises(CodecError, match="isn't what its digest says"):
        fetched(Cache(tmp_path), Source(data=bytes(10_000)))
    assert fetched(Cache(tmp_path), Source()) == THING
    with pytest.raises(CodecError, match="isn't what its digest says"):
        fetched(Cache(), Source(data=bytes(10_000)))


def test_parts_of_another_size_are_refused(tmp_path):
    for cache in (Cache(tmp_path), Cache()):
        for wrong in (lambda offset, want: b"", lambda offset, want: b"x" * (want + 10_000), lambda offset, want: "text"):
            with pytest.raises(CodecError, match="a part isn't of the size"):
                fetched(cache, wrong)


def test_one_process_fetches_while_the_other_waits(tmp_path):
    begun, let = threading.Event(), threading.Event()

    def slow(offset, want):
        begun.set()
        assert let.wait(30)
        return THING[offset : offset + want]

    class Waiting(Go):
        def wait(self, seconds):
            waited.set()
            first.join(30)

    waited = threading.Event()
    first = threading.Thread(target=fetched, args=(Cache(tmp_path), slow))
    first.start()
    assert begun.wait(30)
    other, got = Source(), []
    second = threading.Thread(target=lambda: got.append(fetched(Cache(tmp_path), other, Waiting())))
    second.start()
    assert waited.wait(30)
    let.set()
    second.join(30)
    assert got == [THING]
    assert other.offsets == []


def test_who_waits_for_another_process_ends_when_its_lease_is_not_wanted(tmp_path):
    go = Go()

    def inner(offset, want):
        go.stop()
        with pytest.raises(Dropped):
            fetched(Cache(tmp_path), Source(), go)
        return THING[offset : offset + want]

    assert fetched(Cache(tmp_path), inner, part=10_000) == THING


def test_without_a_folder_that_can_be_written_it_goes_through_memory(tmp_path):
    (tmp_path / "file").write_text("")
    source = Source()
    assert fetched(Cache(tmp_path / "file" / "cache"), source) == THING
    assert source.offsets == [0, 3000, 6000, 9000]


def test_the_cache_is_bounded_and_drops_the_least_used(tmp_path):
    cache = Cache(tmp_path, max_bytes=250_000)
    blobs = [os.urandom(100_000) for _ in range(3)]
    digests = [hashlib.sha256(blob).hexdigest() for blob in blobs]
    for age, (digest, blob) in enumerate(zip(digests, blobs, strict=True)):
        cache.put(digest, blob)
        os.utime(tmp_path / digest, (1e9 + age, 1e9 + age))
    cache.put(digests[0], blobs[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(digests[i] for i in (0, 2))
    (tmp_path / f"{digests[1]}.part").write_bytes(b"old")
    os.utime(tmp_path / f"{digests[1]}.part", (1e9, 1e9))
    cache.put(digests[2], blobs[2])
    assert not (tmp_path / f"{digests[1]}.part").exists()


def test_announcements_are_checked():
    good = WHAT.to_dict()
    assert announced(good) == WHAT
    for wrong in (None, [], {}, {**good, "more": 1}, {**good, "digest": "../../etc"}, {**good, "bytes": -1}, {**good, "bytes": 1.5}):
        with pytest.raises(CodecError):
            announced(wrong)
    with pytest.raises(CodecError, match="at most 9999"):
        announced(good, max_bytes=9999)


def test_parts_are_as_long_as_the_link_is_fast():
    assert part_bytes(0, 0) == WHOLE_BYTES
    assert part_bytes(5, 80) == 1_000_000
    assert part_bytes(0.1, 10) == MIN_PART_BYTES
    assert part_bytes(1000, 40) == MAX_PART_BYTES
    assert megabytes(12_000_000, 40_000_000) == "12 of 40 MB"
    assert megabytes(400_000, 2_500_000) == "0.4 of 2.5 MB"


def test_what_is_gone_is_asked_for_anew(tmp_path):
    from depin_nb.core.errors import TransferGone

    asked = []

    def ask(op, go, **request):
        asked.append(op)
        if op == "depin_blob":
            return {"data": WHAT.to_dict()}
        if asked.count("depin_blob") == 1:
            raise TransferGone("gone")
        return {"data": THING[request["offset"] : request["offset"] + request["want"]]}

    assert Incoming(ask, Cache(tmp_path)).blob(WHAT.digest, "run-1", Go()) == THING
    assert asked == ["depin_blob", "depin_part", "depin_blob", "depin_part"]


def test_a_holder_gives_the_parts_and_the_hub_where_it_cannot(tmp_path):
    asked = []

    def hub(op, go, **request):
        asked.append("hub")
        return {"data": THING[request["offset"] : request["offset"] + request["want"]]}

    def holders(address, op, go, **request):
        asked.append(address)
        if address == "gone" or (address == "half" and request["offset"] >= 6000):
            raise HubDied("not there")
        data = bytes(10_000) if address == "wrong" else THING
        return {"data": data[request["offset"] : request["offset"] + request["want"]]}

    def fetched_from(*names):
        asked.clear()
        incoming = Incoming(hub, Cache(tmp_path / "-".join(names)), lambda: 3000, holders)
        assert bytes(incoming.whole({**WHAT.to_dict(), "from": list(names)}, "run-1", Go())) == THING
        return list(asked)

    assert fetched_from("good") == ["good"] * 4
    assert fetched_from("gone", "good") == ["gone"] + ["good"] * 4
    assert fetched_from("half") == ["half"] * 3 + ["hub"] * 2
    assert fetched_from("wrong") == ["wrong"] * 4 + ["hub"] * 4
    assert bytes(Incoming(hub, Cache()).whole({**WHAT.to_dict(), "from": ["good"]}, "run-1", Go())) == THING


def test_a_holder_gives_what_it_has_whole_and_no_other_file(tmp_path):
    cache = Cache(tmp_path / "cache")
    fetched(cache, Source())
    (tmp_path / "secret").write_text("secret")
    assert cache.part(WHAT.digest, 9000, 5000) == THING[9000:]
    for wrong in ("../secret", "0" * 64, None, 7):
        assert cache.part(wrong, 0, 10) is None


class Hub:
    """Takes parts as the real one does; at the calls in `breaks` the answer is lost, at those in `forgets` all that it had."""

    whole_bytes, up_part_bytes = 1000, 3000

    def __init__(self, breaks=(), forgets=()):
        self.breaks, self.forgets, self.data, self.calls, self.offsets, self.report = set(breaks), set(forgets), b"", 0, [], None

    async def call(self, op, **request):
        if op == "depin_report":
            self.report = request["report"]
            return {"accepted": True}
        self.calls += 1
        self.offsets.append(request["offset"])
        if self.calls in self.forgets:
            self.data = b""
        if request["offset"] <= len(self.data):
            self.data += bytes(request["data"])[len(self.data) - request["offset"] :]
        if self.calls in self.breaks:
            raise HubDied("the connection is lost")
        return {"have": len(self.data)}


REPORT = Report("lease-1", 1, (b"",), THING)


def test_a_change_goes_ahead_of_its_report_in_parts():
    hub = Hub()
    assert asyncio.run(hand_in(hub, REPORT)) == {"accepted": True}
    assert hub.data == THING
    assert hub.report["change"] == b""
    assert hub.report["extra"] == {"sent": WHAT.to_dict()}
    small = Hub()
    asyncio.run(hand_in(small, Report("lease-1", 1, (b"",), THING[:1000])))
    assert small.offsets == []
    assert small.report["change"] == THING[:1000]


def test_a_change_goes_on_where_the_hub_stands():
    hub = Hub(breaks=[2, 5, 6])
    with pytest.raises(HubDied):
        asyncio.run(hand_in(hub, REPORT))
    assert hub.offsets == [0, 3000, 3000, 6000, 9000, 9000]
    hub.data = THING[:9000]
    assert asyncio.run(hand_in(hub, REPORT)) == {"accepted": True}
    assert hub.offsets[6:] == [0, 9000]
    assert hub.data == THING


def test_a_hub_that_loses_parts_again_and_again_is_given_up():
    assert asyncio.run(hand_in(Hub(forgets=[2]), REPORT)) == {"accepted": True}
    with pytest.raises(HubError, match="loses its parts"):
        asyncio.run(hand_in(Hub(forgets=range(2, 100)), REPORT))
