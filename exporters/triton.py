"""A model repository for NVIDIA Triton Inference Server: the model with its hashes checked, and a config.pbtxt that says all.

done = write_repository(kit.find("mnist-mlp"), Path("models"))
done.folder                           # models/mnist-mlp: config.pbtxt, 1/model.onnx, and weights beside it
done.remarks                          # what Triton cannot be told

Triton's onnxruntime backend refuses an output whose dims are not, one by one, what ONNX Runtime reports of the graph, and
adds a batch axis only if every tensor of the graph begins with an axis that may differ. So the graph is opened here, and what
it says comes before the manifest. Needs ONNX Runtime; torch and onnx are not imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from exporters import model_folder
from kit.bundle import Bundle, Variant, with_fresh
from kit.bundle.manifest import FileRef, check_name
from kit.choices import CPU_FORMATS, Precision, Provider, VariantFormat
from kit.errors import BundleInvalid, UsageError
from kit.ready import ReadyModel
from kit.runtime import trial
from kit.runtime.base import RunnerOptions
from kit.runtime.choice import Choice, choice_for
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.tensors import DATATYPES, Axis, Signature, TensorSpec

RUNTIME = "onnxruntime"
MOST_ROWS = 64
"""Samples that Triton may join, unless more were measured, the batch axis allows fewer, or another number is asked for."""

VERSION, MODEL = "1", "model.onnx"

_ANY = -1


@dataclass(frozen=True, kw_only=True)
class TritonOptions:
    """What is written. If variant, provider and threads are all None, what `kit tune` chose on this machine is taken.

    Attributes:
        name: Of the model; None for the bundle's.
        variant: Id; None for the bundle's default.
        provider: None for the CPU.
        threads: Threads one operator may use; None for 1.
        max_batch_size: Samples Triton may join; None for MOST_ROWS, or as many as were measured.
    """

    name: str | None = None
    variant: str | None = None
    provider: Provider | None = None
    threads: int | None = None
    max_batch_size: int | None = None

    def __post_init__(self) -> None:
        """Refuse counts below one."""
        for name in ("threads", "max_batch_size"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise UsageError(f"{name} must be 1 or more, found {number}")

    @property
    def leaves_choice(self) -> bool:
        """Whether what was chosen on this machine may decide, as it does in `kit.load`."""
        return self.variant is None and self.provider is None and self.threads is None


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A model in a repository.

    Attributes:
        max_batch_size: 0: Triton adds no batch axis, and the dims of the config are whole shapes.
        is_new: Whether anything was written; False if all of it was there already.
        remarks: What Triton cannot be told, and what was not measured.
    """

    folder: Path
    variant: str
    max_batch_size: int
    is_new: bool
    remarks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Plan:
    variant: Variant
    provider: Provider
    options: RunnerOptions
    choice: Choice | None


def write_repository(bundle: Bundle, folder: Path, options: TritonOptions | None = None) -> Repository:
    """Write a bundle's model into a repository: `folder/NAME/config.pbtxt`, `folder/NAME/1/model.onnx`, weights beside it.

    The model's folder appears whole, under a name of its own first, and replaces one that was written here and not changed.

    Args:
        bundle: Or a ready model.
        folder: The repository; made if it is not there.
        options: What is written.

    Raises:
        UsageError: The folder holds something else, an option changes nothing, or Triton cannot serve such a model.
        BundleInvalid: A file is missing or was altered, or ONNX Runtime does not open it.
        StorageUnavailable: It cannot be written; nothing was.
    """
    asked = options or TritonOptions()
    return with_fresh(bundle, lambda now: _write(now, folder, asked))


def _write(bundle: Bundle, folder: Path, asked: TritonOptions) -> Repository:
    name = _name(asked.name or bundle.name)
    plan = _plan(bundle, asked)
    _refuse_slow(bundle, plan)
    graph = _graph(bundle, plan.variant)
    alone = _alone(bundle.signature, graph)
    rows = _rows(bundle, asked, plan, alone)
    parts = _files(plan.variant)
    body = "\n".join(_config(name, bundle.signature, graph, rows, plan)) + "\n"
    made_of = {"bundle": bundle.manifest.name, "variant": plan.variant.id}
    place = folder / name
    is_new = model_folder.write(bundle, place, body, parts, made_of)
    remarks = tuple(_remarks(plan, alone, may_join=_may_join(bundle.signature, rows)))
    return Repository(folder=place, variant=plan.variant.id, max_batch_size=rows, is_new=is_new, remarks=remarks)


def _name(name: str) -> str:
    try:
        return check_name(name)
    except ValueError as error:
        raise UsageError(str(error), hint="name the model: --name NAME") from error


