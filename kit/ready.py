"""A ready `model.onnx` as a bundle in memory: what people have before they have exported anything. Needs ONNX Runtime alone.

bundle = find("model.onnx")           # or a folder, a packed file, a name: whatever kit.bundle.find takes
bundle.signature                      # as the graph has it, made good by running it
bundle.golden()                       # inputs that it accepts, and ONNX Runtime's answers with optimizations off

Labels, a task and accuracy are unknown, and nothing is written.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from kit import bundle as bundles
from kit.bundle import Bundle, graph_file
from kit.bundle.golden import golden_bytes
from kit.bundle.manifest import SCHEMA_VERSION, FileRef, Golden, Manifest, Needs, Provenance, Variant
from kit.bundle.read import digest
from kit.errors import BundleInvalid
from kit.runtime.base import RunnerOptions
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.samples import Samples
from kit.system import packages

SUFFIX = ".onnx"
VARIANT = "model"

_BYTES_UP_TO = 64 * 2**20  # larger files are opened by path, so that nothing but ONNX Runtime holds them


def find(name: str | os.PathLike[str] | None = None) -> Bundle:
    """Open a .onnx file, or what `kit.bundle.find` opens: a folder, a packed file, a bundle's name, or None.

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


@dataclass(frozen=True, repr=False)
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
        return self._model(variant, by_path=bool(variant.data) or variant.graph.size_bytes > _BYTES_UP_TO)

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
    from kit.runtime import probing, trial  # bundles say what they take

    seen = graph_file.look(path)
    refs = [ref_of(one) for one in (path, *graph_file.weights_beside(path))]
    model: bytes | Path = path if refs[0].size_bytes > _BYTES_UP_TO or len(refs) > 1 else path.read_bytes()
    trial.try_file(path, refs, "onnxruntime", signature=None)
    with OnnxRuntimeRunner(model, RunnerOptions(optimization="off")) as runner:
        found = probing.search(runner)
    variant = Variant(
        id=VARIANT,
        precision=seen.precision,
        format=seen.format,
        graph=refs[0],
        data=tuple(refs[1:]),
        needs=Needs(opset=seen.opset, ir_version=seen.ir_version, onnxruntime="", domains=seen.domains),
    )
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=_name(path.stem),
        signature=found.signature,
        golden=Golden(
            file=_in_memory(found.samples),
            samples=sum(found.signature.rows(group.inputs) for group in found.samples),
            source=found.samples[0].source if found.samples else "",
        ),
        tools={
            name: version
            for name in ("onnxruntime", "onnxruntime-gpu")
            if (version := packages.version(name)) is not None
        },
        original=Provenance(kind="onnx", name=path.name, sha256=refs[0].sha256),
        baseline=VARIANT,
        default=VARIANT,
        variants=(variant,),
    )
    return ReadyModel(path.parent, manifest, samples=found.samples, problem=found.problem)


def ref_of(path: Path) -> FileRef:
    """Return a file's name, hash and size; raises BundleInvalid if it cannot be read."""
    try:
        return FileRef(file=path.name, sha256=digest(path), size_bytes=path.stat().st_size)
    except OSError as error:
        raise BundleInvalid(f"{path} cannot be read: {error.strerror or error}") from error


def _in_memory(samples: tuple[Samples, ...]) -> FileRef:
    arrays = [array for group in samples for one in (group.inputs, group.expected or {}) for array in one.values()]
    digests = hashlib.sha256()
    for array in arrays:
        digests.update(array.tobytes())
    size_bytes = sum(array.nbytes for array in arrays)
    return FileRef(file="golden samples", sha256=digests.hexdigest(), size_bytes=size_bytes)


def _name(stem: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:100]
    return name or "model"
