"""Open bundle folders. Files are checked when they are read, not when the bundle is opened."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.bundle.contents import MANIFEST, SCHEMA_VERSION, GoldenSamples, Manifest, golden_from_bytes
from kit.bundle.records import FileRef, ModelSpec, Variant
from kit.choices import Precision, VariantFormat
from kit.errors import BundleInvalid, UsageError
from kit.system import serial

MANIFEST_MAX_BYTES = 16 * 2**20
ROOT = Path("artifacts")
PACKAGED = Path(__file__).parent.parent / "bundles"
"""Bundles that come with the installed package; nothing is written there."""

_NAMED = re.compile(r"(?P<name>.+)-(?P<digest>[0-9a-f]{8})(?: ?\(\d+\))?")  # browsers add " (1)" to a second download
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest. Files are checked when asked for, not when opened.

    Attributes:
        folder: Where its files lie.
        manifest: What it is.
        packed: The packed file it was opened from; None for a folder. `folder` is then a copy in the user's cache, which
            nothing is written into and nobody needs to hear of.
    """

    folder: Path
    manifest: Manifest
    packed: Path | None = None

    @property
    def name(self) -> str:
        """The folder's name, or the packed file's without its hash; the model's own is `spec.name`."""
        return name_of(self.packed) if self.packed else self.folder.resolve().name

    @property
    def origin(self) -> Path:
        """What it was opened from and is opened by again: the packed file, else the folder."""
        return self.packed or self.folder

    def beside(self, ending: str) -> Path:
        """Return the path of a file about this bundle that is no part of it, such as `NAME.bench.json`.

        It lies beside the folder or the packed file; of a bundle that came with kit, under `./artifacts`.
        """
        if self.is_shipped:
            return ROOT / f"{self.folder.name}{ending}"
        return self.origin.parent / f"{self.packed.stem if self.packed else self.folder.name}{ending}"

    @property
    def is_shipped(self) -> bool:
        """Whether it came with the installed package."""
        return self.folder.parent == PACKAGED

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
            raise UsageError(f"bundle {self.name!r} has no exported variant yet", hint=self._export_hint())
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
                f"bundle {self.name!r} lacks {ref.file}, which its manifest names", hint=self._restore_hint(ref)
            ) from error
        if size != ref.size_bytes:
            raise BundleInvalid(
                f"{path} has {size} bytes, its manifest says {ref.size_bytes}", hint=self._restore_hint(ref)
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
                hint=self._restore_hint(ref),
            )
        return data

    def golden(self) -> GoldenSamples:
        """Read the golden samples, checked.

        Raises:
            BundleInvalid: They are missing, altered, or do not fit the ModelSpec.
        """
        return golden_from_bytes(self.read(self.manifest.golden), self.spec)

    def _export_hint(self) -> str:
        return f"kit unpack {self.packed}, then: kit export {self.name}" if self.packed else f"kit export {self.name}"

    def _restore_hint(self, ref: FileRef) -> str:
        """Say how to mend its files; the copy of a packed bundle is checked and mended whenever it is opened."""
        if self.packed:
            return f"open {self.packed} again"
        variant = next((one for one in self.variants if one.artifact == ref), None)
        return _restore_hint(self.name, _flags(variant) if variant else "")


def open_folder(folder: Path) -> Bundle:
    """Read and check a bundle's manifest.

    Raises:
        BundleInvalid: It is corrupt, newer than this kit, or names files outside its folder.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MANIFEST_MAX_BYTES:
            raise BundleInvalid(f"{path} is too large for a manifest")
        data = path.read_bytes()
    except OSError as error:
        raise BundleInvalid(f"{path} cannot be read: {error.strerror or error}") from error
    return Bundle(folder, manifest_from_bytes(data, path, hint=_restore_hint(folder.name)))


def manifest_from_bytes(data: bytes, path: Path, *, hint: str) -> Manifest:
    """Read and check a manifest's JSON.

    Args:
        data: UTF-8.
        path: Where it stands, for messages.
        hint: What to do when it is corrupt.

    Raises:
        BundleInvalid: It is corrupt, newer than this kit, or names files outside its folder.
    """
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleInvalid(f"{path} is no JSON: {error}", hint=hint) from error
    manifest = _decode_manifest(plain, path, hint)
    _refuse_paths(manifest, path)
    return manifest


def _decode_manifest(data: Any, path: Path, hint: str) -> Manifest:
    found = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(found, int) and found > SCHEMA_VERSION:
        raise BundleInvalid(
            f"{path} has schema version {found}; this kit reads up to {SCHEMA_VERSION}", hint="install a newer kit"
        )
    try:
        return serial.decode(Manifest, data, path="manifest")
    except serial.DecodeError as error:
        raise BundleInvalid(f"{path} is no valid manifest: {error}", hint=hint) from error


def _refuse_paths(manifest: Manifest, path: Path) -> None:
    """Refuse a manifest that reaches out of its folder."""
    for ref in manifest.files():
        if not _PLAIN_NAME.fullmatch(ref.file):
            raise BundleInvalid(f"{path} names {ref.file!r}, which is not a plain file name")


def _restore_hint(name: str, flags: str = "") -> str:
    return f"copy the bundle again from where it came, or rebuild it: kit export {name}{flags}"


def _flags(variant: Variant) -> str:
    """Return what `kit export` is to be told to make a variant again, beyond the bundle's name."""
    if variant.precision is Precision.FP32:
        return ""
    said = f" --precision {variant.precision}"
    if variant.format in {VariantFormat.QOPERATOR, VariantFormat.PIXEL}:
        said += f" --format {variant.format}"
    if variant.format is VariantFormat.DYNAMIC:
        said += " --quantization dynamic"
    if variant.id.endswith(("-per-tensor", "-per-channel")):
        said += " --per-tensor" if variant.id.endswith("-per-tensor") else " --per-channel"
    return said


def name_of(packed: Path) -> str:
    """Return the name of the bundle in a packed file: `mnist-mlp` of `mnist-mlp-1a2b3c4d.kit`."""
    found = _NAMED.fullmatch(packed.stem)
    return found["name"] if found else packed.stem


def digest_of(packed: Path) -> str:
    """Return the beginning of the sha256 that a packed file's name carries; empty when it carries none."""
    found = _NAMED.fullmatch(packed.stem)
    return found["digest"] if found else ""
