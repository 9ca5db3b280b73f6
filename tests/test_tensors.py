"""Named tensors: what fits a signature and what does not, and samples that are cut, joined, resized and drawn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from kit import samples
from kit.errors import MemoryShort, UsageError
from kit.samples import SEEDED, Samples, seeded
from kit.tensors import Axis, Signature, TensorSpec

TEXT = Signature(
    inputs=(
        TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence"), below=30),
        TensorSpec(name="attention_mask", dtype="int64", shape=("batch", "sequence")),
        TensorSpec(name="scale", dtype="float32", shape=()),
    ),
    outputs=(
        TensorSpec(name="tokens", dtype="float16", shape=("batch", "sequence", 4)),
        TensorSpec(name="logits", dtype="float32", shape=("batch", 2)),
    ),
    axes={"sequence": Axis(least=2, most=12, multiple_of=2, typical=(4, 8))},
)
STATE = Signature(
    inputs=(TensorSpec(name="state", dtype="float32", shape=(2, "batch", 3)),),
    outputs=(TensorSpec(name="next", dtype="float32", shape=(2, "batch", 3)),),
)


def text(rows: int = 3, length: int = 4) -> dict[str, np.ndarray]:
    return {
        "input_ids": np.arange(rows * length).reshape(rows, length),
        "attention_mask": np.ones((rows, length), np.int64),
        "scale": np.array(2, np.float32),
    }


def test_inputs_that_fit_give_the_sizes_of_their_axes() -> None:
    assert TEXT.check(text()) == {"batch": 3, "sequence": 4}
    assert TEXT.dynamic == ("batch", "sequence")
    assert TEXT.described()["input_ids"] == "int64 [batch, sequence]"
    assert TEXT.rows(text(5)) == 5


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"input_ids": None}, "the input 'input_ids' is missing"),
        ({"pixels": np.zeros(1)}, "there is no input 'pixels'"),
        (
            {"input_ids": np.zeros((3, 4), np.int32)},
            r"input_ids must be int64 \[batch, sequence\], found int32 \[3, 4\]",
        ),
        ({"input_ids": np.zeros(4, np.int64)}, "must be int64"),
        ({"scale": np.zeros(1, np.float32)}, r"scale must be float32 \[\], found float32 \[1\]"),
        ({"attention_mask": np.ones((3, 6), np.int64)}, "6 along 'sequence' where another input has 4"),
        (text(3, 14), "along 'sequence' 14 is more than 12"),
        (text(3, 5), "along 'sequence' 5 is no multiple of 2"),
        (text(0, 4), "along 'batch' 0 is less than 1"),
    ],
)
def test_what_does_not_fit_is_named_with_tensor_axis_and_bound(change: dict[str, np.ndarray], problem: str) -> None:
    tensors = {name: array for name, array in {**text(), **change}.items() if array is not None}
    with pytest.raises(UsageError, match=problem):
        TEXT.check(tensors)


def test_lists_and_numbers_become_arrays_of_the_right_kind() -> None:
    found = TEXT.arrays({"scale": 2, "input_ids": [[1, 2]], "attention_mask": [[True, True]]})
    assert list(found) == ["input_ids", "attention_mask", "scale"]
    assert [str(array.dtype) for array in found.values()] == ["int64", "int64", "float32"]
    assert found["scale"].shape == ()
    strided = text(6, 8)["input_ids"][::2, ::2]
    assert TEXT.arrays({**text(), "input_ids": strided})["input_ids"].flags.c_contiguous
    with pytest.raises(UsageError, match="input_ids must be int64"):
        TEXT.arrays({**text(), "input_ids": [[1], [2, 3]]})


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"dtype": "bfloat16"}, "must be one of"),
        ({"dtype": "str"}, "must be one of"),
        ({"name": ""}, "needs a name"),
        ({"shape": ("batch", -1)}, "impossible shape"),
        ({"shape": ("",)}, "impossible shape"),
        ({"below": 0}, "no value below"),
    ],
)
def test_tensors_that_numpy_or_onnx_lack_are_refused(fields: dict[str, object], problem: str) -> None:
    usual = {"name": "x", "dtype": "int64", "shape": ("batch",)}
    with pytest.raises(ValueError, match=problem):
        TensorSpec(**{**usual, **fields})


def test_signatures_that_contradict_themselves_are_refused() -> None:
    x = TensorSpec(name="x", dtype="int64", shape=(2,))
    with pytest.raises(ValueError, match="no input has the batch axis"):
        Signature(inputs=(x,), outputs=(x,))
    with pytest.raises(ValueError, match="names of their own"):
        Signature(inputs=(x, x), outputs=(x,), batch=None)
    with pytest.raises(ValueError, match="names of their own"):
        Signature(inputs=(x,), outputs=(), batch=None)
    with pytest.raises(ValueError, match="the typical size 3 is impossible"):
        Axis(multiple_of=2, typical=(3,))
    with pytest.raises(ValueError, match="cannot have"):
        Axis(least=5, most=4)


def test_the_usual_sizes_are_typical_ones_or_the_smallest() -> None:
    assert TEXT.usual_sizes() == {"batch": 1, "sequence": 4}
    assert TEXT.usual_sizes(sequence=8) == {"batch": 1, "sequence": 8}
    assert Axis(least=3, multiple_of=4).usual == 4
    with pytest.raises(UsageError, match="no axis 'width'") as caught:
        TEXT.usual_sizes(width=3)
    assert "batch, sequence" in caught.value.hint
    with pytest.raises(UsageError, match="13 is more than 12"):
        TEXT.usual_sizes(sequence=13)


def test_bytes_are_those_of_inputs_and_outputs() -> None:
    assert TEXT.nbytes({"batch": 3, "sequence": 4}) == 2 * 3 * 4 * 8 + 4 + 3 * 4 * 4 * 2 + 3 * 2 * 4
    assert TEXT.rows_within(2 * TEXT.nbytes({"batch": 1, "sequence": 4}), {"batch": 9, "sequence": 4}) == 2
    assert TEXT.rows_within(1, {"batch": 9, "sequence": 4}) == 1


def test_pieces_along_the_batch_are_those_of_the_whole_wherever_the_axis_stands() -> None:
    whole = {"state": np.arange(42, dtype=np.float32).reshape(2, 7, 3)}
    pieces = list(STATE.split(whole, 3))
    assert [STATE.rows(piece) for piece in pieces] == [2, 2, 3]  # of about one size
    assert np.shares_memory(pieces[0]["state"], whole["state"])
    joined = STATE.join([{"next": piece["state"]} for piece in pieces])
    assert np.array_equal(joined["next"], whole["state"])
    assert np.array_equal(STATE.take(whole, np.array([4, 1]))["state"], whole["state"][:, [4, 1]])
    assert [piece["scale"] for piece in TEXT.split(text(), 2)] == [2, 2]


def test_no_piece_is_smaller_than_the_batch_may_be() -> None:
    few = dataclasses.replace(STATE, axes={"batch": Axis(least=4)})
    whole = {"state": np.zeros((2, 11, 3), np.float32)}
    assert [few.rows(piece) for piece in few.split(whole, 5)] == [5, 6]


def test_an_axis_without_any_size_is_refused() -> None:
    with pytest.raises(ValueError, match="has no size at all"):
        Axis(most=3, multiple_of=4)
    assert Axis(most=4, multiple_of=4).usual == 4


def test_without_a_batch_one_call_is_one_sample() -> None:
    alone = dataclasses.replace(STATE, batch=None)
    whole = {"state": np.zeros((2, 7, 3), np.float32)}
    assert alone.rows(whole) == 1
    assert len(list(alone.split(whole, 1))) == 1
    assert alone.take(whole, slice(1))["state"].shape == (2, 7, 3)


def test_outputs_that_belong_to_the_whole_call_cannot_be_joined() -> None:
    one = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch",)),),
        outputs=(TensorSpec(name="mean", dtype="float32", shape=()),),
    )
    assert one.join([{"mean": np.float32(1)}]) == {"mean": 1}
    with pytest.raises(UsageError, match="'mean' has no axis 'batch'"):
        one.join([{"mean": np.float32(1)}, {"mean": np.float32(2)}])


def group(rows: int = 6) -> Samples:
    return Samples(
        inputs=text(rows),
        expected={"tokens": np.zeros((rows, 4, 4), np.float16), "logits": np.arange(2 * rows).reshape(rows, 2)},
        targets={"labels": np.arange(rows)},
        weights={"tokens": np.ones((rows, 4, 1))},
        source="by hand",
    )


def test_some_of_the_samples_keep_answers_labels_and_weights() -> None:
    found = group().take(TEXT, np.array([4, 1]))
    assert found.targets is not None
    assert found.expected is not None
    assert found.targets["labels"].tolist() == [4, 1]
    assert found.expected["logits"].tolist() == [[8, 9], [2, 3]]
    assert found.inputs["scale"] == 2
    assert samples.count([group(), found], TEXT) == 8


def test_resized_samples_stay_valid() -> None:
    found = group(2).resized(TEXT, {"batch": 5, "sequence": 6})
    assert TEXT.check(found) == {"batch": 5, "sequence": 6}
    assert found["input_ids"][0].tolist() == [0, 1, 2, 3, 0, 1]
    assert found["input_ids"][4].tolist() == found["input_ids"][0].tolist()
    assert found["scale"] == 2
    assert group(2).resized(TEXT, {"batch": 1, "sequence": 2})["input_ids"].tolist() == [[0, 1]]


def test_samples_that_do_not_fit_are_refused() -> None:
    samples.check([group()], TEXT)
    with pytest.raises(UsageError, match="there are no samples"):
        samples.check([], TEXT)
    wrong = {name: array for name, array in text().items() if name != "scale"}
    with pytest.raises(UsageError, match="golden: the input 'scale' is missing"):
        samples.check([Samples(inputs=wrong)], TEXT, name="golden")
    with pytest.raises(UsageError, match="labels has 2 rows for 3 samples"):
        samples.check([Samples(inputs=text(), targets={"labels": np.zeros(2)})], TEXT)


def test_batches_are_bounded_by_bytes() -> None:
    one = TEXT.nbytes({"batch": 1, "sequence": 4})
    found = list(samples.batches([group(5), group(2)], TEXT, 2 * one))
    assert [TEXT.rows(batch) for batch in found] == [1, 2, 2, 2]


def test_drawn_inputs_fit_and_are_the_same_each_time() -> None:
    first, second = (seeded(TEXT, sizes={"batch": 50, "sequence": 8}, seed=3) for _ in range(2))
    assert TEXT.check(first.inputs) == {"batch": 50, "sequence": 8}
    assert all(np.array_equal(first.inputs[name], second.inputs[name]) for name in first.inputs)
    assert first.source == SEEDED
    assert 0 <= first.inputs["input_ids"].min() < first.inputs["input_ids"].max() < 30
    assert (first.inputs["attention_mask"] == 1).all()


def test_drawn_inputs_go_by_their_names() -> None:
    def drawn(name: str, dtype: str, shape: tuple[int, ...] = (2, 3)) -> list[object]:
        spec = TensorSpec(name=name, dtype=dtype, shape=shape)
        found = seeded(Signature(inputs=(spec,), outputs=(spec,), batch=None), sizes={}).inputs[name]
        assert (str(found.dtype), found.shape) == (dtype, shape)
        values: list[object] = found.ravel().tolist()
        return values

    assert drawn("token_type_ids", "int64") == [0] * 6
    assert drawn("position_ids", "int64") == [0, 1, 2, 0, 1, 2]
    assert drawn("flags", "bool") == [True] * 6
    assert drawn("sr", "int64", ()) == [16000]
    assert drawn("sampling_rate", "int32", (1,)) == [16000]
    assert drawn("lengths", "int32", (2,)) == [1, 1]
    assert len(set(drawn("pixels", "uint8", (20, 20)))) > 100
    assert len(set(drawn("x", "float16"))) > 4
    assert set(drawn("ids", "int64", (20, 20))) == {0, 1}


def test_tensors_of_several_groups_are_merged_if_their_sizes_allow_it() -> None:
    short, long = np.zeros((2, 3)), np.zeros((4, 5))
    merged = samples.merged([{"x": short}, {"x": short}], "x")
    assert merged is not None
    assert merged.shape == (4, 3)
    assert samples.merged([{"x": short}, {"x": long}], "x") is None


def test_rows_are_drawn_in_order_and_without_repetition() -> None:
    rows = samples.drawn_rows(100, 10, seed=1)
    assert sorted(set(rows.tolist())) == rows.tolist()
    assert len(rows) == 10
    assert len(samples.drawn_rows(5, 10, seed=1)) == 5


def test_as_many_samples_are_kept_as_a_file_may_hold() -> None:
    one = TEXT.nbytes({"batch": 1, "sequence": 4})
    assert samples.within(10 * one, TEXT, {"batch": 1, "sequence": 4}) == 10
    assert samples.within(1, TEXT, {"batch": 1, "sequence": 4}) == 2
    assert samples.within(10**9, TEXT, {"batch": 1, "sequence": 4}) == 256
    assert samples.within(10**9, dataclasses.replace(STATE, batch=None), {}) == 1


def test_samples_of_lists_and_of_foreign_byte_order_become_arrays() -> None:
    foreign = np.arange(6, dtype=">f4").reshape(2, 1, 3)
    own = Samples(inputs={"state": foreign}, targets={"labels": [1, 0]})
    assert own.inputs["state"].dtype == np.float32
    assert np.array_equal(own.inputs["state"], foreign)
    assert own.targets is not None
    assert own.targets["labels"].dtype == np.int64
    plain = {"state": np.zeros((2, 1, 3), np.float32)}
    assert Samples(inputs=plain).inputs is plain, "nothing is copied without need"


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.array(["a", None], object), "targets: labels holds Python objects, such as str"),
        ([[1], [2, 3]], "targets: labels is no array"),
    ],
)
def test_samples_that_are_no_arrays_are_refused_in_words(labels: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Samples(inputs={"state": np.zeros((2, 1, 3), np.float32)}, targets={"labels": labels})  # type: ignore[dict-item]


def test_a_list_where_an_array_is_expected_is_named() -> None:
    with pytest.raises(UsageError, match=r"state must be float32 \[2, batch, 3\], found list"):
        STATE.check({"state": [1.0]})  # type: ignore[dict-item]


def test_arrays_of_a_foreign_byte_order_are_inputs_too() -> None:
    given = np.arange(6, dtype=">f4").reshape(2, 1, 3)
    found = STATE.arrays({"state": given})["state"]
    assert found.dtype.isnative
    assert np.array_equal(found, given)


def test_inputs_of_absurd_sizes_are_told_before_memory_is_asked_for() -> None:
    for make in (TEXT.zeros, lambda sizes: seeded(TEXT, sizes=sizes)):
        with pytest.raises(MemoryShort, match=r"inputs of batch 1,000,000,000,000, sequence 8 take"):
            make({"batch": 10**12, "sequence": 8})
    fixed = TensorSpec(name="x", dtype="float32", shape=(2**62, 2**62))
    with pytest.raises(MemoryShort, match="fixed sizes"):
        Signature(inputs=(fixed,), outputs=(fixed,), batch=None).zeros({})
