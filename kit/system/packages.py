"""Which optional packages are installed, and the line that installs a missing one.

The requirements come from kit's own installed metadata, so a version range is written once, in pyproject.toml.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kit.errors import KitError, PackageMissing, Unavailable

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

DISTRIBUTION = "kit-deploy"


def version(distribution: str) -> str | None:
    """Return the installed version of `distribution`, or None when it is not installed."""
    from importlib import metadata  # slow to import, and opening a model needs nothing of it

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def requirement(distribution: str) -> str:
    """Return the requirement kit declares for `distribution`, such as `torch~=2.15.0`; else the bare name."""
    from importlib import metadata

    try:
        declared = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        declared = []
    for line in declared:
        wanted = line.split(";")[0].strip()
        if re.split(r"[^A-Za-z0-9_-]", wanted, maxsplit=1)[0].lower() == distribution:
            return wanted
    return distribution


def install_line(*distributions: str) -> str:
    """Return the shell line that installs `distributions` in the ranges kit declares."""
    return "pip install " + " ".join(f'"{requirement(name)}"' for name in distributions)


def needed(module: str, *, distribution: str, purpose: str, extra: str, beside: tuple[str, ...] = ()) -> ModuleType:
    """Import an optional module or say how to get it: `needed("sklearn", distribution="scikit-learn", ...)`.

    The message begins with `purpose`, as in "training needs torch"; packages `beside` it stand in the line that
    installs it; `extra` is kit's own that holds it.

    Raises:
        PackageMissing: The package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] != module.split(".", maxsplit=1)[0]:
            raise
        raise PackageMissing(
            f"{purpose} needs {distribution}, which is not installed",
            hint=f"{install_line(distribution, *beside)}   (it is part of kit's extra `{extra}`)",
        ) from error


def entry_points(group: str, name: str | None = None) -> list[EntryPoint]:
    """Return what installed packages register in a group, in a fixed order; under one name, if one is given."""
    from importlib import metadata

    found = metadata.entry_points(group=group) if name is None else metadata.entry_points(group=group, name=name)
    return sorted(found, key=lambda entry: (entry.name, entry.value))


def load_plug(entry: EntryPoint) -> Any:
    """Return what an installed package registers; raise Unavailable, which names the package, if it does not load."""
    with plugged(entry, "does not load"):
        return entry.load()


@contextlib.contextmanager
def plugged(entry: EntryPoint, problem: str = "failed") -> Iterator[None]:
    """Turn what a plug of another package raises into Unavailable with the package's name; kit's own errors stay.

    If it lacks one of kit's optional packages, that one is named, with the line that installs it.
    """
    try:
        yield
    except KitError:
        raise
    except Exception as error:  # a plug may raise anything
        if isinstance(error, ModuleNotFoundError) and "." not in (error.name or "") and (missing := explain(error)):
            raise missing from error  # one of kit's own optional packages
        package = entry.dist.name if entry.dist else entry.value
        raise Unavailable(
            f"the plug {entry.name!r} ({entry.group}) of the package {package} {problem}: "
            f"{type(error).__name__}: {error}",
            hint=f"mend or uninstall the package {package}",
        ) from error


def explain(error: ModuleNotFoundError) -> PackageMissing | None:
    """Turn a failed import of one of kit's optional packages into words; None when it is no package of kit's."""
    module = (error.name or "").split(".")[0]
    distribution = {"sklearn": "scikit-learn"}.get(module, module)
    if requirement(distribution) == distribution:
        return None
    return PackageMissing(
        f"this needs {distribution}, which is not installed",
        hint=f"{install_line(distribution)}   (training and exporting need all of kit's extra `train`)",
    )
