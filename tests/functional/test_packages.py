"""A package that is installed here and not where the workers run: said in the plan, before anything is spent."""

import importlib
import sys

import pytest
import torch
from catalogue import catalogue
from running import Trained

from depin_nb import wiring
from depin_nb.core.errors import NoWorkers
from depin_nb.loop.ship import packages

SETUP = catalogue()["plain"].setup
CELL = """
from oddly import halved
for x, y in loader:
    opt.zero_grad()
    loss = criterion(model(halved(x)), y)
    loss.backward()
    opt.step()
"""


@pytest.fixture
def installed_here(tmp_path, monkeypatch):
    """`oddly 1.2`, as pip would have installed it, in a folder that only this process looks in."""
    site = tmp_path / "site-packages"
    (site / "oddly").mkdir(parents=True)
    (site / "oddly" / "__init__.py").write_text("def halved(x):\n    return x / 2\n")
    info = site / "oddly-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: oddly\nVersion: 1.2\n")
    (info / "top_level.txt").write_text("oddly\n")
    (info / "RECORD").write_text("oddly/__init__.py,,\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    importlib.invalidate_caches()
    kept = packages._by_root, packages.distribution_of, packages.version_of
    for known in kept:
        known.cache_clear()
    yield
    sys.modules.pop("oddly", None)
    for known in kept:
        known.cache_clear()


def test_a_run_that_no_worker_can_do_is_refused_with_the_names(home, installed_here):
    session = wiring.connect("local", workers=2)
    trained = Trained(session, SETUP, CELL, strategy="local")
    assert isinstance(trained.error, NoWorkers)
    assert "local-1 lacks oddly; local-2 lacks oddly" in str(trained.error)
    assert trained.statuses == []  # no run was opened
    fresh = Trained(session, SETUP, "pass\n" + catalogue()["plain"].code, strategy="local").checked()
    assert all(torch.isfinite(p).all() for p in fresh.namespace["model"].parameters())
