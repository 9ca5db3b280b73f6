"""A ready `model.onnx` as a bundle in memory: what people have before they have exported anything. Needs ONNX Runtime alone.

bundle = find("model.onnx")           # or a folder, a packed file, a name: whatever kit.bundle.find takes
bundle.signature                      # as the graph has it, made good by running it
bundle.golden()                       # inputs that it accepts, and ONNX Runtime's answers with optimizations off

Labels, a task and accuracy are unknown, and nothing is written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit import bundle as bundles
from kit.bundle import Bundle
from kit.bundle.golden import golden_bytes
from kit.bundle.manifest import SCHEMA_VERSION, FileRef, Golden, Manifest, Needs, Original, Variant
from kit.bundle.read import digest
from kit.errors import BundleInvalid, KitError, MemoryShort, PackageMissing
from kit.runtime import graph_file
from kit.runtime.base import RunnerOptions
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.samples import SEEDED, Samples, seeded
from kit.system import packages
from kit.tensors import Axis, Signature, Tensors, TensorSpec

SUFFIX = ".onnx"
VARIANT = "model"

_BYTES_UP_TO = 64 * 2**20  # larger files are opened by path, so that nothing but ONNX Runtime holds them
_GOLDEN_BYTES = 16 * 2**20
_MOST_ROWS = 8
_SIZES = (
    16,
    32,
    64,
    128,
    224,
    256,
    320,
    512,
    640,
    48,
    96,
    1024,
    1,
    2,
    3,
    4,
    8,
    100,
    160,
    80,
    299,
    384,
    2048,
    4096,
    16000,
)
_TOGETHER = (1, 2, 16, 64, 224, 512)
_MOST_TRIES = 600
_RATE = 16000


def find(name: str | os.PathLike[str] | None = None) -> Bundle:
    """Open a ready model, or whatever `kit.bundle.find` opens.

    Args:
        name: Path of a .onnx file, a folder or a packed file, or a bundle's name; None as for `kit.bundle.find`.

    Raises:
        BundleNotFound: There is no such bundle.
        BundleInvalid: It is no model that ONNX Runtime opens, or takes what kit does not run.
        PackageMissing: A ready model needs ONNX Runtime, which is not installed.
    """
    if name is not None and is_ready(name):
        return open_ready(Path(name))
    return bundles.find(name)


def is_ready(name: str | os.PathLike[str]) -> bool:
    """Whether it is the path of a .onnx file."""
    path = Path(name)
    return path.suffix.lower() == SUFFIX and path.is_file()


@dataclass(frozen=True)
class ReadyModel(Bundle):
    """A .onnx file as a bundle of one variant, in memory.

    Attributes:
        samples: The golden samples; empty if no inputs were found that it accepts.
        problem: What it said to the inputs that were tried; empty if some were accepted.
    """

    samples: tuple[Samples, ...] = ()
    problem: str = ""

    @property
    def source(self) -> Path:
        """The file."""
        return self.folder / self.variants[0].graph.file

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.manifest.name

    @property
    def origin(self) -> Path:
        """The file."""
        return self.source

    def beside(self, ending: str) -> Path:
        """Return the path of a file about this model, such as `model.bench.json`."""
        return self.folder / f"{self.source.stem}{ending}"

    def model(self, variant: Variant) -> bytes | Path:
        """Return the graph's bytes; or its path if it is large, or weights lie beside it."""
        if variant.graph.size_bytes <= _BYTES_UP_TO:
            return super().model(variant)
        for ref in variant.data:
            self.check(ref)
        return self.check(variant.graph)

    def check(self, ref: FileRef, *, anew: bool = False) -> Path:
        """Return the path of a file, checked; the golden samples lie in memory and stand for the model's own."""
        return self.source if ref == self.manifest.golden.file else super().check(ref, anew=anew)

    def path(self, ref: FileRef) -> Path:
        """Return the path of a file; the golden samples have none but the model's."""
        return self.source if ref == self.manifest.golden.file else super().path(ref)

    def read(self, ref: FileRef) -> bytes:
        """Return a file's bytes, checked."""
        return golden_bytes(self.golden()) if ref == self.manifest.golden.file else super().read(ref)

    def golden(self) -> tuple[Samples, ...]:
        """Return seeded samples with ONNX Runtime's own answers.

        Raises:
            BundleInvalid: No inputs were found that the model accepts.
        """
        if not self.samples:
            raise BundleInvalid(
                f"kit found no inputs that {self.source.name} accepts: {self.problem}",
                hint=f"give it inputs of your own: kit export {self.source} --samples inputs.npz",
            )
        return self.samples


