"""Files of arrays that strangers made: damage is told in words, and a small file never asks for much memory."""

from __future__ import annotations

import dataclasses
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy
from numpy.typing import NDArray

from apps.demo.samples import from_file
from kit.bundle.golden import check_golden, golden_bytes, golden_from_bytes, items_from_bytes
from kit.errors import BadInput, BundleInvalid, UsageError
from kit.samples import Samples
from kit.system.npz import NpzError, open_npz
from kit.tasks.tensors import arrays_of
from kit.tensors import Signature, TensorSpec

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 3)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 3)),),
)
GROUP = Samples(inputs={"x": np.ones((2, 3), np.float32)}, expected={"y": np.ones((2, 3), np.float32)})


def promising(shape: tuple[int, ...], *, held: int = 24) -> bytes:
    """An npz whose only array says that it has a shape, and holds so many bytes."""
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(held))
    return file.getvalue()


@pytest.mark.parametrize("shape", [(10**15,), (10**9, 10**9), (7,), (2, 2)])
def test_a_header_that_promises_what_the_file_lacks_is_refused_before_memory_is_asked_for(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    data = promising(shape)
    path = tmp_path / "x.npz"
    path.write_bytes(data)
    with pytest.raises(BadInput, match="holds 24"):
        arrays_of(path)
    with pytest.raises(BadInput, match="holds 24"):
        from_file(data, SIGNATURE)
    with pytest.raises(BundleInvalid, match="holds 24"):
        golden_from_bytes(data, SIGNATURE)
    with pytest.raises(BundleInvalid, match="holds 24"):
        items_from_bytes(data)


def test_a_header_that_keeps_its_promise_is_read() -> None:
    with open_npz(io.BytesIO(promising((2, 3)))) as held:
        assert np.array_equal(held["x"], np.zeros((2, 3), np.float32))


@pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMPY\x09\x00", b"\x93NUMPY\x01\x00\x08\x00{nonsen"])
def test_members_that_are_no_arrays_are_told(tmp_path: Path, content: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(BadInput, match="holds no named arrays"):
        arrays_of(tmp_path / "x.npz")


@pytest.mark.parametrize("shape", [(), (0,), (4, 0, 2), (3, 5)])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "float16", "int64", "U5"])
def test_arrays_of_every_kind_come_back(shape: tuple[int, ...], dtype: str) -> None:
    array = np.ones(shape, dtype)
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, one=array, two=array.T)
    file.seek(0)
    with open_npz(file) as held:
        assert np.array_equal(held["one"], array)
        assert held["two"].dtype == array.dtype


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        (np.ones((2, 1), np.float32), None),
        (np.array([[1, 0, 1], [0, 0, 1]], np.uint8), None),
        (np.ones((5, 3), np.float32), "weights float32"),
        (np.ones((1, 2, 3), np.float32), "weights float32"),
        (np.full((2, 3), "a"), "weights <U1"),
        (np.zeros((2, 3), np.float32), "no weight in y"),
        (np.full((2, 3), np.nan, np.float32), "negative or no numbers"),
        (np.full((2, 3), -1, np.float32), "negative or no numbers"),
    ],
)
def test_weights_of_golden_samples_fit_their_output_and_some_count(
    weights: NDArray[np.generic], problem: str | None
) -> None:
    group = dataclasses.replace(GROUP, weights={"y": weights})
    if problem is None:
        check_golden([group], SIGNATURE)
        return
    with pytest.raises(UsageError, match=problem):
        check_golden([group], SIGNATURE)
    with pytest.raises(BundleInvalid, match=problem):
        golden_from_bytes(golden_bytes([group]), SIGNATURE)


