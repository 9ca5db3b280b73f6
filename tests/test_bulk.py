"""`kit predict -o FILE`: many items into one file, in order, by several processes, going on where it was stopped."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from kit import bulk
from kit.bulk.answering import Answered
from kit.bulk.chunks import Seen, chunks
from kit.bulk.forms import JsonLines
from kit.bulk.output import Output
from kit.bundle import Bundle, open_folder
from kit.engine import load
from kit.errors import MemoryShort, PackageMissing, UsageError
from kit.tasks.registry import task_of
from kit.tasks.rows import count_rows, rows_of
from kit.tensors import Signature, TensorSpec
from tests.conftest import Kit, Once

MANY = 300


@pytest.fixture(scope="session")
def _scans(once: Once) -> Path:
    """Drawings enough for five chunks, and a file that is none."""

    def make(folder: Path) -> None:
        random = np.random.default_rng(1)
        for number in range(MANY):
            pixels = random.integers(0, 256, (16, 20), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:03}.png")
        (folder / "017.png").write_text("no picture")

    return once("scans", make)


@pytest.fixture
def scans(_scans: Path, tmp_path: Path) -> Path:
    (tmp_path / "scans").symlink_to(_scans, target_is_directory=True)
    return tmp_path / "scans"


@pytest.fixture(scope="session")
def scores(once: Once) -> Path:
    def make(folder: Path) -> None:
        import torch

        import exporters
        from kit.tasks.table import Table

        torch.manual_seed(3)
        signature = Signature(
            inputs=(TensorSpec(name="features", dtype="float32", shape=("batch", 2)),),
            outputs=(TensorSpec(name="score", dtype="float32", shape=("batch", 1)),),
        )
        task = Table(columns=("age", "smoker"), categories={"smoker": ("no", "yes")})
        exporters.export(torch.nn.Linear(2, 1), name="scores", task=task, signature=signature, out=folder / "scores")

    return once("scores", make) / "scores"


def rows_in(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of answers, whatever its form."""
    if path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        found: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
        return found
    if path.suffix == ".csv":
        return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_every_item_has_a_row_in_order_and_a_bad_one_its_reason(
    kit_inside: Kit,
    tiny: Bundle,
    scans: Path,  # noqa: ARG001 - the folder that is read
    tmp_path: Path,
    form: str,
) -> None:
    found = kit_inside("predict", str(tiny.folder), "scans", "missing.png", "-o", f"out.{form}", "--workers", "1")
    assert found.returncode == 4, found.stderr
    assert f"Wrote out.{form}: 301 items" in found.stdout
    assert "2 items have no answer" in found.stderr
    rows = rows_in(tmp_path / f"out.{form}")
    names = [f"scans/{number:03}.png" for number in range(MANY)]
    assert [row["file"] for row in rows] == [*names, "missing.png"]
    bad = [row["file"] for row in rows if row.get("error")]
    assert bad == ["scans/017.png", "missing.png"]
    with load(tiny.folder) as engine:
        for row in (rows[0], rows[16], rows[299]):
            said = engine.predict(str(tmp_path / row["file"]))
            assert row["label"] == said.names[0]
            share = row["probabilities"]["left"] if form == "jsonl" else float(row["p(left)"])
            assert share == pytest.approx(float(said.probabilities[0, 0]), abs=1e-5)
    assert not list(tmp_path.glob("*.unfinished"))


def test_several_processes_write_what_one_writes(kit: Kit, tiny: Bundle, scans: Path, tmp_path: Path) -> None:  # noqa: ARG001 - the folder that is read
    for workers, name in (("1", "one.jsonl"), ("2", "two.jsonl")):
        found = kit("predict", str(tiny.folder), "scans", "-o", name, "--workers", workers)
        assert found.returncode == 4, found.stderr
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert "2 processes" in found.stderr