def open_ready(path: Path) -> ReadyModel:
    """Open a .onnx file as a bundle.

    Raises:
        BundleInvalid: It is no model that ONNX Runtime opens, or takes what kit does not run, or its weights lie elsewhere.
        PackageMissing: ONNX Runtime is not installed.
    """
    seen = graph_file.look(path)
    refs = [_ref(one) for one in (path, *graph_file.weights_beside(path))]
    model: bytes | Path = path if refs[0].size_bytes > _BYTES_UP_TO or len(refs) > 1 else path.read_bytes()
    with OnnxRuntimeRunner(model, RunnerOptions(optimization="off")) as runner:
        found = _Search(runner).found()
    variant = Variant(
        id=VARIANT,
        precision=seen.precision,
        format=seen.format,
        graph=refs[0],
        data=tuple(refs[1:]),
        needs=Needs(opset=seen.opset, ir_version=seen.ir_version, onnxruntime="", domains=seen.domains),
    )
    golden = golden_bytes(found.samples) if found.samples else b""
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=_name(path.stem),
        signature=found.signature,
        golden=Golden(
            file=FileRef(file="golden.npz", sha256=hashlib.sha256(golden).hexdigest(), size_bytes=len(golden)),
            samples=sum(found.signature.rows(group.inputs) for group in found.samples),
            source=found.samples[0].source if found.samples else "",
        ),
        tools={
            name: version
            for name in ("onnxruntime", "onnxruntime-gpu")
            if (version := packages.version(name)) is not None
        },
        original=Original(kind="onnx", name=path.name, sha256=refs[0].sha256),
        baseline=VARIANT,
        default=VARIANT,
        variants=(variant,),
    )
    return ReadyModel(path.parent, manifest, samples=found.samples, problem=found.problem)


def _ref(path: Path) -> FileRef:
    try:
        return FileRef(file=path.name, sha256=digest(path), size_bytes=path.stat().st_size)
    except OSError as error:
        raise BundleInvalid(f"{path} cannot be read: {error.strerror or error}") from error


def _name(stem: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:100]
    return name or "model"


@dataclass(frozen=True)
class _Found:
    signature: Signature
    samples: tuple[Samples, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class _Run:
    """A call that went well."""

    sizes: dict[str, int]
    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[Any]]
    draw: str


