"""Find and open bundles. Files are checked when they are read, not when the bundle is opened."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit import serial
from kit.bundle.contents import MANIFEST, SCHEMA_VERSION, GoldenSamples, Manifest, golden_from_bytes
from kit.errors import BundleInvalid, BundleNotFound, UsageError
from kit.spec import FileRef, ModelSpec, Variant

ROOT = Path("artifacts")
PACKAGED = Path(__file__).parent.parent / "bundles"
DEFAULT_NAME = "mnist-mlp"

_MANIFEST_MAX_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest. Files are checked when asked for, not when opened."""

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """The folder's name, which finds the bundle again; the model's own is `spec.name`."""
        return self.folder.resolve().name

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        return self.manifest.spec

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The ONNX files, in the order they were first published."""
        return self.manifest.variants

    def variant(self, variant_id: str | None = None) -> Variant:
        """Return a variant by id, or the default one.

        Raises:
            UsageError: The bundle has no such variant, or none at all.
        """
        wanted = variant_id or self.manifest.default_variant
        for variant in self.variants:
            if variant.id == wanted:
                return variant
        if not self.variants:
            raise UsageError(f"bundle {self.name!r} has no exported variant yet", hint=f"kit export {self.name}")
        known = ", ".join(variant.id for variant in self.variants)
        raise UsageError(f"bundle {self.name!r} has no variant {wanted!r}", hint=f"choose one of: {known}")

    def path(self, ref: FileRef) -> Path:
        """Return the path of a file of this bundle.

        Raises:
            BundleInvalid: The file is not there, or its size is wrong.
        """
        path = self.folder / ref.file
        try:
            size = path.stat().st_size
        except OSError as error:
            raise BundleInvalid(
                f"bundle {self.name!r} lacks {ref.file}, which its manifest names", hint=_restore_hint(self.name)
            ) from error
        if size != ref.size_bytes:
            raise BundleInvalid(
                f"{path} has {size} bytes, its manifest says {ref.size_bytes}", hint=_restore_hint(self.name)
            )
        return path

    def read(self, ref: FileRef) -> bytes:
        """Return a file's bytes after checking their sha256.

        Raises:
            BundleInvalid: The file is missing or was altered.
        """
        path = self.path(ref)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BundleInvalid(f"{path} cannot be read: {error.strerror or error}") from error
        found = hashlib.sha256(data).hexdigest()
        if found != ref.sha256:
            raise BundleInvalid(
                f"{self.folder / ref.file} was altered: sha256 {found[:12]}…, its manifest says {ref.sha256[:12]}…",
                hint=_restore_hint(self.name),
            )
        return data

    def golden(self) -> GoldenSamples:
        """Read the golden samples, checked.

        Raises:
            BundleInvalid: They are missing, altered, or do not fit the ModelSpec.
        """
        return golden_from_bytes(self.read(self.manifest.golden), self.spec)


def find(name: str | os.PathLike[str] | None = None) -> Bundle:
    """Open a bundle by path, else `./artifacts/NAME`, else one shipped inside the package.

    Args:
        name: Path or name; None for `mnist-mlp`, or for the only bundle there is.

    Raises:
        BundleNotFound: There is no such bundle; the hint lists those there are.
        BundleInvalid: Its manifest is corrupt or newer than this kit.
    """
    if name is None:
        return _find_default()
    for folder in (Path(name), ROOT / name, PACKAGED / name):
        if _has_manifest(folder):
            return open_folder(folder)
    raise BundleNotFound(f"there is no bundle {os.fspath(name)!r}", hint=_found_hint())


def is_bundle(name: str) -> bool:
    """Whether `find(name)` would open something."""
    return any(_has_manifest(folder) for folder in (Path(name), ROOT / name, PACKAGED / name))


def _has_manifest(folder: Path) -> bool:
    try:
        return (folder / MANIFEST).is_file()
    except OSError as error:  # a folder that may not be entered, or a name too long for one
        raise BundleInvalid(f"{folder} cannot be read: {error.strerror or error}") from error


def scan() -> dict[str, Bundle | BundleInvalid]:
    """Open every bundle under `./artifacts` and inside the package, by name; an unreadable one is its error."""
    found: dict[str, Bundle | BundleInvalid] = {}
    for root in (PACKAGED, ROOT):
        for manifest in sorted(root.glob(f"*/{MANIFEST}")):
            try:
                found[manifest.parent.name] = open_folder(manifest.parent)
            except BundleInvalid as error:
                found[manifest.parent.name] = error
    return {name: found[name] for name in sorted(found)}


def available() -> tuple[Bundle, ...]:
    """Return the readable bundles of `scan`, by name."""
    return tuple(bundle for bundle in scan().values() if isinstance(bundle, Bundle))


def open_folder(folder: Path) -> Bundle:
    """Read and check a bundle's manifest.

    Raises:
        BundleInvalid: It is corrupt, newer than this kit, or names files outside its folder.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _MANIFEST_MAX_BYTES:
            raise BundleInvalid(f"{path} is too large for a manifest")
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise BundleInvalid(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise BundleInvalid(f"{path} is no JSON: {error}", hint=_restore_hint(folder.name)) from error
    manifest = _decode_manifest(data, path)
    _refuse_paths(manifest, path)
    return Bundle(folder, manifest)


def _decode_manifest(data: Any, path: Path) -> Manifest:
    found = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(found, int) and found > SCHEMA_VERSION:
        raise BundleInvalid(
            f"{path} has schema version {found}; this kit reads up to {SCHEMA_VERSION}", hint="install a newer kit"
        )
    try:
        return serial.decode(Manifest, data, path="manifest")
    except serial.DecodeError as error:
        raise BundleInvalid(f"{path} is no valid manifest: {error}", hint=_restore_hint(path.parent.name)) from error


def _refuse_paths(manifest: Manifest, path: Path) -> None:
    """Refuse a manifest that reaches out of its folder."""
    for ref in manifest.files():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", ref.file):
            raise BundleInvalid(f"{path} names {ref.file!r}, which is not a plain file name")


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
    names = list(scan())
    if names:
        return "bundles here: " + ", ".join(names)
    return f"no bundles under ./{ROOT}; make one: kit quickstart, or: kit train"


def _restore_hint(name: str) -> str:
    return f"copy the bundle again from where it came, or rebuild it: kit export {name}"
