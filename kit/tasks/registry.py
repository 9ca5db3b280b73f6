"""The tasks there are: built in, or added by other packages through the entry point group `kit.tasks`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

from kit.bundle import Bundle
from kit.bundle.manifest import TaskRef
from kit.errors import BundleInvalid, KitError, PackageMissing, UsageError
from kit.system.packages import entry_points
from kit.tasks.base import Task
from kit.tensors import Signature

GROUP = "kit.tasks"
PLAIN = "tensors"

_BUILT_IN = {
    PLAIN: "kit.tasks.tensors:PlainTensors",
    "image-classification": "kit.tasks.image:ImageClassification",
    "text-classification": "kit.tasks.text:TextClassification",
    "text-embedding": "kit.tasks.text:TextEmbedding",
    "table": "kit.tasks.table:Table",
}


def names() -> tuple[str, ...]:
    """Return the tasks by name, the built-in ones first."""
    added = (entry.name for entry in entry_points(GROUP))
    return (*_BUILT_IN, *(name for name in added if name not in _BUILT_IN))


def find(name: str) -> type[Task]:
    """Return the class of a task, by its name with or without a version; raise PackageMissing if there is none."""
    base = name.partition("@")[0]
    if base in _BUILT_IN:
        module, _, attribute = _BUILT_IN[base].partition(":")
        built_in: type[Task] = getattr(importlib.import_module(module), attribute)
        return built_in
    entry = next(iter(entry_points(GROUP, base)), None)
    if entry is None:
        raise PackageMissing(
            f"no installed package knows the task {name!r}",
            hint=f"install the package that registers it, or choose one of: {', '.join(names())}",
        )
    try:
        added: type[Task] = entry.load()
    except Exception as error:  # the module of a plug may raise anything
        package = entry.dist.name if entry.dist else entry.value
        raise PackageMissing(
            f"the task {base!r} of the package {package} does not load: {type(error).__name__}: {error}",
            hint=f"pip install --force-reinstall {package}",
        ) from error
    return added


def _refuse_newer(name: str, kind: type[Task]) -> None:
    """Refuse a version of a built-in task that this kit does not have; plugs judge their own."""
    base, _, version = name.partition("@")
    if base in _BUILT_IN and version and name != kind.name:
        raise BundleInvalid(f"this kit knows {kind.name}, not {name}", hint="install a newer kit")


def open_task(ref: TaskRef, files: Mapping[str, Path], signature: Signature) -> Task:
    """Open the task that a manifest names.

    Raises:
        PackageMissing: No installed package registers it; the message names the package that did when the bundle was made.
        BundleInvalid: Its version or options are not what this kit takes, the model does not fit it, or its code fails.
    """
    try:
        kind = find(ref.name)
    except PackageMissing as error:
        if not ref.package or ref.package in str(error):
            raise
        raise PackageMissing(
            f"the task {ref.name!r} is that of the package {ref.package}, which is not installed",
            hint=f"pip install {ref.package}   (without it, tensors work: Engine.run)",
        ) from error
    _refuse_newer(ref.name, kind)
    try:
        task = kind.open(ref.name, ref.options, files, signature)
        task.check(signature)
    except UsageError as error:
        raise BundleInvalid(f"the bundle does not fit its task {ref.name}: {error}", hint=error.hint) from error
    except KitError:
        raise
    except (TypeError, ValueError, KeyError) as error:
        raise BundleInvalid(
            f"the task {ref.name} does not take these options: {error}", hint="the bundle may need a newer kit"
        ) from error
    except Exception as error:  # the code of a plug may raise anything
        of_package = f" of the package {ref.package}" if ref.package else ""
        raise BundleInvalid(
            f"the task {ref.name}{of_package} does not open: {type(error).__name__}: {error}",
            hint="without it, tensors work: Engine.run",
        ) from error
    return task


def task_of(bundle: Bundle) -> Task:
    """Open a bundle's task, its files checked; plain tensors if it names none. Raises what `open_task` does."""
    ref = bundle.manifest.task or TaskRef(name=f"{PLAIN}@1")
    files = {role: bundle.check(one) for role, one in ref.files.items()}
    return open_task(ref, files, bundle.signature)
