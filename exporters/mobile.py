"""What phones and their chips want of a model: one size, ONNX Runtime's own file format, and the operators of a small build.

    write_mobile(find("mnist-mlp"), Path("phone"))   # phone/mnist-mlp.ort, .onnx, .config and mobile.json

Both files are run here, on ONNX Runtime's CPU, and held to the bundle's golden samples before anything is written. What CoreML
and NNAPI would take of them is ONNX Runtime's own estimate by operator and shape: neither is run.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kit import __version__
from kit.bundle import Bundle, Variant
from kit.errors import BundleInvalid, Unavailable, UsageError, VerifyFailed
from kit.metrics import fidelity
from kit.ready import ReadyModel
from kit.runtime import registry
from kit.runtime.base import RunnerOptions
from kit.samples import Samples, nearest
from kit.system import files, packages, plain_json
from kit.tensors import Sizes
from kit.verify import judged

DESCRIPTION = "mobile.json"
_MOST_BYTES = 2**31 - 1  # of one file of protobuf
_MOST_SAMPLES = 64
_CONVERTER = "onnxruntime.tools.convert_onnx_models_to_ort"
_SECONDS = 600
_RESIZED = "golden samples of other sizes"


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What an execution provider of phones would take, as ONNX Runtime's tools estimate it.

    Attributes:
        provider: `CoreML (MLProgram)`, `CoreML (NeuralNetwork)` or `NNAPI`.
        nodes: That it would run.
        parts: Pieces of the graph that these make; more than one cost a way back and forth each.
        advice: `YES`, `MAYBE` or `NO`.
        lacking: Operators that it does not have.
    """

    provider: str
    nodes: int
    total: int
    parts: int
    advice: str
    lacking: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Mobile:
    """Files for a phone.

    Attributes:
        sizes: Of every axis that was open.
        files: By name, their bytes.
        samples: That were asked of both files.
    """

    folder: Path
    variant: str
    sizes: Sizes
    files: Mapping[str, int]
    samples: int
    coverage: tuple[Coverage, ...]


