"""The tasks there are: built in, or added by other packages through the entry point group `kit.tasks`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from kit.bundle import Bundle
from kit.bundle.manifest import TaskRef
from kit.errors import BundleInvalid, PackageMissing, UsageError
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
    added = sorted(entry.name for entry in metadata.entry_points(group=GROUP))
    return (*_BUILT_IN, *(name for name in added if name not in _BUILT_IN))


def find(name: str) -> type[Task]:
    """Return the class of a task, by its name with or without a version.

    Raises:
        PackageMissing: No installed package registers it.
    """
    base = name.partition("@")[0]
    if base in _BUILT_IN:
        module, _, attribute = _BUILT_IN[base].partition(":")
        built_in: type[Task] = getattr(importlib.import_module(module), attribute)
        return built_in
    entries = list(metadata.entry_points(group=GROUP, name=base))
    if not entries:
        raise PackageMissing(
            f"no installed package knows the task {name!r}",
            hint=f"install the package that registers it, or choose one of: {', '.join(names())}",
        )
    added: type[Task] = entries[0].load()
    return added


def open_task(ref: TaskRef, files: Mapping[str, Path], signature: Signature) -> Task:
    """Open the task that a manifest names.

    Raises:
        PackageMissing: No installed package registers it.
        BundleInvalid: Its options are not what this version takes, or the model does not fit it.
    """
    kind = find(ref.name)
    try:
        task = kind.open(ref.name, ref.options, files, signature)
        task.check(signature)
    except UsageError as error:
        raise BundleInvalid(f"the bundle does not fit its task {ref.name}: {error}", hint=error.hint) from error
    except (TypeError, ValueError, KeyError) as error:
        raise BundleInvalid(
            f"the task {ref.name} does not take these options: {error}", hint="the bundle may need a newer kit"
        ) from error
    return task


def task_of(bundle: Bundle) -> Task:
    """Open a bundle's task; plain tensors if it names none. Its files are checked.

    Raises:
        PackageMissing: No installed package registers it.
        BundleInvalid: Its options or files are not what this version takes.
    """
    ref = bundle.manifest.task or TaskRef(name=f"{PLAIN}@1")
    files = {role: bundle.check(one) for role, one in ref.files.items()}
    return open_task(ref, files, bundle.signature)
