"""Which optional packages are installed, and the line that installs a missing one.

The requirements come from kit's own installed metadata, so a version range is written once, in pyproject.toml.
"""

from __future__ import annotations

import importlib
import re
from importlib import metadata
from types import ModuleType

from kit.errors import PackageMissing

DISTRIBUTION = "kit-deploy"


def version(distribution: str) -> str | None:
    """Return the installed version of `distribution`, or None when it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def requirement(distribution: str) -> str:
    """Return the requirement kit declares for `distribution`, such as `torch~=2.15.0`; else the bare name."""
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
    """Import an optional module or say how to get it.

    Args:
        module: Name to import, such as `torch`.
        distribution: Package that provides it, such as `scikit-learn`.
        purpose: What it is needed for, as in "training needs torch".
        extra: kit's extra that holds it.
        beside: Packages that are needed with it, for the line that installs it.

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
