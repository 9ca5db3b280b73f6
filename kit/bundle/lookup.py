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

    Without a name it is `mnist-mlp`, or the only bundle there is.

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
    raise BundleNotFound(f"there is no bundle {os.fspath(name)!r}", hint=known())


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
    """Open every bundle folder under `./artifacts` and what came with kit, by name; an unreadable one is its error."""
    found: dict[str, Bundle | BundleInvalid] = {}
    for name, folder in folders().items():
        try:
            found[name] = open_folder(folder)
        except BundleInvalid as error:
            found[name] = error
    return found


def folders() -> dict[str, Path]:
    """Return the folders of the bundles that `find` knows by name, none of them opened: of two the one that it takes."""
    found = {DEFAULT_NAME: _CLONE / DEFAULT_NAME} if (_CLONE / DEFAULT_NAME / MANIFEST).is_file() else {}
    for root in (PACKAGED, ROOT):
        here = (manifest.parent for manifest in root.glob(f"*/{MANIFEST}"))
        found |= {folder.name: folder for folder in here if not folder.name.startswith(files.PARTIAL)}
    return {name: found[name] for name in sorted(found)}


def packed_files() -> list[Path]:
    """Return the packed files under `./artifacts`, none of them opened."""
    return [path for path in sorted(ROOT.glob(f"*{packed.SUFFIX}")) if path.is_file()]


def came_with_kit(bundle: Bundle) -> bool:
    """Whether a bundle was installed with kit, or is the published one of a clone and was found from elsewhere."""
    return bundle.is_shipped or bundle.folder == _CLONE / DEFAULT_NAME


def scan_packed() -> dict[str, Packed | BundleInvalid]:
    """Read what every packed file under `./artifacts` holds, by file name, unpacking none."""
    found: dict[str, Packed | BundleInvalid] = {}
    for path in packed_files():
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
        hint=known(),
    )


def known() -> str:
    """Return which bundles there are, or how to make one: the hint for a name that is none of them."""
    here, packed_here = folders(), packed_files()
    if here or packed_here:
        own = packed_here or any(folder.parent == ROOT for folder in here.values())
        named = ", ".join([*here, *(path.name for path in packed_here)])
        return f"bundles here: {named}" + ("" if own else "; make one of your own: kit quickstart")
    return f"no bundles under ./{ROOT}; make one: kit quickstart, or: kit train"
