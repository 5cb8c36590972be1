"""The sidebar and the status bar in a real JupyterLab: what they show, what their buttons do, that they live without a kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import samples
from lab_page import PANEL, STATUS, open_lab, set_theme, show_panel

from depin_nb.core.amount import DPN, USD, Amount, Figure, Tag

pytestmark = pytest.mark.browser

TOOLTIP = """depin digits: running, on simulated devices
$0.031 spent (metered) of $0.10 budget
12.78 DPN accrued, 4.00 DPN paid"""


def test_the_sidebar_follows_a_hub_from_nothing_to_its_end(lab: Any, page: Any, scripted_hub: Any) -> None:
    from playwright.sync_api import expect

    hub = scripted_hub.hub
    open_lab(page, lab)
    panel = show_panel(page)

    # no hub: says what to do, and nothing pretends to be live
    expect(panel.get_by_role("heading", name="No hub is running")).to_be_visible()
    expect(panel.get_by_role("button", name="Copy %depin up depin")).to_be_visible()
    expect(page.locator(STATUS)).to_contain_text("no hub")

    # a hub without runs
    scripted_hub.start(lab.depin_home / "hub.json")
    expect(panel.get_by_text("No runs yet.")).to_be_visible()
    expect(page.locator(STATUS)).to_contain_text("ready")

    # a run: state, progress, loss, money with tags
    hub.shown = samples.snapshot(samples.run(), samples.ended())
    card = panel.get_by_role("listitem", name="Run digits, running")
    expect(card.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "78")
    expect(card).to_contain_text("0:21 left")
    expect(card.get_by_role("img")).to_have_attribute("aria-label", "Loss from 2.360 to 0.223 over 310 iterations")
    for row in ("$0.031metered", "$1.60/hestimated", "$0.041estimated", "12.78 DPNaccrued", "4.00 DPNsettled"):
        expect(card.locator("dl")).to_contain_text(row)
    expect(card.get_by_role("meter")).to_have_attribute("aria-valuetext", "$0.031 of $0.10")
    expect(page.locator(STATUS)).to_have_attribute("title", TOOLTIP)
    expect(page.locator(STATUS)).to_contain_text("running 78 %$0.031 / $0.10 metered · 12.78 DPN accrued")

    # its devices, each labelled simulated
    devices = panel.get_by_role("list", name="Devices").get_by_role("listitem")
    expect(devices).to_have_count(4)
    expect(devices.get_by_text("simulated", exact=True)).to_have_count(4)
    expect(devices.first).to_contain_text("2.13 DPN")
    expect(devices.last).to_have_attribute("data-state", "lost")

    expect(panel.get_by_role("link", name="Dask dashboard")).to_have_attribute("href", "http://127.0.0.1:8787/status")

    # an ended run is folded, and opens
    old = panel.get_by_role("listitem", name="Run warm-up, finished")
    expect(old.get_by_role("progressbar")).to_be_hidden()
    old.get_by_role("button", name="Show details of warm-up").click()
    expect(old.get_by_role("progressbar")).to_be_visible()

    # the loss moves
    points = (*samples.run().loss, (400.0, 0.101))
    hub.shown = samples.snapshot(samples.run(loss=points, iterations_done=400))
    expect(card.locator(".depin-lab-loss")).to_have_text("0.101")
    expect(old).to_have_count(0)

    # the hub goes away
    scripted_hub.call(hub.api.close)
    (lab.depin_home / "hub.json").unlink()
    expect(panel.get_by_role("heading", name="No hub is running")).to_be_visible()


def test_buttons_and_commands_reach_the_hub(lab: Any, page: Any, scripted_hub: Any) -> None:
    from playwright.sync_api import expect

    hub = scripted_hub.hub
    hub.shown = samples.snapshot(samples.run())
    scripted_hub.start(lab.depin_home / "hub.json")
    open_lab(page, lab)
    page.locator(STATUS).click()
    panel = page.locator(PANEL)
    card = panel.locator("[data-run='run-7f3c']")

    card.get_by_role("button", name="Pause digits").click()
    expect(card).to_contain_text("pausing…")
    expect(card.get_by_role("button", name="Stop digits")).to_be_disabled()
    hub.shown = samples.snapshot(samples.run(state="paused"))
    card.get_by_role("button", name="Resume digits").click()
    hub.shown = samples.snapshot(samples.run())
    expect(card.get_by_role("button", name="Pause digits")).to_be_enabled()

    # Stop says so at once, keyboard alone suffices
    card.get_by_role("button", name="Stop digits").focus()
    page.keyboard.press("Enter")
    expect(card).to_contain_text("stopping…")
    hub.shown = samples.snapshot(samples.run(state="stopped"))
    expect(card.get_by_role("button", name="Stop digits")).to_be_hidden()
    assert [(run, action) for run, action, _ in hub.asked] == [("run-7f3c", a) for a in ("pause", "resume", "stop")]

    # the command stops the newest active run, and is off where there is none
    enabled = "() => window.jupyterapp.commands.isEnabled('depin-nb:stop-run')"
    assert page.evaluate(enabled) is False
    hub.shown = samples.snapshot(samples.run(run_id="run-2", name="again", started_at=1_790_000_500.0))
    page.wait_for_function(enabled)
    page.evaluate("() => window.jupyterapp.commands.execute('depin-nb:stop-run')")
    assert hub.asked[-1] == ("run-2", "stop", None)

    # a refusal is said where the button is, with the hint; the text is text
    hub.shown = samples.snapshot(samples.run(run_id="run-3", name="<img src=x onerror=alert(1)>"))
    third = panel.locator("[data-run='run-3']")
    third.get_by_role("button", name="Pause").wait_for()
    refusal = {"message": "No hub is running.", "hint": "`%depin up` starts it."}
    page.route(
        "**/depin-nb/api/control*",
        lambda route: route.fulfill(status=503, json=refusal),
    )
    third.get_by_role("button", name="Pause").click()
    expect(third.get_by_role("alert")).to_have_text("No hub is running. `%depin up` starts it.")
    expect(third.get_by_role("button", name="Pause")).to_be_enabled()
    assert third.locator("img").count() == 0


def test_the_socket_comes_back(lab: Any, page: Any, scripted_hub: Any) -> None:
    from playwright.sync_api import expect

    hub = scripted_hub.hub
    hub.shown = samples.snapshot(samples.run())
    scripted_hub.start(lab.depin_home / "hub.json")
    opened: list[Any] = []
    page.on("websocket", lambda socket: opened.append(socket) if "depin-nb" in socket.url else None)
    cut: list[Any] = []

    def through(socket: Any) -> None:
        cut.append(socket)
        socket.connect_to_server()

    page.route_web_socket("**/depin-nb/api/events*", through)
    open_lab(page, lab)
    panel = show_panel(page)
    expect(panel.get_by_role("listitem", name="Run digits, running")).to_be_visible()
    cut[0].close()
    expect(panel.get_by_text("Reconnecting to the Jupyter server…")).to_be_visible()
    hub.shown = samples.snapshot(samples.run(state="paused"))
    expect(panel.get_by_role("listitem", name="Run digits, paused")).to_be_visible()
    expect(panel.get_by_text("Reconnecting")).to_be_hidden()
    assert len(cut) == 2


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_text_can_be_read_in_both_themes(lab: Any, page: Any, scripted_hub: Any, theme: str) -> None:
    """WCAG AA: 4.5 between the panel's text and its background. Nothing is cut off at the default width, tiny amounts included."""
    tiny = Figure(Amount(1, USD), Tag.ESTIMATED)
    devices = tuple(samples.device(i, earned=Amount(24, DPN)) for i in range(4))
    small = samples.run(
        run_id="run-2", spent=Figure(Amount(1, USD), Tag.METERED), reserved=Amount(1, USD), rate_per_h=tiny, projected=tiny,
        tokens_accrued=Amount(24, DPN), tokens_paid=Amount(9, DPN), devices=devices,
    )  # fmt: skip
    scripted_hub.hub.shown = samples.snapshot(small, samples.run(devices=()), samples.ended())
    scripted_hub.start(lab.depin_home / "hub.json")
    open_lab(page, lab)
    panel = show_panel(page)
    panel.get_by_role("listitem", name="Run digits, running").first.wait_for()
    set_theme(page, theme)
    poor, wide = page.evaluate(
        """selector => {
          const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
          const rgb = (color, under) => {
            for (const layer of [under, color]) if (layer) { canvas.fillStyle = layer; canvas.fillRect(0, 0, 1, 1); }
            return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
          };
          const bright = c => c.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
          const panel = document.querySelector(selector);
          const ground = getComputedStyle(panel).backgroundColor;
          const inner = node => (node.closest('.depin-lab-card') ?? panel).getBoundingClientRect().right - 10;
          const poor = [], wide = [];
          for (const node of panel.querySelectorAll('*')) {
            if (!node.checkVisibility() || ![...node.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
            if (node.disabled) continue;
            const [a, b] = [bright(rgb(getComputedStyle(node).color, ground)), bright(rgb(ground))];
            const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            if (contrast < 4.5) poor.push([node.textContent, contrast.toFixed(2)]);
            if (node.getBoundingClientRect().right > inner(node)) wide.push(node.textContent);
          }
          return [poor, wide];
        }""",
        PANEL,
    )
    assert poor == []
    assert wide == []


def test_sidebar_in_both_themes(lab: Any, page: Any, scripted_hub: Any, tmp_path: Path) -> None:
    scripted_hub.hub.shown = samples.snapshot(samples.run(), samples.ended())
    scripted_hub.start(lab.depin_home / "hub.json")
    open_lab(page, lab)
    show_panel(page).get_by_role("listitem", name="Run digits, running").wait_for()
    for theme in ("Light", "Dark"):
        set_theme(page, f"JupyterLab {theme}")
        page.screenshot(path=tmp_path / f"sidebar-{theme.lower()}.png", clip={"x": 0, "y": 0, "width": 460, "height": 860})
