"""Texts become tensors and answers become labels and vectors, with the package tokenizers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kit.bundle.manifest import TaskRef
from kit.errors import BadInput, BundleInvalid, DatasetInvalid, UsageError
from kit.tasks.registry import open_task
from kit.tasks.text import TextClassification, TextEmbedding
from kit.tensors import Axis, Signature, TensorSpec

tokenizers = pytest.importorskip("tokenizers")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "nice", "film", "dull", "very"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word-level tokenizer with BERT's frame."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


def signature(*outputs: TensorSpec, names: tuple[str, ...] = ("input_ids", "attention_mask"), **axis: Any) -> Signature:
    return Signature(
        inputs=tuple(TensorSpec(name=name, dtype="int64", shape=("batch", "sequence")) for name in names),
        outputs=outputs,
        axes={"sequence": Axis(**axis)},
    )


LOGITS = TensorSpec(name="logits", dtype="float32", shape=("batch", 2))
TOKENS = TensorSpec(name="tokens", dtype="float32", shape=("batch", "sequence", 3))


def classifier(tokenizer: Path, given: Signature, **options: Any) -> TextClassification:
    task = TextClassification(labels=("dull", "nice"), tokenizer=tokenizer, **options)
    task.check(given)
    return task


def test_texts_are_filled_up_to_the_longest(tokenizer: Path) -> None:
    task = classifier(tokenizer, signature(LOGITS))
    tensors = task.encode(["a nice film", "dull"])
    assert tensors["input_ids"].tolist() == [[2, 4, 5, 6, 3], [2, 7, 3, 0, 0]]
    assert tensors["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert list(tensors) == ["input_ids", "attention_mask"]


def test_the_model_gets_what_it_asks_for_in_its_own_dtype_and_length(tokenizer: Path) -> None:
    names = ("input_ids", "token_type_ids", "position_ids")
    task = classifier(tokenizer, signature(LOGITS, names=names, multiple_of=4))
    tensors = task.encode([("a film", "nice")])
    assert list(tensors) == list(names)
    assert tensors["input_ids"].tolist() == [[2, 4, 6, 3, 5, 3, 0, 0]]
    assert tensors["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 0, 0]]
    assert tensors["position_ids"].tolist() == [list(range(8))]
    fixed = Signature(inputs=(TensorSpec(name="input_ids", dtype="int32", shape=("batch", 6)),), outputs=(LOGITS,))
    assert classifier(tokenizer, fixed).encode(["dull"])["input_ids"].tolist() == [[2, 7, 3, 0, 0, 0]]
    assert classifier(tokenizer, fixed).encode(["a very very very very nice film"])["input_ids"].dtype == np.int32


def test_long_texts_are_cut_to_what_the_model_takes(tokenizer: Path) -> None:
    long = "very " * 50
    assert classifier(tokenizer, signature(LOGITS, most=9)).encode([long])["input_ids"].shape == (1, 9)
    assert classifier(tokenizer, signature(LOGITS), max_tokens=7).encode([long])["input_ids"].shape == (1, 7)


def test_filling_up_ends_where_the_model_does(tokenizer: Path) -> None:
    long = "very " * 50
    bounded = classifier(tokenizer, signature(LOGITS, most=9), pad_multiple_of=4)
    assert bounded.encode([long])["input_ids"].shape == (1, 9)
    assert bounded.options()["pad_multiple_of"] == 4
    even = classifier(tokenizer, signature(LOGITS, most=9, multiple_of=2))
    assert even.encode([long])["input_ids"].shape == (1, 8)
    assert "pad_multiple_of" not in even.options()


def test_classes_are_named_with_their_probabilities(tokenizer: Path) -> None:
    task = classifier(tokenizer, signature(LOGITS), temperature=2.0, abstain_below=0.6)
    answer = task.decode({"logits": np.array([[0.0, 2.0], [0.1, 0.0]], np.float32)}, {})
    assert answer.names == ("nice", "dull")
    assert answer.probabilities[0, 1] == pytest.approx(1 / (1 + np.exp(-1)))
    assert answer.unsure.tolist() == [False, True]
    assert answer.records()[0]["label"] == "nice"


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [("mean", [2.0, 3.0, 4.0]), ("cls", [1.0, 2.0, 3.0]), ("max", [3.0, 4.0, 5.0]), ("last", [3.0, 4.0, 5.0])],
)
def test_padding_is_no_part_of_a_vector(tokenizer: Path, pooling: str, expected: list[float]) -> None:
    task = TextEmbedding(tokenizer=tokenizer, pooling=pooling)
    task.check(signature(TOKENS))
    tokens = np.array([[[1, 2, 3], [3, 4, 5], [100, 100, 100]]], np.float32)
    answer = task.decode({"tokens": tokens}, {"attention_mask": np.array([[1, 1, 0]])})
    assert answer.vectors.tolist() == [expected]


def test_vectors_have_length_one_if_the_model_says_so(tokenizer: Path) -> None:
    task = TextEmbedding(tokenizer=tokenizer, pooling="none", normalize=True)
    task.check(signature(TensorSpec(name="vectors", dtype="float32", shape=("batch", 2))))
    assert task.decode({"vectors": np.array([[3.0, 4.0]], np.float32)}, {}).vectors[0].tolist() == pytest.approx(
        [0.6, 0.8]
    )


def test_a_data_set_is_read_in_groups_of_one_length_with_the_padding_marked(tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "films.jsonl"
    rows = [
        {"text": "dull", "label": "dull"},
        {"text": "very " * 20 + "nice", "label": 1},
        {"text": "a nice film", "label": "nice"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    given = signature(LOGITS, TensorSpec(name="tokens", dtype="float32", shape=("batch", "sequence", 2)))
    groups = classifier(tokenizer, given).samples(path, given)
    assert [group.inputs["input_ids"].shape for group in groups] == [(2, 5), (1, 23)]
    assert [(group.targets or {})["labels"].tolist() for group in groups] == [[0, 1], [1]]
    assert (groups[0].weights or {})["tokens"].tolist() == [[[1], [1], [1], [0], [0]], [[1]] * 5]
    assert groups[1].weights is None


def test_texts_come_from_files_and_from_the_command_line(tokenizer: Path, tmp_path: Path) -> None:
    task = classifier(tokenizer, signature(LOGITS))
    lines = tmp_path / "films.txt"
    lines.write_text("a nice film\n\ndull\n")
    assert [item for _, item in task.read(str(lines))] == ["a nice film", "dull"]
    assert list(task.read("a very nice film")) == [("a very nice film", "a very nice film")]
    assert task.raw(lines, 1) == ["a nice film"]
    assert len(task.encode(task.raw(None, 3))["input_ids"]) == 3  # sentences of kit's own, for want of others
    table = tmp_path / "films.csv"
    table.write_text("words,label\ndull,dull\n")
    with pytest.raises(BadInput, match="no column 'text'; it has words, label"):
        list(task.read(str(table)))


def test_what_a_model_cannot_take_is_said(tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 labels do not fit the output logits: float32"):
        classifier(tokenizer, signature(TensorSpec(name="logits", dtype="float32", shape=("batch", 5))))
    with pytest.raises(UsageError, match="2 labels do not fit"):  # one score of each text is none of a class
        classifier(tokenizer, signature(TensorSpec(name="logits", dtype="float32", shape=("batch",))))
    with pytest.raises(UsageError, match="the model takes audio"):
        classifier(tokenizer, signature(LOGITS, names=("audio",)))
    with pytest.raises(UsageError, match="cannot read a text from int"):
        classifier(tokenizer, signature(LOGITS)).encode([3])
    for labels in (("a", "a"), ("a", " "), ("a",)):
        with pytest.raises(ValueError, match=r"label|classes"):
            TextClassification(labels=labels, tokenizer=tokenizer)
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("text,label\ndull,boring\n")
    with pytest.raises(DatasetInvalid, match="row 1: the model has no label 'boring'"):
        classifier(tokenizer, signature(LOGITS)).samples(wrong, signature(LOGITS))
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{}")
    with pytest.raises(BundleInvalid, match=r"no tokenizer\.json"):
        classifier(broken, signature(LOGITS)).encode(["dull"])


def test_it_opens_again_from_what_a_manifest_holds(tokenizer: Path) -> None:
    given = signature(TOKENS)
    first = TextEmbedding(tokenizer=tokenizer, pooling="max", normalize=True, max_tokens=8, pad_multiple_of=4)
    first.check(given)
    options = json.loads(json.dumps(first.options()))
    again = open_task(TaskRef(name="text-embedding@1", options=options), {"tokenizer": tokenizer}, given)
    assert again.options() == first.options()
    np.testing.assert_array_equal(again.encode(["nice"])["input_ids"], first.encode(["nice"])["input_ids"])
    with pytest.raises(BundleInvalid, match="needs a file 'tokenizer'"):
        open_task(TaskRef(name="text-embedding@1", options=options), {}, given)
    with pytest.raises(BundleInvalid, match="not text-embedding@9"):
        open_task(TaskRef(name="text-embedding@9", options=options), {"tokenizer": tokenizer}, given)


def test_texts_of_different_lengths_need_a_mask(tokenizer: Path, tmp_path: Path) -> None:
    given = signature(LOGITS, names=("input_ids",))
    task = classifier(tokenizer, given)
    assert task.encode(["a film", "dull film"])["input_ids"].shape == (2, 4)
    with pytest.raises(UsageError, match="cannot share a call"):
        task.encode(["a film", "dull"])
    path = tmp_path / "films.txt"
    path.write_text("a film\ndull\nnice film\n")
    assert [group.inputs["input_ids"].shape for group in task.samples(path, given)] == [(1, 3), (2, 4)]


def test_a_model_without_a_batch_takes_one_text(tokenizer: Path, tmp_path: Path) -> None:
    given = Signature(
        inputs=(TensorSpec(name="input_ids", dtype="int64", shape=(1, "sequence")),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=(1, 2)),),
        batch=None,
    )
    task = classifier(tokenizer, given)
    assert task.encode(["a film"])["input_ids"].shape == (1, 4)
    with pytest.raises(UsageError, match="one text in a call"):
        task.encode(["a film", "a film"])
    path = tmp_path / "films.txt"
    path.write_text("a film\nnice film\n")
    assert len(task.samples(path, given)) == 2


def test_a_row_without_its_label_is_refused_if_others_have_one(tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "films.csv"
    path.write_text("text,label\ndull,dull\nnice,\n")
    with pytest.raises(DatasetInvalid, match="row 2: the label is missing"):
        classifier(tokenizer, signature(LOGITS)).samples(path, signature(LOGITS))
    path.write_text("text,label\ndull,\nnice,\n")
    assert classifier(tokenizer, signature(LOGITS)).samples(path, signature(LOGITS))[0].targets is None


def test_vectors_are_compared_by_their_cosine(tokenizer: Path) -> None:
    task = TextEmbedding(tokenizer=tokenizer, pooling="none")
    task.check(signature(TensorSpec(name="vectors", dtype="float32", shape=("batch", 2))))
    answer = task.decode({"vectors": np.array([[3.0, 4.0], [4.0, -3.0], [6.0, 8.0]], np.float32)}, {})
    assert np.allclose(answer.similarities, [[1, 0, 1], [0, 1, 0], [1, 0, 1]], atol=1e-6)


def test_padding_of_a_model_without_a_mask_is_told_by_its_token(tokenizer: Path) -> None:
    task = TextEmbedding(tokenizer=tokenizer, pooling="mean")
    inputs = (TensorSpec(name="input_ids", dtype="int64", shape=("batch", 5)),)
    outputs = (TensorSpec(name="tokens", dtype="float32", shape=("batch", 5, 1)),)
    task.check(Signature(inputs=inputs, outputs=outputs))
    given = task.encode(["dull"])
    tokens = np.array([[[1], [2], [3], [100], [100]]], np.float32)
    assert task.decode({"tokens": tokens}, given).vectors.tolist() == [[2.0]]


def test_made_up_texts_prove_the_way_in(tokenizer: Path) -> None:
    task = classifier(tokenizer, signature(LOGITS))
    raw = task.raw(None, 3)
    assert len(raw) == 3
    assert task.encode([task.item(one) for one in raw])["input_ids"].shape[0] == 3


def test_half_precision_scores_become_ordinary_probabilities(tokenizer: Path) -> None:
    task = classifier(tokenizer, signature(LOGITS))
    answer = task.decode({"logits": np.array([[0.0, 2.0], [8.0, 0.0]], np.float16)}, {})
    assert answer.probabilities.dtype == np.float32
    assert answer.probabilities.sum(axis=1) == pytest.approx([1, 1])


def test_the_snippet_runs_as_it_stands(tokenizer: Path) -> None:
    compile(classifier(tokenizer, signature(LOGITS)).snippet("model.onnx"), "snippet", "exec")


def test_the_command_line_sees_what_a_task_of_texts_takes() -> None:
    import inspect

    for kind in (TextClassification, TextEmbedding):
        assert {"tokenizer", "max_tokens", "pad"} <= set(inspect.signature(kind).parameters), kind


def test_texts_along_another_axis_than_the_first_are_refused(tokenizer: Path) -> None:
    for shape in (("sequence", "batch"), ("batch", "batch"), (1, "sequence")):
        ids = TensorSpec(name="input_ids", dtype="int64", shape=shape)
        mask = TensorSpec(name="attention_mask", dtype="int64", shape=("batch", "sequence"))
        given = Signature(inputs=(ids, mask), outputs=(LOGITS, TOKENS))
        with pytest.raises(UsageError, match="the model takes input_ids"):
            classifier(tokenizer, given)
    sideways = TensorSpec(name="tokens", dtype="float32", shape=("sequence", "batch", 3))
    with pytest.raises(UsageError, match="needs an output of 3 axes"):
        TextEmbedding(tokenizer=tokenizer).check(signature(sideways))


def test_a_missing_text_names_its_row(tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "films.jsonl"
    path.write_text('{"text": "dull"}\n{"text": null}\n')
    task = classifier(tokenizer, signature(LOGITS))
    (_, first), (_, second) = task.read(str(path))
    assert first == "dull"
    assert isinstance(second, BadInput)
    assert str(second).endswith("films.jsonl, row 2: the text is missing")
    with pytest.raises(DatasetInvalid, match=r"films\.jsonl, row 2: the text is missing"):
        task.samples(path, signature(LOGITS))
    with pytest.raises(BadInput, match="row 2"):
        task.raw(path, 2)


@pytest.mark.parametrize("length", [5, "sequence"])
def test_a_token_equal_to_the_padding_is_part_of_a_vector_if_it_stands_in_the_text(
    tmp_path: Path, length: int | str
) -> None:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "<end>": 2}, unk_token="b"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 2)])
    made.save(str(tmp_path / "tokenizer.json"))
    task = TextEmbedding(tokenizer=tmp_path / "tokenizer.json", pad="<end>")
    ids = TensorSpec(name="input_ids", dtype="int64", shape=("batch", length))
    tokens = TensorSpec(name="tokens", dtype="float32", shape=("batch", length, 1))
    task.check(Signature(inputs=(ids,), outputs=(tokens,)))
    given = task.encode(["a <end> b"])
    assert given["input_ids"].tolist() == [[0, 2, 1, 2, 2][: 5 if length == 5 else 4]]
    values = np.array([[[1], [2], [3], [6], [100]]], np.float32)[:, : given["input_ids"].shape[1]]
    assert task.decode({"tokens": values}, given).vectors.tolist() == [[3.0]]


def test_padding_counts_for_nothing_at_a_fixed_length_either(tokenizer: Path, tmp_path: Path) -> None:
    given = Signature(
        inputs=(TensorSpec(name="input_ids", dtype="int64", shape=("batch", 5)),),
        outputs=(
            LOGITS,
            TensorSpec(name="tokens", dtype="float32", shape=("batch", 5, 3)),
            TensorSpec(name="topics", dtype="float32", shape=("batch", 5)),
        ),
    )
    path = tmp_path / "films.txt"
    path.write_text("dull\na nice film\n")
    (group,) = classifier(tokenizer, given).samples(path, given)
    assert {name: array.tolist() for name, array in (group.weights or {}).items()} == {
        "tokens": [[[1], [1], [1], [0], [0]], [[1]] * 5]
    }