def with_member(content: bytes, *, flags: int = 0, method: int = zipfile.ZIP_STORED) -> bytes:
    """An npz of one array whose directory says something else of it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", content)
    data = bytearray(file.getvalue())
    for start, magic in ((6, b"PK\x03\x04"), (8, b"PK\x01\x02")):
        place = data.index(magic) + start
        data[place : place + 4] = struct.pack("<HH", flags, method)
    return bytes(data)


def saved(array: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    npy.write_array(file, array, allow_pickle=False)
    return file.getvalue()


def header(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


HOSTILE = {
    "encrypted": with_member(saved(np.ones(3)), flags=1),
    "compression 99": with_member(saved(np.ones(3)), method=99),
    "compression lzma": with_member(saved(np.ones(3)), method=zipfile.ZIP_LZMA),
    "10**30 by 0": with_member(header("(0, 1" + "0" * 30 + ",)")),
    "negative": with_member(header("(-1, -6)") + bytes(24)),
    "deep": with_member(header("(" * 300 + ")" * 300)),
    "fields": with_member(header("(1,)", "[('a', '<f4')]") + bytes(4)),
    "objects": with_member(header("(1,)", "'|O'") + bytes(8)),
    "bytes": with_member(saved(np.array([b"abc"]))),
    "complex": with_member(saved(np.ones(2, np.complex64))),
    "dates": with_member(saved(np.array(["2026-01-01"], "datetime64[D]"))),
    "cut": saved(np.ones(3)),
    "nothing": b"",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_whatever_is_wrong_with_a_file_is_one_error_everywhere(tmp_path: Path, what: str) -> None:
    data = HOSTILE[what]
    path = tmp_path / "x.npz"
    path.write_bytes(data)
    with pytest.raises(NpzError), open_npz(io.BytesIO(data)) as held:
        held["x"]
    with pytest.raises(BadInput):
        arrays_of(path)
    with pytest.raises(BadInput):
        from_file(data, SIGNATURE)
    with pytest.raises(BundleInvalid):
        golden_from_bytes(data, SIGNATURE)
    with pytest.raises(BundleInvalid):
        items_from_bytes(data)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_any_damaged_byte_of_a_file_is_read_or_one_error(method: int) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("x.npy", saved(np.arange(40, dtype=np.int64)))
    data, rng = file.getvalue(), np.random.default_rng(0)
    refused = 0
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        try:
            with open_npz(io.BytesIO(damaged)) as held:
                assert all(held[name].size <= 40 for name in held.files)
        except NpzError:
            refused += 1
    assert refused > len(data) // 2


def test_golden_samples_are_held_to_the_signature_before_their_data_are_read() -> None:
    """The data cannot be read, and what is said is that they do not fit."""
    data = bytearray(golden_bytes([dataclasses.replace(GROUP, inputs={"x": np.ones((2, 4), np.float32)})]))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        member = archive.getinfo("0.expected.0.npy")
    data[member.header_offset + 14] ^= 1  # its checksum
    with pytest.raises(BundleInvalid, match=r"x must be float32 \[batch, 3\]"):
        golden_from_bytes(bytes(data), SIGNATURE)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"expected": {"y": np.full((2, 3), np.nan, np.float32)}}, "6 answers of y that are no numbers"),
        ({"expected": {"y": np.full((2, 3), np.inf, np.float32)}}, None),
        ({"targets": {"labels": np.array(["left", "right"])}}, "targets are numbers"),
        ({"targets": {"labels": np.array([True, False])}}, None),
    ],
)
def test_answers_and_targets_are_numbers(change: dict[str, object], problem: str | None) -> None:
    group = dataclasses.replace(GROUP, **change)
    if problem is None:
        check_golden([group], SIGNATURE)
        assert golden_from_bytes(golden_bytes([group]), SIGNATURE)
        return
    with pytest.raises(UsageError, match=problem):
        check_golden([group], SIGNATURE)
    with pytest.raises(BundleInvalid, match=r"targets|no numbers"):
        golden_from_bytes(golden_bytes([group]), SIGNATURE)


def test_an_output_without_a_value_compares_nothing() -> None:
    empty = Signature(inputs=SIGNATURE.inputs, outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 0)),))
    group = dataclasses.replace(GROUP, expected={"y": np.ones((2, 0), np.float32)})
    with pytest.raises(UsageError, match="no value of the output 'y'"):
        check_golden([group], empty)
    boxes = TensorSpec(name="boxes", dtype="float32", shape=("found", 4), varies=True)
    both = Signature(inputs=SIGNATURE.inputs, outputs=(*SIGNATURE.outputs, boxes))
    none = {"boxes": np.ones((0, 4), np.float32)}
    check_golden([dataclasses.replace(GROUP, expected={**(GROUP.expected or {}), **none})], both)
    alone = Signature(inputs=SIGNATURE.inputs, outputs=(boxes,))
    with pytest.raises(UsageError, match="no value of the output 'boxes'"):
        check_golden([dataclasses.replace(GROUP, expected=none)], alone)


def test_weights_of_no_output_are_refused() -> None:
    group = dataclasses.replace(GROUP, weights={"z": np.ones((2, 3), np.float32)})
    with pytest.raises(UsageError, match="which is no output"):
        check_golden([group], SIGNATURE)
