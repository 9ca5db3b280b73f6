"""`kit predict -o FILE`: many items into one file, in order, by several processes, going on where it was stopped."""

from __future__ import annotations

import json
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from kit import bulk
from kit.bulk.chunks import chunks
from kit.bundle import Bundle, open_folder
from kit.engine import load
from kit.errors import PackageMissing
from kit.tasks.registry import task_of
from kit.tasks.rows import count_rows, rows_of
from tests import graphs
from tests.conftest import SCANS, Kit
from tests.helpers.answers import rows_in


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
    names = [f"scans/{number:03}.png" for number in range(SCANS)]
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


@pytest.mark.slow
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


def test_outputs_may_be_called_as_the_columns_of_every_row(kit_inside: Kit, tmp_path: Path) -> None:
    nodes = [graphs.node("Identity", "x", "error"), graphs.node("Neg", "x", "file")]
    shape = ["batch", 2]
    model = graphs.make(nodes, [("x", "float32", shape)], [("error", "float32", shape), ("file", "float32", shape)])
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "two.npz", x=np.array([[1, 2], [3, 4]], np.float32))
    found = kit_inside("predict", "model.onnx", "two.npz", "-o", "out.jsonl")
    assert found.returncode == 0, found.stderr
    second = rows_in(tmp_path / "out.jsonl")[1]
    assert second == {"file": "two.npz:2", "output.error": [3, 4], "output.file": [-3, -4]}


def test_a_ready_model_that_is_quantized_already_promises_nothing(
    kit_inside: Kit, quantized: Bundle, tmp_path: Path
) -> None:
    ready = quantized.path(quantized.variant("int8-qdq").graph)
    np.savez(tmp_path / "pixels.npz", **{name: array[:5] for name, array in quantized.golden()[0].inputs.items()})
    found = kit_inside("predict", str(ready), "pixels.npz", "-o", "out.csv")
    assert found.returncode == 0, found.stderr
    assert len(rows_in(tmp_path / "out.csv")) == 5


def test_sources_of_which_none_is_there_are_refused(kit_inside: Kit, tiny: Bundle, tmp_path: Path) -> None:
    found = kit_inside("predict", str(tiny.folder), "scnas/", "-o", "out.csv")
    assert found.returncode == 4
    assert "there is no file or folder 'scnas/'" in found.stderr
    assert not list(tmp_path.glob("out*"))


def test_no_item_at_all_leaves_nothing_behind(kit_inside: Kit, tiny: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    found = kit_inside("predict", str(tiny.folder), "empty", "-o", "out.csv", "--strict")
    assert found.returncode == 4
    assert "holds no pictures" in found.stderr
    assert not list(tmp_path.glob("out*"))
