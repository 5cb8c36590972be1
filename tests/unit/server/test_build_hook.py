"""The build hook: when it builds, and that a machine without npm still gets the Python package."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("hatchling", reason="hatchling builds the package and is not needed to run it")

HOOK = Path(__file__).parents[3] / "hatch_build.py"
NPM = """#!/bin/sh
echo "$@" >> "$CALLS"
[ "$1" = run ] && mkdir -p ../depin_nb/labextension && echo '{}' > ../depin_nb/labextension/package.json
exit $NPM_EXITS
"""


class App:
    """Hatch's application as far as the hook uses it."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def display_warning(self, text: str) -> None:
        self.warnings.append(text)


class Project:
    """A project folder with a labextension and an npm that only notes its calls."""

    def __init__(self, root: Path) -> None:
        self.root, self.app = root, App()
        self.source, self.built = root / "labextension", root / "depin_nb" / "labextension"
        self.calls = root / "calls"
        (root / "bin").mkdir()
        (self.source / "src").mkdir(parents=True)
        for name in ("package-lock.json", "install.json", "src/index.ts"):
            (self.source / name).write_text("{}")
        npm = root / "bin" / "npm"
        npm.write_text(NPM)
        npm.chmod(0o755)

    def build(self, target: str = "wheel") -> dict[str, Any]:
        data: dict[str, Any] = {"shared_data": {}} if target == "wheel" else {}
        hook = _module().LabExtensionHook(str(self.root), {}, None, None, str(self.root), target, self.app)
        hook.initialize("standard", data)
        return data

    def asked(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("depin_hatch_build", HOOK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path, monkeypatch):
    made = Project(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.defpath}")
    monkeypatch.setenv("CALLS", str(made.calls))
    monkeypatch.setenv("NPM_EXITS", "0")
    monkeypatch.delenv("DEPIN_REQUIRE_LABEXTENSION", raising=False)
    return made


def test_it_builds_what_is_missing_and_installs_it_where_jupyterlab_looks(project):
    data = project.build()
    assert project.asked() == ["ci", "run build"]
    target = "share/jupyter/labextensions/depin-nb"
    assert data["shared_data"] == {
        str(project.built): target,
        str(project.source / "install.json"): f"{target}/install.json",
    }
    assert project.app.warnings == []


def test_it_builds_again_only_after_a_source_changed(project):
    project.build()
    project.build()
    assert len(project.asked()) == 2
    newer = (project.built / "package.json").stat().st_mtime + 5
    os.utime(project.source / "src" / "index.ts", (newer, newer))
    project.build()
    assert len(project.asked()) == 4


def test_node_modules_are_neither_a_source_nor_installed_twice(project):
    installed = project.source / "node_modules" / ".package-lock.json"
    installed.parent.mkdir()
    installed.write_text("{}")
    project.build()
    assert project.asked() == ["run build"]
    newer = (project.built / "package.json").stat().st_mtime + 5
    os.utime(installed, (newer, newer))
    project.build()
    assert project.asked() == ["run build"]


@pytest.mark.parametrize("why", ["absent", "failing"])
def test_without_npm_the_python_package_is_installed_and_says_so(project, monkeypatch, why):
    if why == "absent":
        monkeypatch.setenv("PATH", str(project.root))
    else:
        monkeypatch.setenv("NPM_EXITS", "1")
    assert project.build() == {"shared_data": {}}
    assert len(project.app.warnings) == 1
    assert "sidebar is left out" in project.app.warnings[0]
    monkeypatch.setenv("DEPIN_REQUIRE_LABEXTENSION", "1")
    with pytest.raises(RuntimeError, match="npm"):
        project.build()


def test_a_source_distribution_holds_the_built_extension(project):
    assert project.build("sdist") == {}
    assert project.asked() == ["ci", "run build"]
