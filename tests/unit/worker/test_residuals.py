"""What compression left out outlives the worker's process, and its loss is survived."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from depin_nb.worker.residuals import RUNS_KEPT, Residuals, residuals_of


def left(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((5,), value)}


def handed_in(residuals: Residuals, run: str, value: float) -> None:
    residuals.write(run, "lease", left(value))
    residuals.put(run, left(value))
    residuals.accept(run, "lease", left(value))


def test_a_worker_that_starts_again_goes_on_with_what_was_left_out(tmp_path: Path) -> None:
    residuals = Residuals(tmp_path)
    assert residuals.of("run-1") == {}
    handed_in(residuals, "run-1", 1.0)
    handed_in(residuals, "run-1", 2.0)
    assert torch.equal(residuals.of("run-1")["w"], torch.full((5,), 2.0))
    assert torch.equal(Residuals(tmp_path).of("run-1")["w"], torch.full((5,), 2.0))


def test_only_what_the_hub_took_counts(tmp_path: Path) -> None:
    residuals = Residuals(tmp_path)
    handed_in(residuals, "run-1", 1.0)
    residuals.write("run-1", "next", left(2.0))
    residuals.put("run-1", left(2.0))
    residuals.write("run-1", "the one after", left(3.0))
    assert Residuals(tmp_path).of("run-1")["w"][0] == 1.0  # killed before the answer
    for lease in ("next", "the one after"):
        residuals.drop("run-1", lease)
    residuals.put("run-1", left(1.0))
    assert residuals.of("run-1")["w"][0] == 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["run-1.residual"]


def test_a_damaged_file_is_said_and_survived(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    handed_in(Residuals(tmp_path), "run-1", 1.0)
    path = tmp_path / "run-1.residual"
    whole = path.read_bytes()
    for data in (whole[:20], b"", b"\x80\x04K\x01."):
        path.write_bytes(data)
        with caplog.at_level(logging.WARNING):
            assert Residuals(tmp_path).of("run-1") == {}
        assert "begins without" in caplog.text
        caplog.clear()


def test_a_folder_that_cannot_be_written_is_survived(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = tmp_path / "file"
    place.write_text("in the way")
    residuals = Residuals(place)
    with caplog.at_level(logging.WARNING):
        residuals.write("run-1", "lease", left(1.0))
    assert "isn't kept" in caplog.text
    residuals.put("run-1", left(1.0))
    residuals.accept("run-1", "lease", left(1.0))
    assert residuals.of("run-1")["w"][0] == 1.0


def test_one_that_has_been_sent_does_not_come_back(tmp_path: Path) -> None:
    residuals = Residuals(tmp_path)
    handed_in(residuals, "run-1", 1.0)
    residuals.accept("run-1", "next", left(2.0))  # its file could not be written
    assert Residuals(tmp_path).of("run-1") == {}


def test_few_runs_are_kept_and_names_stay_in_their_folder(tmp_path: Path) -> None:
    residuals = residuals_of(tmp_path, "../phone-1 (simulated)")
    for run in range(RUNS_KEPT + 3):
        handed_in(residuals, f"../run-{run}", run)
    (folder,) = (tmp_path / "residuals").iterdir()
    assert len(list(folder.iterdir())) == RUNS_KEPT
    assert list(tmp_path.iterdir()) == [tmp_path / "residuals"]


def test_without_a_folder_they_are_in_memory() -> None:
    residuals = Residuals()
    handed_in(residuals, "run-1", 3.0)
    residuals.drop("run-1", "lease")
    assert residuals.of("run-1")["w"][0] == 3.0
