"""A state folder of its own for tests with a real hub; nothing of it may be left."""

import pytest


@pytest.fixture
def home(tmp_path_factory, monkeypatch, nothing_left):
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("DEPIN_HOME", str(folder))
    yield folder
    nothing_left(folder)
