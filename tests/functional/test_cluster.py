"""The hub, its workers and the kernel's side of it as real processes on loopback."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import psutil
import pytest
from distributed import Client
from running import eventually
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from depin_nb.core import config
from depin_nb.core.errors import HubDied, HubError, NoSuchRun, UsageError
from depin_nb.hub.client import HubClient
from depin_nb.hub.cluster import HubCluster
from depin_nb.hub.info import FileLock, hub_pid
from depin_nb.hub.launch import find_hub, start_hub, stop_hub

PATIENCE_S = 200.0  # two cores that others use too; nothing here waits that long unless something is broken


def fetch(info, path, *, method="GET", body=None, token=None):
    request = urllib.request.Request(
        info.status_url + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {info.status_token if token is None else token}"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
        return json.loads(response.read())


def seen(client, wanted):
    """The first status that the hub pushes for which `wanted` holds."""

    info = client.info

    async def listen():
        headers = {"Authorization": f"Bearer {info.status_token}"}
        connection = await websocket_connect(HTTPRequest(info.status_url.replace("http", "ws") + "/api/events", headers=headers))
        try:
            while (message := await connection.read_message()) is not None:
                status = json.loads(message)
                if wanted(status):
                    return status
            raise AssertionError("the hub closed")
        finally:
            connection.close()
            while await connection.read_message() is not None:  # closing takes a round trip: the loop must not end before
                pass

    return asyncio.run_coroutine_threadsafe(asyncio.wait_for(listen(), PATIENCE_S), client.loop.asyncio_loop).result()


def all_ready(count):
    return lambda status: [w["ready"] for w in status["hub"]["workers"]] == [True] * count


def family(info):
    hub = psutil.Process(info.pid)
    return [hub, *hub.children(recursive=True)]


def ended(processes):
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_S)
    return [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    before = os.environ.get("DEPIN_HOME")
    os.environ["DEPIN_HOME"] = str(folder)
    yield folder
    if (info := find_hub()) is not None:
        stop_hub(info)
    if before is None:
        del os.environ["DEPIN_HOME"]
    else:
        os.environ["DEPIN_HOME"] = before


@pytest.fixture
def hub(home):
    """The running hub, the same one for all tests that leave it alive."""
    return start_hub()


@pytest.fixture
def client(hub):
    with HubClient(hub) as client:
        yield client


@pytest.fixture
def cluster(hub, client):
    cluster = HubCluster(hub, loop=client.loop)
    yield cluster
    cluster.close()


def test_hub_is_private_and_found(hub):
    assert find_hub() == hub
    assert start_hub() == hub  # not a second one
    assert os.stat(config.hub_file()).st_mode & 0o777 == 0o600
    assert hub.status_token not in repr(hub)
    assert "127.0.0.1" in hub.scheduler
    assert "127.0.0.1" in hub.status_url


def test_second_hub_in_the_same_folder_is_refused(hub):
    second = subprocess.run(
        [sys.executable, "-m", "depin_nb.hub"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert second.returncode == 3
    assert "another hub" in second.stderr
    assert find_hub() == hub


def test_cluster_computes_scales_and_survives_a_killed_worker(hub, client, cluster):
    assert cluster.scale(2) == ["local-1", "local-2"]
    cluster.wait_for_workers(2, PATIENCE_S)
    with Client(cluster) as dask:
        assert dask.submit(sum, range(100)).result(PATIENCE_S) == 4950
        assert sum(dask.gather(dask.map(lambda x: x * x, range(10)))) == 285
    status = seen(client, all_ready(2))
    victim = next(w for w in status["hub"]["workers"] if w["name"] == "local-1")
    os.kill(victim["pid"], signal.SIGKILL)
    status = seen(client, lambda s: [w["name"] for w in s["hub"]["workers"]] == ["local-2"])
    assert "worker local-1 was ended by SIGKILL" in [n["text"] for n in status["hub"]["notices"]]
    assert sorted(cluster.scale(2)) == ["local-1", "local-2"]
    status = seen(client, all_ready(2))
    assert victim["pid"] not in {w["pid"] for w in status["hub"]["workers"]}


def test_backends_live_side_by_side_and_simulated_ones_say_so(hub, client, cluster):
    cluster.scale(1)
    answer = client.call("scale", count=3, backend="depin")
    assert list(answer["workers"]) == ["phone-1 (simulated)", "laptop-1 (simulated)", "single-board-1 (simulated)"]
    # joined, not only started: the coordinator lists them
    status = seen(client, lambda s: len(s["workers"]) == 4)
    assert {w["name"]: (w["kind"], w["simulated"]) for w in status["workers"] if w["simulated"]} == {
        "phone-1 (simulated)": ("phone", True),
        "laptop-1 (simulated)": ("laptop", True),
        "single-board-1 (simulated)": ("single-board", True),
    }
    leaving = [psutil.Process(w["pid"]) for w in status["hub"]["workers"] if w["simulated"]]
    assert client.call("scale", count=0, backend="depin")["workers"] == ()
    assert ended(leaving)
    status = seen(client, lambda s: len(s["workers"]) == 1)
    assert [w["simulated"] for w in status["workers"]] == [False]


def test_dashboard_answers(hub):
    with urllib.request.urlopen(hub.dashboard, timeout=PATIENCE_S) as response:
        assert response.status == 200


def test_two_notebooks_share_one_hub(hub, cluster):
    cluster.scale(1)
    with HubClient(hub) as other_client:
        other = HubCluster(hub, loop=other_client.loop)
        assert set(other.scale(2)) == {"local-1", "local-2"}
        other.wait_for_workers(2, PATIENCE_S)
        cluster.wait_for_workers(2, PATIENCE_S)
        assert cluster.observed == other.observed
        other.close()
    assert "workers=" in repr(cluster)
    assert hub.dashboard in cluster._repr_html_()
    with Client(cluster) as dask:
        assert dask.submit(max, [1, 3, 2]).result(PATIENCE_S) == 3


def test_closing_the_proxy_leaves_the_hub(hub, client):
    HubCluster(hub, loop=client.loop).close()
    assert client.call("hub")["id"] == hub.hub_id


def test_errors_come_back_by_their_types(client):
    with pytest.raises(UsageError, match="locl"):
        client.call("scale", count=1, backend="locl")
    with pytest.raises(UsageError, match="100000"):
        client.call("depin_scale", count=100_000, backend="local")
    with pytest.raises(NoSuchRun):
        client.call("control", run="run-none", action="pause")
    with pytest.raises(HubError):
        client.call("status", nonsense=1)


def test_calls_from_many_threads(client):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(client.call("hub")["id"])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(answers) == 8
    assert len(set(answers)) == 1


def test_interrupt_leaves_a_waiting_call_at_once(client):
    main = threading.main_thread().ident

    async def interrupts_who_waits():
        signal.pthread_kill(main, signal.SIGINT)
        await asyncio.sleep(PATIENCE_S)

    with pytest.raises(KeyboardInterrupt):
        client._on_loop(interrupts_who_waits())
    assert client.call("hub")


def test_api_wants_its_token(hub, client):
    for path, method in (("/api/status", "GET"), ("/api/control", "POST"), ("/api/shutdown", "POST")):
        with pytest.raises(urllib.error.HTTPError) as caught:
            fetch(hub, path, method=method, body={} if method == "POST" else None, token="wrong")
        assert caught.value.code == 401
        caught.value.close()

    async def listen():
        await websocket_connect(HTTPRequest(hub.status_url.replace("http", "ws") + "/api/events"))

    with pytest.raises(HTTPClientError) as refused:
        asyncio.run_coroutine_threadsafe(listen(), client.loop.asyncio_loop).result(PATIENCE_S)
    assert refused.value.code == 401
    assert find_hub() == hub


def test_api_shows_the_hub_and_refuses_in_words(hub):
    status = fetch(hub, "/api/status")
    assert set(status) == {"hub", "runs", "workers"}
    assert status["hub"]["id"] == hub.hub_id
    assert hub.status_token not in json.dumps(status)
    with pytest.raises(urllib.error.HTTPError) as caught:
        fetch(hub, "/api/control", method="POST", body={"run": "run-none", "action": "stop"})
    assert caught.value.code == 400
    assert json.loads(caught.value.read())["error"]["type"] == "NoSuchRun"
    caught.value.close()


def test_shutdown_leaves_nothing_behind(hub, cluster, client):
    cluster.scale(2)
    seen(client, all_ready(2))
    processes = family(hub)
    assert len(processes) >= 3
    stop_hub(hub)
    assert ended(processes)
    assert find_hub() is None
    assert not config.hub_file().exists()
    with pytest.raises(HubDied):
        client.call("hub")
    stop_hub(hub)  # a second time does nothing


def test_killed_hub_leaves_no_orphans_and_the_next_one_starts(hub, client):
    client.call("scale", count=1, backend="local")
    client.call("scale", count=1, backend="depin")
    seen(client, all_ready(2))
    processes = family(hub)
    os.kill(hub.pid, signal.SIGKILL)
    assert ended(processes)
    assert config.hub_file().exists()  # stale
    assert find_hub() is None
    with pytest.raises(HubDied):
        client.call("hub")
    assert start_hub().pid != hub.pid


def test_sigterm_ends_the_hub_in_order(hub, client):
    client.call("scale", count=1, backend="local")
    seen(client, all_ready(1))
    processes = family(hub)
    os.kill(hub.pid, signal.SIGTERM)
    assert ended(processes)
    assert not config.hub_file().exists()


def test_hub_without_anybody_ends_by_itself(home):
    if (info := find_hub()) is not None:
        stop_hub(info)
    info = start_hub(idle_timeout_s=0.1)
    assert ended([psutil.Process(info.pid)])


def test_hub_that_cannot_start_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPIN_HOME", str(tmp_path))
    (tmp_path / "journal.sqlite").write_bytes(b"this is no database" * 100)
    with pytest.raises(HubError, match="journal") as caught:
        start_hub()
    assert "log ends with" in caught.value.message
    eventually(lambda: hub_pid() is None, "the process that failed is gone")


def test_only_one_holds_a_lock(tmp_path):
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()
