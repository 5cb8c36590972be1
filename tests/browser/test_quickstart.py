"""The quickstart in a real JupyterLab, on a real hub with simulated devices: the loss moves, Stop ends the cell as promised."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_page import PANEL, STATUS, open_lab, outputs, run_all, run_code, show_panel, wait_idle

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "01_quickstart.ipynb"
START_S = 240  # torch's import, the hub and four devices on two cores
STOP_S = 30

# The notebook's model against the newest state in the journal, which is that of the last merge.
SAME_WEIGHTS = """
import torch
from depin_nb.core import config
from depin_nb.core.state import State
from depin_nb.hub.records.journal import Journal
merged = State.from_bytes(Journal(config.journal_file(), writing=False).newest_state({run!r}).read_bytes()).tensors
own = {{f"model/{{name}}": value for name, value in model.state_dict().items()}}
print(len(own) > 0 and all(torch.equal(merged[name], value.cpu()) for name, value in own.items()))
"""
BUSY = """
from depin_nb import wiring
print([device.state for device in wiring.current().workers() if device.state == "working"])
"""
SHOW_TRAINING_CELL = """async () => {
  const notebook = window.jupyterapp.shell.currentWidget.content;
  const index = notebook.widgets.findIndex(cell => cell.model.sharedModel.source.startsWith('%%depin train --name'));
  notebook.activeCellIndex = index;
  await notebook.scrollToItem(index, 'start', 0);
}"""


@pytest.fixture
def no_hub_left(lab: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ends the hub that the notebook starts, and its devices."""
    yield
    from depin_nb.hub.launch import find_hub, stop_hub

    monkeypatch.setenv("DEPIN_HOME", str(lab.depin_home))
    if (info := find_hub()) is not None:
        stop_hub(info)


def _running(page: Any) -> Any:
    """The card of the run that trains, once there is one. Fails at once where a cell failed before."""
    card = page.locator(f"{PANEL} [data-run][data-state='running']")
    failed = page.locator(".jp-Notebook [data-mime-type='application/vnd.jupyter.error'], .jp-Notebook [data-mime-type$='stderr']")
    card.or_(failed).first.wait_for(timeout=START_S * 1e3)
    errors = [o for cell in outputs(page) for o in cell if o["output_type"] == "error"]
    assert errors == []
    card.wait_for(timeout=START_S * 1e3)
    return card


@pytest.mark.usefixtures("no_hub_left")
def test_run_all_then_stop(lab: Any, page: Any) -> None:
    from playwright.sync_api import expect

    shutil.copy(NOTEBOOK, lab.root)
    open_lab(page, lab, NOTEBOOK.name)
    panel = show_panel(page)
    run_all(page)

    # it is alive and learning
    card = _running(page)
    loss = card.locator(".depin-lab-loss")
    expect(loss).to_have_text(re.compile(r"\d"), timeout=START_S * 1e3)
    first = loss.inner_text()
    expect(loss).not_to_have_text(first, timeout=60_000)
    expect(page.locator(STATUS)).to_contain_text("metered")
    expect(panel.get_by_role("list", name="Devices").get_by_text("simulated", exact=True).first).to_be_visible()
    run = card.get_attribute("data-run")
    assert run

    # Stop: the cell ends with KeyboardInterrupt, nothing after it runs
    panel.locator(f"[data-run='{run}']").get_by_role("button", name="Stop").click()
    wait_idle(page, STOP_S)
    errors = [[o["ename"] for o in cell if o["output_type"] == "error"] for cell in outputs(page)]
    assert [names for names in errors if names] == [["KeyboardInterrupt"]]
    stopped = next(i for i, names in enumerate(errors) if names)
    assert all(cell == [] for cell in outputs(page)[stopped + 1 :])

    # with the weights of the last merge, and no busy worker
    assert run_code(page, SAME_WEIGHTS.format(run=run)).strip() == "True"
    assert run_code(page, BUSY).strip() == "[]"
    expect(panel.locator(f"[data-run='{run}']")).to_have_attribute("data-state", "stopped")


@pytest.mark.usefixtures("no_hub_left")
def test_picture_of_the_running_panel(lab: Any, browser: Any, tmp_path: Path) -> None:
    """The training cell with its live panel, sidebar and status bar; DEPIN_SCREENSHOT=1 keeps it as docs/images/panel.png."""
    context = browser.new_context(viewport={"width": 1360, "height": 900}, device_scale_factor=1.5)
    page = context.new_page()
    shutil.copy(NOTEBOOK, lab.root)
    open_lab(page, lab, NOTEBOOK.name)
    show_panel(page)
    run_all(page)
    _running(page)
    page.evaluate(SHOW_TRAINING_CELL)
    half = "() => parseInt(document.querySelector('#depin-nb-panel [title*=iterations][title$=samples]')?.title) >= 150"
    page.wait_for_function(half, timeout=START_S * 1e3)
    page.evaluate(SHOW_TRAINING_CELL)
    page.wait_for_timeout(700)  # the notebook scrolls smoothly
    keep = os.environ.get("DEPIN_SCREENSHOT") == "1"
    picture = (ROOT / "docs" / "images" if keep else tmp_path) / "panel.png"
    page.screenshot(path=picture)
    context.close()
    assert picture.stat().st_size > 50_000