def _plan(bundle: Bundle, asked: TritonOptions) -> _Plan:
    choice = choice_for(bundle) if asked.leaves_choice else None
    if choice is not None:
        options = choice.options
        return _Plan(variant=bundle.variant(choice.variant), provider=options.provider, options=options, choice=choice)
    provider = asked.provider or Provider.CPU
    options = RunnerOptions(provider=provider, threads=asked.threads or 1)
    return _Plan(variant=bundle.variant(asked.variant), provider=provider, options=options, choice=None)


def _refuse_slow(bundle: Bundle, plan: _Plan) -> None:
    if plan.provider is not Provider.CPU and plan.variant.format in CPU_FORMATS:
        fitting = [one.id for one in bundle.variants if one.format not in CPU_FORMATS]
        raise UsageError(
            f"{plan.variant.id} has operators that run on the CPU alone, whatever Triton is told",
            hint=f"choose one of: {', '.join(fitting)}" if fitting else "leave --provider out",
        )


def _graph(bundle: Bundle, variant: Variant) -> Signature:
    """Return what ONNX Runtime reports of the graph, in the order of the manifest."""
    trial.try_variant(bundle, variant, RUNTIME)
    with OnnxRuntimeRunner(bundle.model(variant), RunnerOptions(optimization="off")) as runner:
        found = runner.signature
    for kind, has, wanted in (
        ("input", found.inputs, bundle.signature.inputs),
        ("output", found.outputs, bundle.signature.outputs),
    ):
        if {(one.name, one.dtype) for one in has} != {(one.name, one.dtype) for one in wanted}:
            raise BundleInvalid(f"the graph of {variant.id} has other {kind}s than the manifest says")
    if isinstance(bundle, ReadyModel) and not all(spec.shape for spec in bundle.signature.outputs):
        bundle.golden()  # a single number, or axes that nobody has seen: only a run tells
    for spec in (*bundle.signature.inputs, *bundle.signature.outputs):
        _refuse_unservable(spec, _of(found, spec))
    return found


def _of(graph: Signature, spec: TensorSpec) -> TensorSpec:
    return next(one for one in (*graph.inputs, *graph.outputs) if (one.name, one.dtype) == (spec.name, spec.dtype))


def _refuse_unservable(spec: TensorSpec, found: TensorSpec) -> None:
    if len(found.shape) != len(spec.shape):
        raise UsageError(
            f"the graph does not say how many axes {spec.name} has, and Triton takes it for a single number",
            hint="write the shape into the model: onnx.shape_inference.infer_shapes, then save it again",
        )
    if 0 in (*found.shape, *spec.shape):
        raise UsageError(f"{spec.name} is {spec.describe()}: Triton takes no axis of size 0")


def _alone(signature: Signature, graph: Signature) -> str:
    """Return why Triton must not add a batch axis; empty if it may."""
    if signature.batch is None:
        return "the model has no batch axis"
    axis = signature.axes[signature.batch]
    if axis.least > 1 or axis.multiple_of > 1:
        return f"a batch has {axis.describe()} samples, and Triton joins any number"
    for spec in (*signature.inputs, *signature.outputs):
        if spec.shape[:1] != (signature.batch,) or signature.batch in spec.shape[1:]:
            return f"{spec.name} is {spec.describe()}, and the batch must be the first axis of every tensor"
        if isinstance(first := _of(graph, spec).shape[0], int):
            return f"the graph fixes the first size of {spec.name} at {first}"
    return ""


def _rows(bundle: Bundle, asked: TritonOptions, plan: _Plan, alone: str) -> int:
    if alone:
        if asked.max_batch_size is not None:
            raise UsageError(f"max_batch_size changes nothing for {bundle.name}: {alone}", hint="leave it out")
        return 0
    batch = str(bundle.signature.batch)
    axis: Axis = bundle.signature.axes[batch]
    if asked.max_batch_size is not None:
        if axis.most is not None and asked.max_batch_size > axis.most:
            raise UsageError(
                f"max_batch_size is {asked.max_batch_size:,}, and a batch of {bundle.name} has {axis.describe()} samples"
            )
        return asked.max_batch_size
    measured = plan.choice.sizes.get(batch, 1) if plan.choice else 1
    wanted = max(MOST_ROWS, measured)
    return wanted if axis.most is None else max(1, min(wanted, axis.most))


def _may_join(signature: Signature, rows: int) -> bool:
    """Whether requests may be joined: samples are independent, and no size of an answer depends on values."""
    return rows > 1 and not any(spec.varies for spec in signature.outputs)


