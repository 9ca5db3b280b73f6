"""Where models come from: modules, programs, factories, ready .onnx files, Hugging Face folders, bundles.

    with contextlib.closing(open_source("model.onnx")) as original:
        original.answer({"x": array})
        original.write(folder)

Imports torch only for sources that need it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporters.sources.base import EXTERNAL_ABOVE_BYTES, Original
from kit.bundle.manifest import Provenance
from kit.errors import BadInput, BundleNotFound, UsageError
from kit.system import packages
from kit.tasks.base import Task
from kit.tensors import Axis, Signature

__all__ = ["EXTERNAL_ABOVE_BYTES", "Original", "open_source"]

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_PICKLES = frozenset({".pt", ".pth", ".bin", ".pkl", ".ckpt"})
_KINDS = "a .onnx or .pt2 file, a folder with config.json and safetensors, a bundle, or package.module:function"


def open_source(
    source: Any,
    *,
    name: str | None = None,
    signature: Signature | None = None,
    inputs: Any = None,
    task: Task | None = None,
    weights: Path | None = None,
    axes: Mapping[str, Axis] | None = None,
) -> Original:
    """Open whatever a model may come as.

    Args:
        source: A torch module, a program of torch.export, a bundle; or in words: the path of `model.onnx`, of `program.pt2`,
            of a folder from Hugging Face or of a bundle, or `package.module:function`.
        name: For the bundle; None: after the source.
        signature: What it takes and gives, for modules. With a task that does arithmetic on raw values, its input is either the
            raw one or the one of floats.
        inputs: Example inputs, by name or in order, for modules.
        task: Its task; None: what its files say, if they say anything.
        weights: A safetensors file, for factories.
        axes: Bounds and typical sizes of axes, by name.

    Raises:
        UsageError: It is nothing of the kind, or what goes with it does not fit.
        BadInput: It cannot be read, or not all of it is there.
        GateFailed: The model cannot run, or cannot become a graph.
    """
    prologue = task.prologue if task is not None else None
    if prologue is not None and signature is not None:
        from exporters.sources import raw

        signature = raw.inner(signature, prologue)
    opened = _open(source, name=name, signature=signature, inputs=inputs, task=task, weights=weights, axes=axes)
    if opened.task is None and task is not None:
        opened.task = task
    return _behind_prologue(opened)


def _behind_prologue(opened: Original) -> Original:
    prologue = opened.task.prologue if opened.task is not None else None
    if opened.task is None or prologue is None:
        return opened
    if any(spec.name == prologue.input and spec.dtype == "uint8" for spec in opened.signature.inputs):
        return opened
    from exporters.sources.raw import RawOriginal

    try:
        return RawOriginal(opened, prologue, opened.task)  # type: ignore[arg-type]  # all of this room have a graph
    except BaseException:
        opened.close()
        raise


def _open(
    source: Any,
    *,
    name: str | None,
    signature: Signature | None,
    inputs: Any,
    task: Task | None,
    weights: Path | None,
    axes: Mapping[str, Axis] | None,
) -> Original:
    from kit.bundle import Bundle

    is_factory = isinstance(source, str) and _FACTORY.fullmatch(source) is not None and not Path(source).exists()
    if weights is not None and not is_factory:
        raise UsageError("weights belong to a factory", hint="name the source as package.module:function")
    if is_factory:
        return _open_factory(source, name, signature, inputs, task, weights, axes)
    if isinstance(source, Bundle):
        from exporters.sources.bundled import open_bundle

        return open_bundle(source, name=name)
    if isinstance(source, (str, Path)):
        return _open_path(Path(source), name=name, signature=signature, task=task, axes=axes)
    return _open_object(source, name=name, signature=signature, inputs=inputs, task=task, axes=axes)


def _open_object(source: Any, **known: Any) -> Original:
    torch = _torch("a model that is no file")
    from exporters.sources import module, program

    if isinstance(source, torch.nn.Module):
        return module.open_module(source, **known)
    if isinstance(source, torch.export.ExportedProgram):
        del known["inputs"]
        return program.open_program(source, **known)
    raise UsageError(
        f"{type(source).__name__} is no model", hint=f"give a torch module, a program of torch.export, {_KINDS}"
    )


def _open_factory(
    source: str,
    name: str | None,
    signature: Signature | None,
    inputs: Any,
    task: Task | None,
    weights: Path | None,
    axes: Mapping[str, Axis] | None,
) -> Original:
    _torch("a factory")
    from exporters.sources import factory, module

    built = factory.build(source)
    if weights is not None:
        factory.load_weights(built.module, weights)
    return module.open_module(
        built.module,
        name=name or _bundle_name(source.rpartition(":")[2]),
        record=Provenance(kind="factory", name=source),
        inputs=built.inputs if inputs is None else inputs,
        signature=built.signature if signature is None else signature,
        task=task,
        axes=axes,
    )


def _open_path(
    path: Path, *, name: str | None, signature: Signature | None, task: Task | None, axes: Mapping[str, Axis] | None
) -> Original:
    if path.suffix.lower() == ".onnx" and not path.is_dir():
        from exporters.sources.onnx_file import OnnxOriginal

        return OnnxOriginal(path, name=name, task=task, axes=axes)
    if path.suffix.lower() == ".pt2":
        _torch("a .pt2 file")
        from exporters.sources.program import open_file

        return open_file(path, name=name, signature=signature, task=task, axes=axes)
    if path.suffix.lower() in _PICKLES:
        raise UsageError(
            f"{path.name} may hold code, which kit does not run",
            hint="save a program with torch.export.save(program, 'model.pt2'), or weights as safetensors with a factory",
        )
    if (path / "config.json").is_file() or (path / "modules.json").is_file():
        _torch("a folder from Hugging Face")
        packages.needed(
            "transformers", distribution="transformers", purpose="a folder from Hugging Face", extra="huggingface"
        )
        from exporters.sources.huggingface import open_folder

        return open_folder(path, name=name, task=task, axes=axes)
    return _open_bundle(path, name)


def _open_bundle(path: Path, name: str | None) -> Original:
    from exporters.sources.bundled import open_bundle
    from kit import bundle as bundles

    try:
        found = bundles.find(str(path))
    except BundleNotFound as error:
        if path.is_dir():
            raise BadInput(f"{path} is no folder of a model: it has no config.json", hint=f"give {_KINDS}") from error
        raise UsageError(f"there is no model {str(path)!r}", hint=f"give {_KINDS}") from error
    return open_bundle(found, name=name)


def _torch(what: str) -> Any:
    return packages.needed("torch", distribution="torch", purpose=what, extra="train")


def _bundle_name(text: str) -> str:
    from exporters.sources.names import bundle_name

    return bundle_name(text)