class _Search:
    """Finds out by running what a graph does not tell: sizes and values that it accepts, and which axis is the batch."""

    def __init__(self, runner: OnnxRuntimeRunner) -> None:
        self._runner = runner
        self._signature = runner.signature
        self._tries = 0
        self._problem = ""

    def found(self) -> _Found:
        """Return the signature made good, and samples."""
        first = self._first()
        if first is None:
            return _Found(self._signature, problem=self._problem)
        runs = [first, *self._others(first)]
        signature = self._made_good(runs)
        return _Found(signature, tuple(self._golden(signature, runs)))

    def _first(self) -> _Run | None:
        """Return the first call that goes well, with other values if its answers are no finite numbers; None if none does."""
        for draw in _DRAWS:
            for sizes in _sizes(self._signature):
                run = self._run(sizes, draw)
                if run is not None:
                    return self._finite(run)
                if self._tries >= _MOST_TRIES:
                    return None
        return None

    def _finite(self, run: _Run) -> _Run:
        """Return a call of the same sizes that gives finite numbers, or the call itself."""
        others = (self._run(run.sizes, draw) for draw in _DRAWS if draw != run.draw)
        calls = itertools.chain((run,), others)
        return next((one for one in calls if one is not None and _is_finite(one.outputs)), run)

    def _run(self, sizes: dict[str, int], draw: str, *, seed: int = 0) -> _Run | None:
        self._tries += 1
        if self._signature.nbytes(sizes) > _BYTES_UP_TO:
            return None
        drawn = _drawn(self._signature, sizes, draw, seed)
        try:
            outputs = self._runner.run(drawn)
        except PackageMissing:
            raise
        except MemoryShort as error:
            self._problem = str(error)
            return None
        except KitError as error:
            self._problem = self._problem or str(error)
            return None
        return _Run(sizes, drawn, outputs, draw)

    def _others(self, first: _Run) -> Iterator[_Run]:
        """Give calls with one axis at another size, and one with other values."""
        for axis, size in first.sizes.items():
            for other in (size * 2, size + 1, max(size // 2, 1)):
                run = self._run({**first.sizes, axis: other}, first.draw) if other != size else None
                if run is not None:
                    yield run
                    break
        for draw, seed in ((first.draw, 1), ("zeros", 0)):
            run = self._run(first.sizes, draw, seed=seed)
            if run is not None:
                yield run

    def _made_good(self, runs: list[_Run]) -> Signature:
        signature = self._signature
        outputs = tuple(_observed(spec, signature, runs) for spec in signature.outputs)
        axes = {}
        for axis in signature.dynamic:
            sizes = tuple(dict.fromkeys(run.sizes[axis] for run in runs))
            axes[axis] = Axis(typical=sizes) if len(sizes) > 1 else Axis(least=sizes[0], most=sizes[0], typical=sizes)
        batch = signature.batch
        if batch is not None:
            if self._is_batch(batch, outputs, runs):
                axes[batch] = Axis(typical=(1,))
            else:
                batch = None
        return dataclasses.replace(signature, outputs=outputs, axes=axes, batch=batch)

    def _is_batch(self, batch: str, outputs: tuple[TensorSpec, ...], runs: list[_Run]) -> bool:
        """Whether every output has the axis, and two samples together are answered as each of them alone."""
        if any(batch not in spec.shape or spec.varies for spec in outputs):
            return False
        signature = dataclasses.replace(self._signature, outputs=outputs)
        both = self._run({**runs[0].sizes, batch: 2}, runs[0].draw)
        if both is None:
            return False
        for row in range(2):
            try:
                alone = self._runner.run(signature.take(both.inputs, slice(row, row + 1)))
            except KitError:
                return False
            together = signature.take(both.outputs, slice(row, row + 1))
            if not all(_is_close(together[name], alone[name]) for name in alone):
                return False
        return True

    def _golden(self, signature: Signature, runs: list[_Run]) -> Iterator[Samples]:
        """Give samples of two sizes at most; along a batch, as many rows as a few megabytes hold."""
        groups: dict[tuple[tuple[str, int], ...], _Run] = {}
        for run in runs:
            rest = tuple((axis, size) for axis, size in run.sizes.items() if axis != signature.batch)
            groups.setdefault(rest, run)
        for run in list(groups.values())[:2]:
            if signature.batch is not None:
                rows = min(_MOST_ROWS, signature.rows_within(_GOLDEN_BYTES, run.sizes))
                run = self._run({**run.sizes, signature.batch: rows}, run.draw) or run  # noqa: PLW2901
            yield Samples(inputs=run.inputs, expected=run.outputs, source=_DRAWS[run.draw])


_DRAWS = {
    "noise": SEEDED,
    "rates": f"{SEEDED}; single whole numbers are {_RATE}, as a sampling rate is",
    "unit": f"{SEEDED}; real numbers from 0 to 1",
    "ids": f"{SEEDED}; whole numbers are 0",
    "zeros": "zeros: no noise was accepted",
    "ones": "ones: neither noise nor zeros were accepted",
}
"""What is tried as inputs, in this order, and what the samples then say of themselves."""


def _drawn(signature: Signature, sizes: dict[str, int], draw: str, seed: int) -> dict[str, NDArray[Any]]:
    inputs = dict(seeded(signature, sizes=sizes, seed=seed).inputs)
    rng = np.random.default_rng(seed)
    for spec in signature.inputs:
        array = inputs[spec.name]
        if draw in {"zeros", "ones"}:
            array = np.full_like(array, draw == "ones")
        elif spec.is_float:
            array = rng.random(array.shape).astype(spec.dtype) if draw == "unit" else array
        elif spec.dtype != "bool" and draw == "ids":
            array = np.zeros_like(array)
        elif spec.dtype.endswith(("int32", "int64")) and array.size == 1 and draw == "rates":
            array = np.full_like(array, _RATE)
        inputs[spec.name] = array
    return inputs


def _sizes(signature: Signature) -> Iterator[dict[str, int]]:
    """Give sizes to try: two samples, then one; all other axes alike, then each for itself."""
    free = [axis for axis in signature.dynamic if axis != signature.batch]
    batch = [] if signature.batch is None else [signature.batch]
    if not free:
        yield from (dict.fromkeys(batch, rows) for rows in (2, 1)[: 1 + len(batch)] if batch or rows == 2)
        return
    for size in _SIZES:
        yield from ({**dict.fromkeys(free, size), **dict.fromkeys(batch, rows)} for rows in (2, 1))
    if len(free) + len(batch) > 1:
        for each in itertools.product(_TOGETHER, repeat=len(free) + len(batch)):
            yield dict(zip([*batch, *free], each, strict=True))


def _observed(spec: TensorSpec, signature: Signature, runs: list[_Run]) -> TensorSpec:
    """Return an output as the runs had it: axes that follow those of the inputs, and whether it varies with the values."""
    shapes = [(run.sizes, run.outputs[spec.name].shape) for run in runs]
    rank = len(shapes[0][1])
    dtype = str(runs[0].outputs[spec.name].dtype)
    if any(len(shape) != rank for _, shape in shapes):
        return dataclasses.replace(spec, varies=True)
    by_sizes: dict[tuple[tuple[str, int], ...], tuple[int, ...]] = {}
    varies = any(by_sizes.setdefault(tuple(sizes.items()), shape) != shape for sizes, shape in shapes)
    declared = spec.shape if len(spec.shape) == rank else (None,) * rank
    axes = []
    for place, said in enumerate(declared):
        seen = [(sizes, shape[place]) for sizes, shape in shapes]
        axes.append(_axis(said, seen, signature, own=f"{spec.name}_{place}"))
    return TensorSpec(name=spec.name, dtype=dtype, shape=tuple(axes), varies=varies)


def _axis(
    said: int | str | None, seen: list[tuple[dict[str, int], int]], signature: Signature, *, own: str
) -> int | str:
    """Return what a size of an output is: the axis of the inputs that it always equals, a number, or a name of its own."""

    def follows(axis: str) -> bool:
        return all(sizes[axis] == size for sizes, size in seen)

    if isinstance(said, int):
        return said
    if said in signature.dynamic and follows(said):
        return said
    moving = [axis for axis in signature.dynamic if len({sizes[axis] for sizes, _ in seen}) > 1 and follows(axis)]
    if moving:
        return moving[0]
    if said is None and len({size for _, size in seen}) == 1:
        return seen[0][1]
    return said if said is not None and said not in signature.dynamic else own


def _is_finite(outputs: Tensors) -> bool:
    return all(bool(np.isfinite(array).all()) for array in outputs.values() if array.dtype.kind == "f")


def _is_close(first: NDArray[Any], second: NDArray[Any]) -> bool:
    if first.shape != second.shape:
        return False
    if first.dtype.kind != "f":
        return bool(np.array_equal(first, second))
    scale = float(np.abs(second, dtype=np.float64).max(initial=0.0))
    return bool(np.allclose(first, second, rtol=1e-3, atol=1e-4 * max(scale, 1e-6), equal_nan=True))
