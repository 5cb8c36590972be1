"""Build hook: builds `labextension/` into `depin_nb/labextension/` and installs it where JupyterLab looks.

Without npm, or where npm fails, the package is Python only and the build says so.
`DEPIN_REQUIRE_LABEXTENSION=1` makes that an error, for releases.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

TARGET = "share/jupyter/labextensions/depin-nb"


class LabExtensionHook(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, _version: str, build_data: dict[str, Any]) -> None:
        source, built = Path(self.root, "labextension"), Path(self.root, "depin_nb", "labextension")
        if problem := self._build(source, built):
            if os.environ.get("DEPIN_REQUIRE_LABEXTENSION"):
                raise RuntimeError(problem)
            self.app.display_warning(f"{problem} The JupyterLab sidebar is left out; everything else works.")
        if self.target_name == "wheel" and (built / "package.json").is_file():
            build_data["shared_data"] |= {str(built): TARGET, str(source / "install.json"): f"{TARGET}/install.json"}

    def _build(self, source: Path, built: Path) -> str:
        """Builds if the outputs are missing or older than a source; a sentence where that was needed and failed."""
        inputs = [p for p in source.rglob("*") if p.is_file() and "node_modules" not in p.parts]
        made = built / "package.json"
        if made.is_file() and made.stat().st_mtime >= max(p.stat().st_mtime for p in inputs):
            return ""
        if not (npm := shutil.which("npm")):
            return "npm is not installed, so labextension/ was not built."
        installed, lock = source / "node_modules" / ".package-lock.json", source / "package-lock.json"
        fresh = installed.is_file() and installed.stat().st_mtime >= lock.stat().st_mtime
        for command in ([] if fresh else [[npm, "ci"]]) + [[npm, "run", "build"]]:
            if done := subprocess.run(command, cwd=source).returncode:
                shutil.rmtree(built, ignore_errors=True)  # rather none than one that doesn't fit its sources
                return f"`npm {' '.join(command[1:])}` failed with {done}."
        return ""
