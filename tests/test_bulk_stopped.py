"""`kit predict -o FILE` that is stopped, killed or disturbed: nothing is lost, nothing is written twice."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from kit import bulk
from kit.bulk.answering import Answered
from kit.bulk.chunks import Seen
from kit.bulk.forms import JsonLines
from kit.bulk.output import Output
from kit.bundle import Bundle
from kit.errors import MemoryShort, UsageError
from tests.conftest import SCANS, Kit
from tests.helpers.answers import rows_in
from tests.helpers.stepping import Stepping


@pytest.fixture(autouse=True)
def _no_children_left() -> Iterator[None]:
    yield
    left = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
    assert not left


class _Killed(Exception):  # noqa: N818 - what a test stops a run by
    pass


def test_what_was_stopped_goes_on_and_ends_the_same(
    kit_inside: Kit,
    tiny: Bundle,
    scans: Path,  # noqa: ARG001 - the folder that is read
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kit_inside("predict", str(tiny.folder), "scans", "-o", "whole.csv", "--workers", "1")
    monkeypatch.setattr("kit.bulk.run._UPDATES_SECONDS", 0.0)

    def stop(done: int, _whole: int | None) -> None:
        if done >= 128:
            raise _Killed

    with contextlib.chdir(tmp_path), pytest.raises(_Killed):
        bulk.predict(tiny.folder, ["scans"], Path("out.csv"), workers=1, on_rows=stop)
    assert not (tmp_path / "out.csv").exists()
    found = kit_inside("predict", str(tiny.folder), "scans", "-o", "out.csv", "--workers", "1")
    assert "goes on after 128 items" in found.stderr or "goes on after 64 items" in found.stderr
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


PROGRAM = """
import sys
from pathlib import Path
import psutil
from kit import bulk
from kit.bulk import output, run
output._SYNC_SECONDS = run._UPDATES_SECONDS = 0.0
def told(done, whole):
    workers = [one.pid for one in psutil.Process().children() if "spawn_main" in " ".join(one.cmdline())]
    print(done, *workers, flush=True)
    sys.stdin.readline()
if __name__ == "__main__":
    bulk.predict(sys.argv[1], ["scans"] * 3, Path("out.jsonl"), workers=int(sys.argv[2]), on_rows=told)
