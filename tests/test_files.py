"""Files that are whole or not there, and what killed writers leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from exporters.workbench import staging_beside
from kit.system import files


@pytest.fixture
def killed(tmp_path: Path) -> str:
    """Name of a file that a process left which is gone."""
    program = "from kit.system import files; print(files.partial_name())"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    return done.stdout.strip()


def test_what_killed_writers_left_goes_with_the_next_writer(tmp_path: Path, killed: str) -> None:
    for write in (
        lambda: files.write(tmp_path / "results.json", "{}"),
        lambda: staging_beside(tmp_path / "new").__enter__(),
    ):
        (tmp_path / killed).write_text("half")
        (tmp_path / f"{killed}-folder").mkdir()
        (tmp_path / f"{killed}-folder" / "fp32.onnx").write_text("half")
        held = write()
        assert not list(tmp_path.glob(f"{killed}*"))
        del held


def test_what_living_writers_and_others_write_stays(tmp_path: Path, killed: str) -> None:
    own = tmp_path / files.partial_name()
    elsewhere = tmp_path / killed.replace(killed.split("-")[1], "00000000")  # another machine's, in a shared folder
    unnamed, old, strange = tmp_path / ".partial-new", tmp_path / ".partial-old", tmp_path / "partial-mine"
    for path in (own, elsewhere, unnamed, old, strange):
        path.write_text("half")
    for path in (own, old, strange):
        os.utime(path, (10**9, 10**9))
    files.sweep(tmp_path)
    assert set(tmp_path.iterdir()) == {own, elsewhere, unnamed, strange}


def test_a_link_that_looks_like_a_leftover_goes_and_what_it_points_to_stays(tmp_path: Path, killed: str) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "thesis.txt").write_text("mine")
    (tmp_path / killed).symlink_to(kept, target_is_directory=True)
    files.sweep(tmp_path)
    assert not (tmp_path / killed).is_symlink()
    assert (kept / "thesis.txt").read_text() == "mine"


def test_a_file_keeps_what_it_held_until_the_new_bytes_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    files.write(path, "old")
    files.write(path, "new")
    assert [item.name for item in tmp_path.iterdir()] == ["choices.json"]
    assert path.read_text() == "new"
