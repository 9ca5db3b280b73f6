"""A bundle as a model repository of NVIDIA Triton: `NAME/config.pbtxt` and `NAME/VERSION/model.onnx`.

Source: Triton's documentation of model configuration, and the message ModelConfig of its client package, which the tests read
the text with. The labels and the way in of a bundle have no place there: clients send tensors.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from apps.serve.datatypes import DATATYPES
from kit.bundle import Bundle, Variant
from kit.choices import Provider
from kit.errors import StorageUnavailable, UsageError
from kit.runtime.base import joins
from kit.runtime.choice import Choice, choice_for
from kit.system import files
from kit.tensors import Signature, TensorSpec

CONFIG = "config.pbtxt"
MODEL = "model.onnx"
_MOST_BATCH = 64


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        folder: Of the model.
        version: Digits.
        variant: Of the bundle.
        remarks: What Triton will do otherwise than kit here.
    """

    folder: Path
    version: str
    variant: Variant
    remarks: tuple[str, ...]


def write(bundle: Bundle, repository: Path, *, provider: Provider = Provider.CPU) -> Written:
    """Write a bundle's default variant, or the one that `kit tune` chose here, as the next version of a Triton model.

    Args:
        bundle: Checked as its files are read.
        repository: Folder of models, made if there is none.
        provider: Where Triton is to run it.

    Raises:
        UsageError: A model of this name lies there that takes or gives something else.
        BundleInvalid: A file is missing or was altered.
        StorageUnavailable: The folder cannot be written.
    """
    choice = choice_for(bundle) if provider is Provider.CPU else None
    variant = bundle.variant(choice.variant if choice else None)
    text, remarks = config(bundle, variant, provider=provider, choice=choice)
    folder = repository / bundle.name
    try:
        present = (folder / CONFIG).read_text("utf-8") if folder.exists() else None
        if present is not None and present != text:
            raise UsageError(
                f"{folder} holds a model with another configuration", hint="remove it, or give another folder"
            )
        version = str(1 + max((int(one.name) for one in folder.glob("[1-9]*") if one.name.isdigit()), default=0))
        repository.mkdir(parents=True, exist_ok=True)
        staging = repository / files.partial_name()
        try:
            staging.mkdir()
            _fill(staging / version, bundle, variant)
            if present is None:
                (staging / CONFIG).write_text(text, "utf-8")
                staging.rename(folder)
            else:
                (staging / version).rename(folder / version)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise StorageUnavailable(f"{folder} cannot be written: {error.strerror or error}") from error
    return Written(folder, version, variant, remarks)


def _fill(folder: Path, bundle: Bundle, variant: Variant) -> None:
    folder.mkdir()
    shutil.copyfile(bundle.check(variant.graph, anew=True), folder / MODEL)
    for ref in variant.data:  # the graph names them
        shutil.copyfile(bundle.check(ref, anew=True), folder / ref.file)


def config(
    bundle: Bundle, variant: Variant, *, provider: Provider, choice: Choice | None
) -> tuple[str, tuple[str, ...]]:
    """Return the text of config.pbtxt, and remarks."""
    signature = bundle.signature
    remarks = []
    batches = has_leading_batch(signature)
    most = _most_batch(signature) if batches else 0
    if signature.batch is not None and not batches:
        remarks.append("its batch is not the first axis of every tensor: Triton will not batch requests")
    threads = choice.options.threads if choice else 1
    if choice is not None and choice.runtime != "onnxruntime":
        remarks.append(f"kit tune chose {choice.runtime} here; Triton runs it in ONNX Runtime")
    lines = [
        f"name: {_quoted(bundle.name)}",
        'backend: "onnxruntime"',
        f"default_model_filename: {_quoted(MODEL)}",
        f"max_batch_size: {most}",
        *(_tensor("input", spec, leading=batches) for spec in signature.inputs),
        *(_tensor("output", spec, leading=batches) for spec in signature.outputs),
        f"instance_group [ {{ count: 1 kind: {'KIND_CPU' if provider is Provider.CPU else 'KIND_GPU'} }} ]",
        *(["dynamic_batching { }"] if most > 1 else []),
        _parameters({"intra_op_thread_count": str(threads), "inter_op_thread_count": "1"}),
    ]
    if provider is Provider.TENSORRT:
        lines.append('optimization { execution_accelerators { gpu_execution_accelerator [ { name: "tensorrt" } ] } }')
    if variant.quantization is not None and variant.quantization.weight_bits == 8 and provider is Provider.CPU:
        remarks.append(
            "its weights have 8 bits: on x86 CPUs without VNNI ONNX Runtime needs session.x64quantprecision, which Triton has "
            "no setting for; export 7 bits for those"
        )
    return "\n".join(lines) + "\n", tuple(remarks)


def has_leading_batch(signature: Signature) -> bool:
    """Whether the batch is the first axis of every tensor, as Triton's batching asks for."""
    return (
        signature.batch is not None
        and joins(signature)
        and all(spec.shape[:1] == (signature.batch,) for spec in (*signature.inputs, *signature.outputs))
    )


def _most_batch(signature: Signature) -> int:
    assert signature.batch is not None  # has_leading_batch looked
    return min(signature.axes[signature.batch].most or _MOST_BATCH, _MOST_BATCH)


def _tensor(kind: str, spec: TensorSpec, *, leading: bool) -> str:
    shape = spec.shape[1:] if leading else spec.shape
    dims = ", ".join(str(size) if isinstance(size, int) else "-1" for size in shape)
    reshape = " reshape { shape: [ ] }" if not shape else ""  # Triton wants a dimension, and takes it away again
    typed = f"name: {_quoted(spec.name)} data_type: TYPE_{DATATYPES[spec.dtype]}"
    return f"{kind} [ {{ {typed} dims: [ {dims or '1'} ]{reshape} }} ]"


def _parameters(values: Mapping[str, str]) -> str:
    return "\n".join(
        f"parameters {{ key: {_quoted(name)} value {{ string_value: {_quoted(value)} }} }}"
        for name, value in values.items()
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
