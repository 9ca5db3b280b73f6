"""Rows become features and outputs become classes or numbers."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from kit.bundle.manifest import TaskRef
from kit.errors import BadInput, BundleInvalid, DatasetInvalid, UsageError
from kit.tasks.base import scored_output
from kit.tasks.registry import open_task
from kit.tasks.table import Table
from kit.tasks.tensors import PlainTensors
from kit.tensors import Signature, TensorSpec

PEOPLE = "age,smoker,score,other\n59,no,1.5,x\n40,yes,-2,y\n"
MATRIX = Signature(
    inputs=(TensorSpec(name="features", dtype="float32", shape=("batch", 2)),),
    outputs=(TensorSpec(name="score", dtype="float32", shape=("batch", 1)),),
)


@pytest.fixture
def people(tmp_path: Path) -> Path:
    path = tmp_path / "people.csv"
    path.write_text(PEOPLE)
    return path


def regression() -> Table:
    task = Table(columns=("age", "smoker"), categories={"smoker": ("no", "yes")}, target="score")
    task.check(MATRIX)
    return task


def test_rows_become_one_matrix_in_the_order_of_the_columns(people: Path) -> None:
    task = regression()
    rows = [item for _, item in task.read(str(people))]
    features = task.encode(rows)["features"]
    assert features.tolist() == [[59.0, 0.0], [40.0, 1.0]]
    assert features.dtype == np.float32
    assert task.encode([[59, "no"]])["features"].tolist() == [[59.0, 0.0]]
    assert task.raw(people, 1) == [{"age": "59", "smoker": "no"}]


def test_each_column_may_be_an_input_of_its_own() -> None:
    task = Table(columns=("age", "smoker"), categories={"smoker": ("no", "yes")})
    task.check(
        Signature(
            inputs=(
                TensorSpec(name="smoker", dtype="int64", shape=("batch",)),
                TensorSpec(name="age", dtype="float32", shape=("batch", 1)),
            ),
            outputs=MATRIX.outputs,
        )
    )
    tensors = task.encode([{"age": 59, "smoker": "yes"}])
    assert {name: array.tolist() for name, array in tensors.items()} == {"smoker": [1], "age": [[59.0]]}


def test_a_regression_gives_numbers_by_name(people: Path) -> None:
    task = regression()
    (group,) = task.samples(people, MATRIX)
    assert (group.targets or {})["score"].tolist() == [[1.5], [-2.0]]
    answer = task.decode({"score": np.array([[1.25], [2.5]], np.float32)}, group.inputs)
    assert answer.records() == [{"score": 1.25}, {"score": 2.5}]
    assert task.metrics[0] == "r2"


def test_a_classification_gives_labels(tmp_path: Path) -> None:
    task = Table(columns=("x",), labels=("benign", "malignant"), target="diagnosis")
    given = Signature(
        inputs=(TensorSpec(name="features", dtype="float32", shape=("batch", 1)),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 2)),),
    )
    path = tmp_path / "cells.jsonl"
    path.write_text("\n".join(map(json.dumps, [{"x": 1, "diagnosis": "malignant"}, {"x": 2, "diagnosis": 0}])))
    (group,) = task.samples(path, given)
    assert (group.targets or {})["labels"].tolist() == [1, 0]
    answer = task.decode({"logits": np.array([[0.0, 3.0]], np.float32)}, {})
    assert answer.records()[0]["label"] == "malignant"


def test_parquet_is_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "people.parquet"
    parquet.write_table(pyarrow.table({"age": [59, 40], "smoker": ["no", "yes"], "score": [1.5, -2.0]}), path)
    (group,) = regression().samples(path, MATRIX)
    assert group.inputs["features"].tolist() == [[59.0, 0.0], [40.0, 1.0]]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"age": 59}, "row 1 has no value for 'smoker'"),
        ({"age": "", "smoker": "no"}, "row 1 has no value for 'age'"),
        ({"age": "old", "smoker": "no"}, "row 1: age is no number: 'old'"),
        ({"age": "nan", "smoker": "no"}, "row 1: age is nan"),
        ({"age": 59, "smoker": "maybe"}, "row 1: smoker has no category 'maybe'"),
    ],
)
def test_a_value_that_is_missing_or_wrong_names_row_and_column(row: dict[str, object], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        regression().encode([row])


def test_what_does_not_fit_is_refused(people: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"3 columns .* do not fit the inputs features: float32 \[batch, 2\]"):
        Table(columns=("a", "b", "c")).check(MATRIX)
    with pytest.raises(ValueError, match="different names"):
        Table(columns=("a", "a"))
    with pytest.raises(UsageError, match="row 1 is int"):
        regression().encode([3])
    bad = tmp_path / "bad.csv"
    bad.write_text("age,smoker,score\n1,no,high\n")
    with pytest.raises(DatasetInvalid, match="a target is no number"):
        regression().samples(bad, MATRIX)
    bad.write_text("age,smoker\n1,no,3\n")
    with pytest.raises(BadInput, match="line 2 has another number of columns"):
        regression().samples(bad, MATRIX)
    with pytest.raises(BadInput, match="there is no file"):
        list(regression().read(str(people.with_name("none.csv"))))


def test_it_opens_again_from_what_a_manifest_holds(people: Path) -> None:
    options = json.loads(json.dumps(regression().options()))
    again = open_task(TaskRef(name="table@1", options=options), {}, MATRIX)
    assert again.options() == regression().options()
    assert again.samples(people, MATRIX)[0].inputs["features"].shape == (2, 2)


def test_ids_may_have_inputs_of_their_own_beside_one_matrix() -> None:
    task = Table(columns=("age", "town", "score"))
    task.check(
        Signature(
            inputs=(
                TensorSpec(name="dense", dtype="float32", shape=("batch", 2)),
                TensorSpec(name="town", dtype="int64", shape=("batch",), below=5),
            ),
            outputs=MATRIX.outputs,
        )
    )
    tensors = task.encode([[59, 4, 1.5]])
    assert {name: array.tolist() for name, array in tensors.items()} == {"dense": [[59.0, 1.5]], "town": [4]}
    for town, words in (
        (1.5, "row 1: town is 1.5, not a whole number from 0 to 4"),
        (5, "town is 5"),
        (-1, "town is -1"),
    ):
        with pytest.raises(BadInput, match=words):
            task.encode([[59, town, 1.5]])


def test_a_data_set_with_a_missing_value_names_file_row_and_column(tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    path.write_text("age,smoker,score\n59,no,1\n,yes,2\n")
    with pytest.raises(DatasetInvalid, match=r"people\.csv: row 2 has no value for 'age'"):
        regression().samples(path, MATRIX)
    path.write_text("age,smoker,score\n59,no,nan\n")
    with pytest.raises(DatasetInvalid, match=r"row 1: a target is no finite number"):
        regression().samples(path, MATRIX)
    path.write_text("age,smoker,score\n")
    with pytest.raises(DatasetInvalid, match="holds no rows"):
        regression().samples(path, MATRIX)


def test_a_model_without_a_batch_takes_one_row(people: Path) -> None:
    given = Signature(
        inputs=(TensorSpec(name="features", dtype="float32", shape=(1, 2)),),
        outputs=(TensorSpec(name="score", dtype="float32", shape=(1, 1)),),
        batch=None,
    )
    task = regression()
    groups = task.samples(people, given)
    assert [(group.targets or {})["score"].tolist() for group in groups] == [[[1.5]], [[-2.0]]]
    with pytest.raises(UsageError, match="one row in a call"):
        task.encode([[59, "no"], [40, "yes"]])


def test_made_up_rows_prove_the_way_in() -> None:
    task = regression()
    assert task.encode([task.item(one) for one in task.raw(None, 3)])["features"].shape == (3, 2)


def test_probabilities_and_doubt_of_a_classifier_come_from_its_options() -> None:
    task = Table(columns=("x",), labels=("benign", "malignant"), scores="probabilities", abstain_below=0.9)
    task.check(
        Signature(
            inputs=(TensorSpec(name="features", dtype="float32", shape=("batch", 1)),),
            outputs=(
                TensorSpec(name="label", dtype="int64", shape=("batch",)),
                TensorSpec(name="probabilities", dtype="float32", shape=("batch", 2)),
            ),
        )
    )
    answer = task.decode({"label": np.array([1]), "probabilities": np.array([[0.25, 0.75]], np.float32)}, {})
    (record,) = answer.records()
    assert (record["label"], record["probability"], record["unsure"]) == ("malignant", 0.75, True)
    assert task.options()["scores"] == "probabilities"


def scored(*shapes: tuple[int | str, ...], batch: str | None = "batch") -> Signature:
    return Signature(
        inputs=(TensorSpec(name="features", dtype="float32", shape=(batch or 1, 1)),),
        outputs=tuple(
            TensorSpec(name=f"p{number}", dtype="float32", shape=shape) for number, shape in enumerate(shapes)
        ),
        batch=batch,
    )


@pytest.mark.parametrize("shape", [("batch",), (2, "batch"), ("batch", "batch"), (2,), (1, 2), ()])
def test_the_samples_of_a_batch_are_no_scores(shape: tuple[int | str, ...]) -> None:
    with pytest.raises(UsageError, match="2 labels do not fit the output p0"):
        Table(columns=("x",), labels=("no", "yes")).check(scored(shape))


@pytest.mark.parametrize("shape", [(2,), (1, 2), ("rows", 2)])
def test_without_a_batch_the_scores_of_the_only_sample_may_stand_alone(shape: tuple[int | str, ...]) -> None:
    task = Table(columns=("x",), labels=("no", "yes"))
    task.check(scored(shape, batch=None))
    scores = np.array([0.0, 3.0], np.float32).reshape((-1, 2)[-len(shape) :])
    assert task.decode({"p0": scores}, {}).records()[0]["label"] == "yes"


def test_a_task_names_the_output_that_it_reads() -> None:
    task = Table(columns=("x",), labels=("no", "yes"))
    task.check(scored(("batch",), ("batch", 2)))
    assert task.output == scored_output(task, scored(("batch",), ("batch", 2))) == "p1"
    numbers = Table(columns=("x",))
    numbers.check(scored((2, "batch"), ("batch", 2)))
    assert numbers.output == "p1"


def test_more_scores_than_labels_are_said() -> None:
    task = Table(columns=("x",), labels=("no", "yes"))
    task.check(scored(("batch", "classes")))
    with pytest.raises(BundleInvalid, match="3 scores in p0, and its task has 2 labels"):
        task.decode({"p0": np.array([[0, 1, 2]], np.float32)}, {})


@pytest.mark.parametrize("given", [9007199254740993, "9007199254740993", np.int64(9007199254740993)])
def test_large_ids_are_exact(given: object) -> None:
    task = Table(columns=("user", "age"))
    task.check(
        Signature(
            inputs=(
                TensorSpec(name="user", dtype="int64", shape=("batch",)),
                TensorSpec(name="age", dtype="float32", shape=("batch", 1)),
            ),
            outputs=MATRIX.outputs,
        )
    )
    tensors = task.encode([{"user": given, "age": "1.5"}, {"user": "5.0", "age": 2}])
    assert tensors["user"].tolist() == [9007199254740993, 5]
    assert tensors["age"].tolist() == [[1.5], [2.0]]
    with pytest.raises(BadInput, match="row 1: user is 9223372036854775808, not a whole number"):
        task.encode([[2**63, 1]])
    with pytest.raises(BadInput, match="row 1: user is no number"):
        task.encode([[10**400, 1]])


def test_a_column_may_be_a_scalar_of_a_model_without_a_batch() -> None:
    given = Signature(
        inputs=(TensorSpec(name="age", dtype="float32", shape=()), TensorSpec(name="town", dtype="int64", shape=())),
        outputs=(TensorSpec(name="score", dtype="float32", shape=()),),
        batch=None,
    )
    task = Table(columns=("age", "town"))
    task.check(given)
    tensors = task.encode([[59, 4]])
    assert {name: array.shape for name, array in tensors.items()} == {"age": (), "town": ()}
    assert given.arrays(tensors)["town"] == 4


@pytest.mark.parametrize("shape", [(2, "batch"), ("batch", "batch"), ("columns", "batch")])
def test_rows_along_another_axis_than_the_first_are_refused(shape: tuple[int | str, ...]) -> None:
    given = Signature(
        inputs=(TensorSpec(name="features", dtype="float32", shape=shape),), outputs=MATRIX.outputs, batch="batch"
    )
    with pytest.raises(UsageError, match="do not fit the inputs features"):
        Table(columns=("age", "smoker")).check(given)


@pytest.mark.parametrize("content", [b'a,b\n1,"2\n', b"a,b\n\xff,2\n"])
def test_a_stdin_that_is_no_table_is_bad_input(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    ((_, row),) = regression().read("-")
    assert isinstance(row, BadInput)
    assert str(row).startswith("line ")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_or_a_closed_stdin_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "rows.csv")
    with pytest.raises(BadInput, match=r"rows\.csv is a pipe") as caught:
        list(regression().read(str(tmp_path / "rows.csv")))
    assert "stdin" in caught.value.hint
    os.mkfifo(tmp_path / "tensors.npz")
    with pytest.raises(BadInput, match="is a pipe"):
        list(PlainTensors().read(str(tmp_path / "tensors.npz")))
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(BadInput, match="stdin is closed"):
        list(regression().read("-"))
