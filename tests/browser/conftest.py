"""A real JupyterLab with the built extension, and Chromium to look at it."""

from __future__ import annotations

import asyncio
import shutil
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

# lab_page here; jupyter_process, samples and scripted_hub there
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "unit" / "server")]

from jupyter_process import JupyterProcess, running  # noqa: E402
from scripted_hub import ScriptedHub  # noqa: E402

BUILT = Path(__file__).parents[2] / "depin_nb" / "labextension"
CHROMIUM = "/usr/bin/chromium"


def _lacking() -> str:
    if not Path(CHROMIUM).exists():
        return f"{CHROMIUM} is not there (package chromium)"
    if not (BUILT / "package.json").is_file():
        return "depin_nb/labextension is not built: `npm ci && npm run build` in labextension/"
    return ""


@pytest.fixture(scope="module")  # not longer: Playwright keeps an event loop running in this thread
def browser() -> Iterator[Any]:
    """Chromium, headless."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("jupyterlab", reason="jupyterlab is not installed")
    if lacking := _lacking():
        pytest.skip(lacking)
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


@pytest.fixture
def lab(tmp_path: Path, browser: Any) -> Iterator[JupyterProcess]:
    """JupyterLab on loopback with its own folders; `browser` first, since it skips where something lacks."""
    extensions = tmp_path / "first" / "labextensions"  # the newest build, whatever is installed
    extensions.mkdir(parents=True)
    shutil.copytree(BUILT, extensions / "depin-nb")
    quiet = tmp_path / "settings" / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True)
    # no pop-up over the pictures, and no call outside
    (quiet / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    with running(tmp_path, "--LabApp.expose_app_in_browser=True", lab=True) as process:
        yield process


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page in a context of its own. Errors of the depin extension in its console fail the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 860}, reduced_motion="reduce")
    context.set_default_timeout(30_000)
    opened = context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: errors.append(message.text) if message.type == "error" and "depin" in message.text else None)
    yield opened
    context.close()
    assert not [error for error in errors if "depin" in error]


class HubThread:
    """A scripted hub behind the real status API, on a thread with a loop of its own (Playwright's sync API holds the main one)."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.hub: ScriptedHub = self.call(self._make)

    def call(self, make: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(make(*arguments), self._loop).result(timeout=30)

    async def _make(self) -> ScriptedHub:
        return ScriptedHub({"hub": {"id": "hub-test"}, "runs": [], "workers": []})

    def start(self, hub_file: Path) -> None:
        self.call(self.hub.start, hub_file)

    def close(self) -> None:
        self.call(self.hub.api.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=30)
        self._loop.close()


@pytest.fixture
def scripted_hub() -> Iterator[HubThread]:
    """Not started yet."""
    thread = HubThread()
    yield thread
    thread.close()