"""
"""Waits after each chunk."""


def test_a_killed_process_loses_and_doubles_nothing(kit: Kit, tiny: Bundle, scans: Path, tmp_path: Path) -> None:
    with Stepping(PROGRAM, str(tiny.folder), "1", cwd=tmp_path) as running:
        assert running.line() == "64"
        running.go()
        assert running.line() == "128"
        running.kill()
    found = kit("predict", str(tiny.folder), *["scans"] * 3, "-o", "out.jsonl", "--workers", "1")
    assert "goes on after 128 items" in found.stderr
    names = [f"{scans.name}/{number:03}.png" for number in range(SCANS)]
    assert [row["file"] for row in rows_in(tmp_path / "out.jsonl")] == names * 3


def test_workers_end_with_the_process_that_started_them(tiny: Bundle, scans: Path, tmp_path: Path) -> None:  # noqa: ARG001 - the folder that is read
    program = tmp_path / "program.py"  # its workers read it anew
    program.write_text(PROGRAM)
    with Stepping(program, str(tiny.folder), "2", cwd=tmp_path) as running:
        workers = [psutil.Process(int(pid)) for pid in running.line().split()[1:]]
        assert len(workers) == 2
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


def _answered(index: int, content: bytes) -> Answered:
    return Answered(index, 1, 0, content, b"")


@pytest.mark.parametrize("torn", ["journal", "answers"])
def test_whatever_a_crash_leaves_of_the_last_write_is_made_good(tmp_path: Path, torn: str) -> None:
    target = tmp_path / "out.jsonl"
    seen = Seen()
    lines = [b'{"file": "%d"}\n' % number for number in range(3)]
    with Output(target, JsonLines(), {"a": 1}) as output:
        for index, line in enumerate(lines):
            seen.add(b"%d" % index)
            output.add(_answered(index, line), seen)
            output.sync()
    folder = output.folder
    whole = {name: (folder / name).read_bytes() for name in ("answers", "journal.jsonl")}
    cut = "journal.jsonl" if torn == "journal" else "answers"
    for length in range(len(whole[cut]) + 1):
        for name, content in whole.items():
            (folder / name).write_bytes(content)
        if torn == "journal":
            (folder / cut).write_bytes(whole[cut][:length])
        else:  # answers that are not in the journal yet, or half of them
            (folder / cut).write_bytes(whole[cut] + whole[cut][:length])
        with Output(target, JsonLines(), {"a": 1}) as output:
            begun = output.done.chunks
            assert (folder / "answers").read_bytes() == b"".join(lines[:begun])
            for index in range(begun, 3):
                output.add(_answered(index, lines[index]), seen)
            assert (torn == "journal") or begun == 3
            output.sync()
            assert (folder / "answers").read_bytes() == b"".join(lines)


def test_something_else_of_the_same_name_is_not_gone_on_with(tmp_path: Path, tiny: Bundle, scans: Path) -> None:
    def stop(_done: int, _whole: int | None) -> None:
        raise _Killed

    out = tmp_path / "out.csv"
    with pytest.raises(_Killed):
        bulk.predict(tiny.folder, [str(scans)], out, workers=1, on_rows=stop)
    with pytest.raises(UsageError, match="differs in sources"):
        bulk.predict(tiny.folder, [str(scans), str(scans)], out, workers=1)


def test_items_that_changed_since_are_noticed(tmp_path: Path, tiny: Bundle, scans: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for path in sorted(scans.iterdir())[:150]:
        (own / path.name).write_bytes(path.read_bytes())

    def stop(_done: int, _whole: int | None) -> None:
        raise _Killed

    with pytest.raises(_Killed):
        bulk.predict(tiny.folder, [str(own)], tmp_path / "out.csv", workers=1, on_rows=stop)
    (own / "000.png").rename(own / "000b.png")
    with pytest.raises(UsageError, match="no more what it was"):
        bulk.predict(tiny.folder, [str(own)], tmp_path / "out.csv", workers=1)


def test_rows_that_changed_since_are_noticed(tmp_path: Path, scores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kit.bulk.run._UPDATES_SECONDS", 0.0)
    people = tmp_path / "people.csv"
    lines = [f"{20 + number},no" for number in range(3000)]
    people.write_text("age,smoker\n" + "\n".join(lines))

    def stop(_done: int, _whole: int | None) -> None:
        raise _Killed

    with pytest.raises(_Killed):
        bulk.predict(scores, [str(people)], tmp_path / "out.csv", workers=1, on_rows=stop)
    people.write_text("age,smoker\n" + "\n".join(["1,yes", *lines]))
    with pytest.raises(UsageError, match="no more what it was"):
        bulk.predict(scores, [str(people)], tmp_path / "out.csv", workers=1)


def test_two_at_once_do_not_write_one_file(tmp_path: Path) -> None:
    with (
        Output(tmp_path / "out.csv", JsonLines(), {}),
        pytest.raises(UsageError, match="another process"),
    ):
        Output(tmp_path / "out.csv", JsonLines(), {})
    assert not (tmp_path / "out.csv.unfinished").exists()


def test_strict_stops_and_goes_on_once_it_is_mended(kit_inside: Kit, tiny: Bundle, scans: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for path in sorted(scans.iterdir())[:100]:
        (own / path.name).write_bytes(path.read_bytes())
    (own / "017.png").rename(own / "090.png")
    found = kit_inside("predict", str(tiny.folder), "own", "-o", "out.csv", "--strict", "--workers", "1")
    assert (found.returncode, found.stdout) == (4, "")
    assert "090.png" in found.stderr
    (own / "090.png").write_bytes((own / "000.png").read_bytes())
    found = kit_inside("predict", str(tiny.folder), "own", "-o", "out.csv", "--strict", "--workers", "1")
    assert found.returncode == 0, found.stderr
    assert "goes on after 64 items" in found.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_worker_that_is_killed_is_said_and_nothing_is_lost(tiny: Bundle, scans: Path, tmp_path: Path) -> None:
    def kill(_done: int, _whole: int | None) -> None:
        for child in psutil.Process().children():
            if "spawn_main" in " ".join(child.cmdline()):
                child.send_signal(signal.SIGKILL)

    with pytest.raises(MemoryShort, match="a worker process ended"):
        bulk.predict(tiny.folder, [str(scans)] * 9, tmp_path / "out.jsonl", workers=2, on_rows=kill)
    outcome = bulk.predict(tiny.folder, [str(scans)] * 9, tmp_path / "out.jsonl", workers=2)
    assert outcome.resumed > 0
    assert [Path(row["file"]).name for row in rows_in(outcome.output)] == [
        f"{number:03}.png" for number in range(SCANS)
    ] * 9