def write_mobile(bundle: Bundle, folder: Path, *, variant: str | None = None, sizes: Sizes | None = None) -> Mobile:
    """Write a variant at one size as ONNX and in ONNX Runtime's format, with the operators that a reduced build needs.

    The folder must not be there, or be empty. The batch is 1 and other axes are as usual where `sizes` does not say.

    Raises:
        UsageError: The folder holds something, or a size is none that the axis can have.
        BundleInvalid: A file is missing or was altered.
        Unavailable: The model is too large for one file, or ONNX Runtime cannot write it in its own format.
        VerifyFailed: A file does not answer as the bundle promises.
        StorageUnavailable: It cannot be written; nothing was.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} holds something already", hint="name another folder, or remove it")
    chosen = bundle.variant(variant)
    if chosen.size_bytes > _MOST_BYTES:
        raise Unavailable(f"{chosen.id} is larger than 2 GB, which is no model for a phone")
    point = _point(bundle, sizes or {})
    with files.folder(folder, what="a folder for a phone", needed_bytes=3 * chosen.size_bytes) as partial:
        made = _write(partial, bundle, chosen, point)
    sized = {one.name: one.stat().st_size for one in sorted(folder.iterdir())}
    return Mobile(folder=folder, variant=chosen.id, sizes=point, files=sized, **made)


def _point(bundle: Bundle, sizes: Sizes) -> dict[str, int]:
    signature = bundle.signature
    batch = signature.batch
    wanted = dict(sizes)
    if batch is not None and batch not in wanted:
        axis = signature.axes[batch]
        wanted[batch] = axis.usual if axis.problem(1) else 1
    return signature.usual_sizes(**wanted)


def _write(folder: Path, bundle: Bundle, variant: Variant, point: Sizes) -> dict[str, Any]:
    fixed = folder / f"{bundle.name}.onnx"
    _write_fixed(bundle, variant, point, fixed)
    _write_ort(fixed, folder)
    samples = _samples(bundle, variant, point)
    for path in (fixed, fixed.with_suffix(".ort")):
        _prove(bundle, variant, path, samples)
    coverage = _coverage(fixed)
    rows = len(samples)
    said = {
        "kit": __version__,
        "onnxruntime": packages.version("onnxruntime") or packages.version("onnxruntime-gpu"),
        "bundle": bundle.name,
        "variant": variant.id,
        "made_of_sha256": variant.graph.sha256,
        "sizes": point,
        "samples": rows,
        "coverage": [asdict(one) for one in coverage],
        "sha256": {one.name: files.sha256(one) for one in sorted(folder.iterdir())},
    }
    (folder / DESCRIPTION).write_text(plain_json.write(said, indent=2), encoding="utf-8")
    return {"samples": rows, "coverage": coverage}


def _write_fixed(bundle: Bundle, variant: Variant, point: Sizes, path: Path) -> None:
    import onnx
    from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed

    for ref in variant.files():
        bundle.check(ref)
    model = onnx.load(bundle.path(variant.graph))
    ends = (*model.graph.input, *model.graph.output)
    names = {dim.dim_param for value in ends for dim in value.type.tensor_type.shape.dim}
    for axis, size in point.items():
        if axis in names:
            make_dim_param_fixed(model.graph, axis, size)
    for value in model.graph.output:  # what is left depends on the values, or has a name of the exporter's own
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.Clear()
    onnx.save(onnx.shape_inference.infer_shapes(model, data_prop=True), path)


def _write_ort(fixed: Path, folder: Path) -> None:
    # The converter has a process of its own: it says on stdout what it does, and leaves files open.
    line = [sys.executable, "-P", "-m", _CONVERTER, str(fixed), "--output_dir", str(folder)]
    line += ["--optimization_style", "Fixed", "--enable_type_reduction", "--target_platform", "arm"]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"ONNX Runtime did not write its own format in {_SECONDS // 60} minutes") from error
    if done.returncode or not fixed.with_suffix(".ort").is_file():
        told = (done.stderr.strip().splitlines() or ["it does not say why"])[-1]
        raise Unavailable(f"ONNX Runtime cannot write it in its own format: {told}")


def _samples(bundle: Bundle, variant: Variant, point: Sizes) -> list[Samples]:
    """Return samples of the one size with the answers that are wanted: golden ones, or the variant's own to resized inputs."""
    signature = bundle.signature
    batch = signature.batch
    fitting: list[Samples] = []
    for group in bundle.golden():
        sizes = signature.sizes(group.inputs)
        if any(sizes[axis] != size for axis, size in point.items() if axis != batch):
            continue
        step = 1 if batch is None else point[batch]
        rows = signature.rows(group.inputs)
        starts = range(0, rows - step + 1, step) if batch is not None else (0,)
        fitting += [group.take(signature, slice(start, start + step)) if batch else group for start in starts]
    if fitting:
        return fitting if variant.quantization else fitting[:_MOST_SAMPLES]
    inputs = nearest(bundle.golden(), signature, point).resized(signature, point)
    with registry.open_runner(registry.DEFAULT, bundle, variant, RunnerOptions()) as runner:
        return [Samples(inputs=inputs, expected=runner.run(inputs), source=_RESIZED)]


def _prove(bundle: Bundle, variant: Variant, path: Path, samples: Sequence[Samples]) -> None:
    """Refuse a file whose answers are not what the bundle promises, or for other sizes, what the variant gives."""
    session = _opened(path)
    names = [one.name for one in session.get_outputs()]
    answers = [dict(zip(names, session.run(None, dict(one.inputs)), strict=True)) for one in samples]
    if isinstance(bundle, ReadyModel) or samples[0].source == _RESIZED:
        verdict = fidelity.judge_float(fidelity.compare(samples, answers), fidelity.HALF_RTOL)
    else:
        verdict = judged(bundle, variant, samples, answers)
    if not verdict.passed:
        raise VerifyFailed(
            f"{path.name} does not answer as {bundle.name} promises: {verdict.reason}",
            hint="choose another: --variant ID",
        )


def _opened(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises what it likes
        raise BundleInvalid(f"ONNX Runtime does not open {path.name}: {str(error).splitlines()[0]}") from error


def _coverage(fixed: Path) -> tuple[Coverage, ...]:
    import onnx
    from onnxruntime.tools.mobile_helpers import usability_checker

    checker: Any = usability_checker
    model = onnx.load(fixed)
    asked: dict[str, Callable[[], Any]] = {
        "CoreML (MLProgram)": lambda: checker.check_coreml_partitions(model, True, "coreml_supported_mlprogram_ops.md"),
        "CoreML (NeuralNetwork)": lambda: checker.check_coreml_partitions(
            model, True, "coreml_supported_neuralnetwork_ops.md"
        ),
        "NNAPI": lambda: checker.check_nnapi_partitions(model, True),
    }
    found = []
    for name, ask in asked.items():
        one = ask()
        found.append(
            Coverage(
                provider=name,
                nodes=one.num_supported_nodes,
                total=one.num_nodes,
                parts=one.num_partitions,
                advice=one.suitability().name,
                lacking=tuple(sorted(one.unsupported_ops)),
            )
        )
    return tuple(found)
