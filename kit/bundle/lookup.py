"""Find bundles: by path, under `./artifacts`, or inside the package; folders and packed files alike."""

from __future__ import annotations

import os
from pathlib import Path

from kit.bundle import packed
from kit.bundle.manifest import MANIFEST
from kit.bundle.packed import Packed
from kit.bundle.read import PACKAGED, ROOT, Bundle, open_folder
from kit.errors import BundleInvalid, BundleNotFound
from kit.system import files

DEFAULT_NAME = "mnist-mlp"
_CLONE = Path(__file__).parents[2] / ROOT
"""Of a clone that is used where it lies: the published bundle is found whatever the current folder."""


def find(name: str | os.PathLike[str] | None = None) -> Bundle:
    """Open a bundle by path, else `./artifacts/NAME`, else one shipped inside the package.

    Args:
        name: Path of a folder or a packed file, or name; None for `mnist-mlp`, or for the only bundle there is.

    Raises:
        BundleNotFound: There is no such bundle; the hint lists those there are.
        BundleInvalid: Its manifest is corrupt or newer than this kit, or a packed file is not safe to unpack.
        StorageUnavailable: A packed file can be unpacked nowhere.
    """
    if name is None:
        return _find_default()
    for place in _places(name):
        if _has_manifest(place):
            return open_folder(place)
        if packed.looks_packed(place):
            return packed.open_packed(place)
    if Path(name).is_file():
        raise BundleInvalid(f"{os.fspath(name)} is no packed bundle", hint="such files are written by kit pack")
    raise BundleNotFound(f"there is no bundle {os.fspath(name)!r}", hint=_found_hint())


def is_bundle(name: str) -> bool:
    """Whether `find(name)` would open something."""
    return any(_has_manifest(place) or packed.looks_packed(place) for place in _places(name))


def _places(name: str | os.PathLike[str]) -> tuple[Path, ...]:
    published = (_CLONE / name,) if os.fspath(name) == DEFAULT_NAME else ()
    return Path(name), ROOT / name, PACKAGED / name, *published


def _has_manifest(folder: Path) -> bool:
    try:
        return (folder / MANIFEST).is_file()
    except OSError as error:  # a folder that may not be entered, or a name too long for one
        raise BundleInvalid(f"{folder} cannot be read: {error.strerror or error}") from error


def scan() -> dict[str, Bundle | BundleInvalid]:
    """Open every bundle folder under `./artifacts` and inside the package, by name; an unreadable one is its error."""
    found: dict[str, Bundle | BundleInvalid] = {}
    for root in (PACKAGED, ROOT):
        for folder in sorted(manifest.parent for manifest in root.glob(f"*/{MANIFEST}")):
            if folder.name.startswith(files.PARTIAL):
                continue
            try:
                found[folder.name] = open_folder(folder)
            except BundleInvalid as error:
                found[folder.name] = error
    return {name: found[name] for name in sorted(found)}


def scan_packed() -> dict[str, Packed | BundleInvalid]:
    """Read what every packed file under `./artifacts` holds, by file name, unpacking none."""
    found: dict[str, Packed | BundleInvalid] = {}
    for path in sorted(ROOT.glob(f"*{packed.SUFFIX}")):
        if path.is_file():
            try:
                found[path.name] = packed.look(path)
            except BundleInvalid as error:
                found[path.name] = error
    return found


def available() -> tuple[Bundle, ...]:
    """Return the readable bundles of `scan`, by name."""
    return tuple(bundle for bundle in scan().values() if isinstance(bundle, Bundle))


def _find_default() -> Bundle:
    if is_bundle(DEFAULT_NAME):
        return find(DEFAULT_NAME)
    bundles = available()
    if len(bundles) == 1:
        return bundles[0]
    raise BundleNotFound(
        f"there is no bundle {DEFAULT_NAME!r}" + (" and more than one other: name it" if bundles else " here"),
        hint=_found_hint(),
    )


def _found_hint() -> str:
    names = [*scan(), *(path.name for path in sorted(ROOT.glob(f"*{packed.SUFFIX}")))]
    if names:
        return "bundles here: " + ", ".join(names)
    return f"no bundles under ./{ROOT}; make one: kit quickstart, or: kit train"
