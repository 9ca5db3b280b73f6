"""Files of arrays that strangers made: damage is told in words, and a small file never asks for much memory."""

from __future__ import annotations

import dataclasses
import io
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
from kit.system.npz import open_npz
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


def test_weights_of_no_output_are_refused() -> None:
    group = dataclasses.replace(GROUP, weights={"z": np.ones((2, 3), np.float32)})
    with pytest.raises(UsageError, match="which is no output"):
        check_golden([group], SIGNATURE)