def _config(name: str, signature: Signature, graph: Signature, rows: int, plan: _Plan) -> Iterator[str]:
    yield f"name: {_quoted(name)}"
    yield f'backend: "{RUNTIME}"'
    yield f'default_model_filename: "{MODEL}"'
    yield f"max_batch_size: {rows}"
    for spec in signature.inputs:  # of an input a graph's open axis may be narrowed, of an output never
        shape = [
            one if isinstance(one, int) else size for one, size in zip(_of(graph, spec).shape, spec.shape, strict=True)
        ]
        yield from _tensor("input", spec, shape, rows)
    for spec in signature.outputs:
        yield from _tensor("output", spec, list(_of(graph, spec).shape), rows)
    if _may_join(signature, rows):
        yield "dynamic_batching { }"
    kind = "KIND_CPU" if plan.provider is Provider.CPU else "KIND_GPU"
    yield f"instance_group [ {{ count: 1 kind: {kind} }} ]"
    if plan.provider is Provider.TENSORRT:
        yield 'optimization { execution_accelerators { gpu_execution_accelerator [ { name: "tensorrt" } ] } }'
    yield _parameter("intra_op_thread_count", plan.options.threads)
    if plan.options.arena is not None and _is_told(plan):
        yield _parameter("enable_mem_arena", int(plan.options.arena))


def _tensor(kind: str, spec: TensorSpec, shape: list[int | str], rows: int) -> Iterator[str]:
    dims = [one if isinstance(one, int) else _ANY for one in (shape[1:] if rows else shape)]
    yield f"{kind} ["
    yield f"  {{ name: {_quoted(spec.name)}"
    yield f"    data_type: TYPE_{DATATYPES[spec.dtype]}"
    yield f"    dims: [ {', '.join(map(str, dims or [1]))} ]"
    if rows and not dims:  # dims must not be empty: requests have [rows, 1], and the model sees [rows]
        yield "    reshape { shape: [ ] }"
    yield "  }"
    yield "]"


def _parameter(key: str, value: int) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def _quoted(text: str) -> str:
    """Return a string of protobuf's text format: printable ASCII as it is, all else as bytes in octal."""
    return '"' + "".join(_escaped(one) for one in text.encode()) + '"'


def _escaped(byte: int) -> str:
    plain = 0x20 <= byte < 0x7F and byte not in b'"\\'
    return chr(byte) if plain else f"\\{byte:03o}"


def _is_told(plan: _Plan) -> bool:
    return plan.choice is not None and plan.choice.runtime == RUNTIME


def _remarks(plan: _Plan, alone: str, *, may_join: bool) -> Iterator[str]:
    if plan.choice is not None:
        yield f"As kit tune chose here: {plan.choice.describe()}."
        if plan.choice.runtime != RUNTIME:
            yield (
                f"Triton runs it in its {RUNTIME} backend: that kit tune measured it in {plan.choice.runtime} says nothing "
                "about its speed there."
            )
        elif untold := _untold(plan.options):
            yield f"Triton's {RUNTIME} backend has no word for: {', '.join(untold)}."
    if alone:
        yield f"max_batch_size is 0: {alone}."
    elif not may_join:
        yield "Requests are not joined: there is room for one sample, or an answer's size depends on the values."
    if plan.provider is Provider.CPU and _may_saturate(plan.variant):
        yield (
            f"{plan.variant.id} has weights of 8 bits, which saturate on x86 CPUs without VNNI; kit asks ONNX Runtime to "
            "prevent that there, and Triton cannot. Variants of 7 bits do not."
        )


def _untold(options: RunnerOptions) -> list[str]:
    found = {
        "no spinning": not options.spinning,
        "no prepacking": not options.prepacking,
        f"optimization {options.optimization}": options.optimization != "all",
        "TF32": options.tf32,
        "CUDA graph": options.cuda_graph,
        "the limit of GPU memory": options.gpu_memory_limit_bytes is not None,
        f"GPU {options.device_id}": options.device_id != 0,
    }
    return [name for name, applies in found.items() if applies]


def _may_saturate(variant: Variant) -> bool:
    made = variant.quantization
    is_whole = variant.format not in {VariantFormat.WEIGHT_ONLY, VariantFormat.FLOAT}
    return variant.precision is Precision.INT8 and is_whole and made is not None and made.weight_bits > 7


def _files(variant: Variant) -> dict[str, FileRef]:
    parts = {f"{VERSION}/{MODEL}": variant.graph} | {f"{VERSION}/{ref.file}": ref for ref in variant.data}
    if len({part.casefold() for part in parts}) != 1 + len(variant.data):
        raise UsageError(
            f"the graph has weights in a file called {MODEL}, and Triton's graph has that name",
            hint="save the model again with its weights under another name",
        )
    return parts
