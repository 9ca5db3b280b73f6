"""Golden samples and way-in items as files, and back. Touches no file itself."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit import samples
from kit.errors import BundleInvalid, UsageError
from kit.samples import Samples
from kit.system import plain_json
from kit.system.npz import NUMBERS, TEXT, Npz, NpzError, open_npz
from kit.tensors import Signature, Sizes, Tensors

MOST_BYTES = 2**30
"""Of all arrays in one file, unpacked: a small file must not become more than this in memory."""

_PARTS = ("inputs", "expected", "targets", "weights")
_META_MOST_BYTES = 2**28
# Of a description that is JSON and means something else; of the file itself, NpzError alone, which is a ValueError.
_UNREADABLE = (ValueError, KeyError, IndexError, TypeError, AttributeError)


@dataclass(frozen=True, kw_only=True, eq=False)
class Items:
    """The proof of the way in: raw items, and the tensors that each of them must become by itself.

    `raw` are plain JSON values that the task's `item` understands.
    """

    raw: list[Any]
    tensors: tuple[Tensors, ...]


def golden_bytes(groups: Sequence[Samples]) -> bytes:
    """Serialise golden samples as a compressed npz: a description in JSON, and arrays by their place in it."""
    described: list[dict[str, Any]] = []
    arrays: dict[str, NDArray[Any]] = {}
    for place, group in enumerate(groups):
        parts = {part: dict(getattr(group, part) or {}) for part in _PARTS}
        described.append({part: list(found) for part, found in parts.items()} | {"source": group.source})
        for part, found in parts.items():
            arrays |= {f"{place}.{part}.{number}": array for number, array in enumerate(found.values())}
    return _npz(json.dumps({"version": 1, "groups": described}, ensure_ascii=False), arrays)


def golden_from_bytes(data: bytes, signature: Signature) -> tuple[Samples, ...]:
    """Read golden samples, also those of earlier versions of kit.

    Raises:
        BundleInvalid: It is something else, or does not fit the signature.
    """
    try:
        with _arrays(data) as arrays:
            meta = _meta(arrays)["groups"] if "meta" in arrays.files else None
            for reads in (_Promised(arrays), arrays):  # what the headers say is proved before any data is read
                groups = (_first_version(reads, signature),) if meta is None else _groups(meta, reads)
                _check_shapes(groups, signature)
        check_golden(groups, signature)
    except UsageError as error:
        raise BundleInvalid(f"the golden samples do not fit the model: {error}") from error
    except _UNREADABLE as error:
        raise BundleInvalid(f"the file of golden samples holds none: {error}") from error
    return groups


def check_golden(groups: Sequence[Samples], signature: Signature) -> None:
    """Raise UsageError unless golden samples fit the signature, and every output has answers that are numbers."""
    _check_shapes(groups, signature)
    for group in groups:
        _check_weights(group.weights or {}, group.expected or {})
        _check_numbers(group)
    sizes = {spec: sum((group.expected or {})[spec.name].size for group in groups) for spec in signature.outputs}
    for spec, size in sizes.items():
        if size == 0 and not (spec.varies and any(sizes.values())):
            raise UsageError(
                f"golden samples have no value of the output {spec.name!r}: it would be compared with nothing"
            )


def _check_shapes(groups: Sequence[Samples], signature: Signature) -> None:
    """Raise UsageError unless dtypes and shapes fit the signature; no value is looked at."""
    samples.check(groups, signature, name="golden samples")
    for group in groups:
        _check_answers(group.expected or {}, signature.sizes(group.inputs), signature)
        for name, array in (group.targets or {}).items():
            if array.dtype.kind not in NUMBERS:
                raise UsageError(f"golden samples have the target {name} as {array.dtype}: targets are numbers")


def _check_numbers(group: Samples) -> None:
    """Refuse answers that are no numbers: nothing can be compared with them. Infinities are answers."""
    for name, array in (group.expected or {}).items():
        if array.dtype.kind != "f":
            continue
        wrong = int(np.isnan(array).sum())
        if wrong:
            raise UsageError(f"golden samples have {wrong:,} answers of {name} that are no numbers (NaN)")


def _check_answers(expected: Tensors, sizes: Sizes, signature: Signature) -> None:
    for spec in signature.outputs:
        if spec.name not in expected:
            raise UsageError(f"golden samples lack answers for the output {spec.name!r}")
        array = expected[spec.name]
        wanted = [sizes.get(size) if isinstance(size, str) else size for size in spec.shape]
        fits = len(wanted) == array.ndim and all(
            one in {None, size} for one, size in zip(wanted, array.shape, strict=True)
        )
        if not (fits or spec.varies) or str(array.dtype) != spec.dtype:
            raise UsageError(
                f"golden samples have {array.dtype} {list(array.shape)} for {spec.name}: {spec.describe()}"
            )


def _check_weights(weights: Tensors, expected: Tensors) -> None:
    for name, array in weights.items():
        if name not in expected:
            raise UsageError(f"golden samples have weights for {name!r}, which is no output")
        shape = expected[name].shape
        try:
            fits = np.broadcast_shapes(array.shape, shape) == shape
        except ValueError:
            fits = False
        if not fits or array.dtype.kind not in NUMBERS:
            raise UsageError(
                f"golden samples have the weights {array.dtype} {list(array.shape)} for {name}, an output of {list(shape)}",
                hint="weights are numbers, each axis as long as that of the output, or 1",
            )
        if not np.isfinite(array).all() or (array < 0).any():
            raise UsageError(f"golden samples have weights for {name} that are negative or no numbers")
        if expected[name].size and not array.any():
            raise UsageError(f"golden samples have no weight in {name}: none of its answers would count")


def items_bytes(items: Items) -> bytes:
    """Serialise way-in items as a compressed npz."""
    described: list[list[str]] = []
    arrays: dict[str, NDArray[Any]] = {}
    for place, tensors in enumerate(items.tensors):
        described.append(list(tensors))
        arrays |= {f"{place}.{number}": array for number, array in enumerate(tensors.values())}
    return _npz(json.dumps({"version": 1, "raw": items.raw, "tensors": described}, ensure_ascii=False), arrays)


def items_from_bytes(data: bytes) -> Items:
    """Read what `items_bytes` wrote.

    Raises:
        BundleInvalid: It is something else.
    """
    try:
        with _arrays(data) as arrays:
            meta = _meta(arrays)
            tensors = tuple(
                {name: arrays[f"{place}.{number}"] for number, name in enumerate(names)}
                for place, names in enumerate(meta["tensors"])
            )
            items = Items(raw=list(meta["raw"]), tensors=tensors)
    except _UNREADABLE as error:
        raise BundleInvalid(f"the file of way-in items holds none: {error}") from error
    if len(items.raw) != len(items.tensors):
        raise BundleInvalid(f"{len(items.raw)} way-in items have {len(items.tensors)} sets of tensors")
    return items


def _npz(meta: str, arrays: Mapping[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, meta=np.array(meta), **arrays)
    return buffer.getvalue()


class _Promised:
    """Arrays of the shapes and dtypes that headers promise, which take no memory: every value is the same one."""

    def __init__(self, held: Npz) -> None:
        self._headers = held.headers

    def __getitem__(self, name: str) -> NDArray[Any]:
        header = self._headers[name]
        return np.broadcast_to(np.zeros((), header.dtype), header.shape)


def _arrays(data: bytes) -> Npz:
    return open_npz(io.BytesIO(data), most_bytes=MOST_BYTES)


def _meta(arrays: Npz) -> Any:
    header = arrays.headers["meta"]
    if header.dtype.kind != TEXT or header.shape or header.nbytes > 4 * _META_MOST_BYTES:
        raise NpzError(f"its description is {header.dtype} {list(header.shape)}")
    # A row of a table may hold NaN for what is missing.
    meta = plain_json.read(str(arrays["meta"]), what="its description", most_bytes=_META_MOST_BYTES, finite=False)
    if meta["version"] != 1:
        raise ValueError(f"version {meta['version']} is newer than this kit")
    return meta


def _groups(meta: Any, arrays: Npz | _Promised) -> tuple[Samples, ...]:
    groups = []
    for place, described in enumerate(meta):
        parts = {
            part: {name: arrays[f"{place}.{part}.{number}"] for number, name in enumerate(described[part])}
            for part in _PARTS
        }
        groups.append(
            Samples(
                inputs=parts["inputs"],
                expected=parts["expected"] or None,
                targets=parts["targets"] or None,
                weights=parts["weights"] or None,
                source=str(described["source"]),
            )
        )
    return tuple(groups)


def _first_version(arrays: Npz | _Promised, signature: Signature) -> Samples:
    """Read the samples of a model with one input and one output, as manifests 1 and 2 have them."""
    labels = arrays["labels"]
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise UsageError(
            f"golden samples have the labels as {labels.dtype} {list(labels.shape)}: a class for each sample"
        )
    return Samples(
        inputs={signature.inputs[0].name: arrays["pixels"]},
        expected={signature.outputs[0].name: arrays["logits"]},
        targets={"labels": labels} if len(labels) and labels.max() >= 0 else None,
        source=str(arrays["source"]),
    )