def test_parquet_says_what_answered(kit_inside: Kit, tiny: Bundle, scans: Path, tmp_path: Path) -> None:  # noqa: ARG001
    parquet = pytest.importorskip("pyarrow.parquet")
    kit_inside("predict", str(tiny.folder), "scans", "-o", "out.parquet", "--workers", "1")
    schema = parquet.read_schema(tmp_path / "out.parquet")
    about = json.loads(schema.metadata[b"kit"])
    assert about["sha256"] == tiny.variant().graph.sha256
    assert (about["variant"], about["provider"]) == ("fp32", "cpu")
    assert str(schema.field("p(left)").type) == "float"


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


def test_a_killed_process_loses_and_doubles_nothing(kit: Kit, tiny: Bundle, scans: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of the work, whose every chunk waits until the test lets it go on."""
    program = f"""
import sys
from pathlib import Path
from kit import bulk
from kit.bulk import output
output._SYNC_SECONDS = 0.0
def told(done, whole):
    print(done, flush=True)
    sys.stdin.readline()
from kit.bulk import run
run._UPDATES_SECONDS = 0.0
bulk.predict({str(tiny.folder)!r}, ["scans"], Path("out.jsonl"), workers=1, on_rows=told)
"""
    running = subprocess.Popen(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    assert running.stdin is not None
    assert int(running.stdout.readline()) == 64
    running.stdin.write("\n")
    running.stdin.flush()
    assert int(running.stdout.readline()) == 128
    running.kill()
    running.wait()
    for stream in (running.stdin, running.stdout):
        with contextlib.suppress(BrokenPipeError):
            stream.close()
    assert (tmp_path / "out.jsonl.unfinished" / "answers").is_file()
    found = kit("predict", str(tiny.folder), "scans", "-o", "out.jsonl", "--workers", "1")
    assert "goes on after 128 items" in found.stderr
    assert [row["file"] for row in rows_in(tmp_path / "out.jsonl")] == [
        f"scans/{number:03}.png" for number in range(MANY)
    ]
    assert scans.is_dir()


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


def test_workers_end_with_the_process_that_started_them(tiny: Bundle, scans: Path, tmp_path: Path) -> None:
    program = f"""
import psutil
from pathlib import Path
from kit import bulk
def told(done, whole):
    print(*[one.pid for one in psutil.Process().children() if "spawn_main" in " ".join(one.cmdline())], flush=True)
    input()
if __name__ == "__main__":
    bulk.predict({str(tiny.folder)!r}, [{str(scans)!r}] * 9, Path("out.jsonl"), workers=2, on_rows=told)
"""
    (tmp_path / "program.py").write_text(program)
    running = subprocess.Popen(
        [sys.executable, "-P", "program.py"], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    assert running.stdin is not None
    workers = [psutil.Process(int(pid)) for pid in running.stdout.readline().split()]
    assert len(workers) == 2
    running.kill()
    running.wait()
    running.stdin.close()
    running.stdout.close()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


def test_what_this_machine_lacks_is_no_reason_of_an_item(
    tiny: Bundle, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise PackageMissing("reading this needs something, which is not installed")

    monkeypatch.setattr("kit.tasks.image.ImageClassification.encode", fail)
    with pytest.raises(PackageMissing):
        bulk.predict(tiny.folder, [str(scans)], tmp_path / "out.csv", workers=1)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_no_utf8_are_written_as_escapes(tiny: Bundle, scans: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    os.link(scans / "000.png", os.fsencode(own) + b"/\xff.png")
    outcome = bulk.predict(tiny.folder, [str(own)], tmp_path / "out.parquet", workers=1)
    (row,) = rows_in(outcome.output)
    assert row["file"].endswith("\\udcff.png")


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
        f"{number:03}.png" for number in range(MANY)
    ] * 9


def test_rows_of_a_table_are_answered_each_for_itself(kit_inside: Kit, scores: Path, tmp_path: Path) -> None:
    lines = [f"{20 + number},{'no' if number % 2 else 'yes'}" for number in range(3000)]
    lines[5], lines[700], lines[2500] = "many,no", '"5" tall,no', "1,2,3"
    (tmp_path / "people.csv").write_text("age,smoker\n" + "\n".join(lines))
    found = kit_inside("predict", str(scores), "people.csv", "-o", "out.parquet")
    assert found.returncode == 4, found.stderr
    rows = rows_in(tmp_path / "out.parquet")
    assert [row["file"] for row in rows] == [f"people.csv:{number}" for number in range(1, 3001)]
    assert {place for place, row in enumerate(rows) if row["error"]} == {5, 700, 2500}
    with load(scores) as engine:
        wanted = engine.predict({"age": 30, "smoker": "yes"}).records()[0]["score"]
    assert rows[10]["score"] == pytest.approx(wanted, rel=1e-5)


def test_texts_of_any_length_keep_their_places(kit_inside: Kit, reviews: Path, tmp_path: Path) -> None:
    texts = [("nice " if number % 3 else "dull ") * (1 + number % 9) + "film" for number in range(200)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts) + "{broken\n")
    found = kit_inside("predict", str(reviews), "texts.jsonl", "-o", "out.jsonl")
    assert found.returncode == 4, found.stderr
    rows = rows_in(tmp_path / "out.jsonl")
    assert [row.get("label") for row in rows] == ["nice" if number % 3 else "dull" for number in range(200)] + [None]
    assert "no JSON" in rows[200]["error"]


def test_samples_of_a_npz_are_rows(kit_inside: Kit, duo: Bundle, tmp_path: Path) -> None:
    group = duo.golden()[0]
    np.savez(tmp_path / "tensors.npz", **group.inputs)
    count = duo.signature.rows(group.inputs)
    found = kit_inside("predict", str(duo.folder), "tensors.npz", "-o", "out.jsonl")
    assert found.returncode == 0, found.stderr
    rows = rows_in(tmp_path / "out.jsonl")
    assert [row["file"] for row in rows] == [f"tensors.npz:{number}" for number in range(1, count + 1)]
    assert group.expected is not None
    for name, wanted in group.expected.items():
        assert np.allclose([row[name] for row in rows], wanted, rtol=1e-4, atol=1e-5)


def test_reading_takes_no_more_memory_for_more_rows(tmp_path: Path) -> None:
    path = tmp_path / "many.csv"
    path.write_text("a,b\n" + "1234567,7654321\n" * 200_000)
    assert count_rows(path) == 200_000
    tracemalloc.start()
    try:
        assert sum(1 for _ in rows_of(path)) == 200_000
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


def test_chunks_hold_every_item_once(tiny: Bundle, scans: Path) -> None:
    task = task_of(open_folder(tiny.folder))
    found = list(chunks(task, [str(scans), "missing.png"], 64))
    assert [chunk.index for chunk in found] == list(range(5))
    assert [len(chunk.names) for chunk in found] == [64, 64, 64, 64, 45]
    assert found[-1].names[-1] == "missing.png"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["-o", "out.xlsx"], "are written as"),
        (["--strict"], "--strict is for many items"),
        (["-o", "out.csv", "--json"], "--json is for the screen"),
        (["-o", "nowhere/else/out.csv", "--workers", "0"], "--workers"),
    ],
)
def test_what_does_not_go_together_is_refused(
    kit_inside: Kit, tiny: Bundle, scans: Path, tmp_path: Path, more: list[str], said: str
) -> None:
    found = kit_inside("predict", str(tiny.folder), scans.name, *more)
    assert found.returncode == 2
    assert said in found.stderr
    assert not list(tmp_path.glob("out*"))


def test_no_item_at_all_leaves_nothing_behind(kit_inside: Kit, tiny: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    found = kit_inside("predict", str(tiny.folder), "empty", "-o", "out.csv", "--strict")
    assert found.returncode == 4
    assert "holds no pictures" in found.stderr
    assert not list(tmp_path.glob("out*"))


@pytest.fixture(autouse=True)
def _no_children_left() -> Iterator[None]:
    yield
    left = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
    assert not left
