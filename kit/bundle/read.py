"""Open bundle folders. Files are checked when they are read, not when the bundle is opened."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, TypeVar

import platformdirs

from kit.bundle import graph_file
from kit.bundle.golden import Items, golden_from_bytes, items_from_bytes
from kit.bundle.manifest import MANIFEST, SCHEMA_VERSION, FileRef, Manifest, Variant
from kit.bundle.migrations import Migrated, migrated
from kit.choices import Precision, VariantFormat
from kit.errors import BundleInvalid, UsageError
from kit.samples import Samples
from kit.system import files, html, plain_json, serial
from kit.tensors import Signature

MANIFEST_MAX_BYTES = 16 * 2**20
ROOT = Path("artifacts")
PACKAGED = Path(__file__).parent.parent / "bundles"
"""Bundles that come with the installed package; nothing is written there."""

STAMPED_ABOVE_BYTES = 64 * 2**20
"""Files above this are hashed once, and again when their size, time or inode has changed."""

_NAMED = re.compile(r"(?P<name>.+)-(?P<digest>[0-9a-f]{8})(?: ?\(\d+\))?")  # browsers add " (1)" to a second download
_WORD = re.compile(r"[\w.@+-]{1,100}")
_LONGEST = 500
_TRIES = 4
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, repr=False)
class Bundle:
    """An opened bundle: its folder and its manifest. Files are checked when asked for, not when opened.

    Attributes:
        packed: The packed file it was opened from; None for a folder. `folder` is then a read-only copy in the cache.
        inline: Attachments by role that an earlier manifest holds itself; they become files when it is written again.
    """

    folder: Path
    manifest: Manifest
    packed: Path | None = None
    inline: Mapping[str, bytes] = field(default_factory=dict)

    def __repr__(self) -> str:
        ids = ", ".join(one.id for one in self.variants) or "no variants yet"
        return f"<{type(self).__name__} {self.name}: {self.signature.describe()}; {ids}; {self.origin}>"

    def _repr_html_(self) -> str:
        rows = [("takes", f"{spec.name}: {spec.describe()}") for spec in self.signature.inputs]
        rows += [("gives", f"{spec.name}: {spec.describe()}") for spec in self.signature.outputs]
        rows.append(("task", self.manifest.task.name if self.manifest.task else "tensors"))
        for variant in self.variants:
            default = " (default)" if variant.id == self.manifest.default else ""
            rows.append((f"{variant.id}{default}", f"{variant.size_bytes / 1e6:,.2f} MB"))
        return html.table(f"Bundle {self.name} ({self.origin})", rows)

    @property
    def name(self) -> str:
        """The folder's name, or the packed file's without its hash; the model's own is `manifest.name`."""
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
    def signature(self) -> Signature:
        """What the model takes and gives."""
        return self.manifest.signature

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The forms of the model, in the order they were first published."""
        return self.manifest.variants

    @property
    def baseline(self) -> Variant | None:
        """The variant that others are compared with; None if there is none yet."""
        return next((one for one in self.variants if one.id == self.manifest.baseline), None)

    def variant(self, variant_id: str | None = None) -> Variant:
        """Return a variant by id, or the default one.

        Raises:
            UsageError: The bundle has no such variant, or none at all.
        """
        wanted = variant_id or self.manifest.default
        for variant in self.variants:
            if variant.id == wanted:
                return variant
        if not self.variants:
            raise UsageError(f"bundle {self.name!r} has no exported variant yet", hint=self._export_hint())
        known = ", ".join(variant.id for variant in self.variants)
        raise UsageError(f"bundle {self.name!r} has no variant {wanted!r}", hint=f"choose one of: {known}")

    def model(self, variant: Variant) -> bytes | Path:
        """Return what a runtime opens: the graph's bytes, or its path if weights lie beside it. All is checked.

        Raises:
            BundleInvalid: A file is missing or was altered, or the graph has weights in files that the manifest does not name.
        """
        return self._model(variant, by_path=bool(variant.data))

    def _model(self, variant: Variant, *, by_path: bool) -> bytes | Path:
        """Return a variant's graph, checked, and that all its weights are: a runtime reads whatever file the graph names."""
        model = self.check(variant.graph) if by_path else self.read(variant.graph)
        used, named = set(graph_file.external_of(model)), {ref.file for ref in variant.data}
        if used != named:
            one = min(used ^ named)
            said = (
                "the graph has weights in, and the manifest does not name" if one in used else "the graph does not use"
            )
            raise BundleInvalid(
                f"variant {variant.id!r} of {self.name!r}: {said} {one!r}", hint=self._restore_hint(variant.graph)
            )
        for ref in variant.data:
            graph_file.refuse_link(self.check(ref))
        return model

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

    def check(self, ref: FileRef, *, anew: bool = False) -> Path:
        """Return the path of a file after checking its sha256; `anew` hashes a large file that did not change as well.

        Raises:
            BundleInvalid: The file is missing or was altered.
        """
        path = self.path(ref)
        try:
            found = digest(path, anew=anew)
        except OSError as error:
            raise BundleInvalid(f"{path} cannot be read: {error.strerror or error}") from error
        self._refuse_other(ref, found)
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
        self._refuse_other(ref, hashlib.sha256(data).hexdigest())
        return data

    def copy(self, ref: FileRef, target: Path) -> None:
        """Copy a file into a folder that is made if need be; what was copied is hashed, so that no change goes unseen.

        Raises:
            BundleInvalid: The file is missing or was altered.
            OSError: It cannot be written.
        """
        source = self.path(ref)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        self._refuse_other(ref, files.sha256(target))
        with target.open("r+b") as file:
            os.fsync(file.fileno())

    def golden(self) -> tuple[Samples, ...]:
        """Read the golden samples, checked: groups of one size, each with the original's answers.

        Raises:
            BundleInvalid: They are missing, altered, or do not fit the signature.
        """
        return golden_from_bytes(self.read(self.manifest.golden.file), self.signature)

    def items(self) -> Items | None:
        """Read the raw items and the tensors they must become, checked; None if there are none.

        Raises:
            BundleInvalid: They are missing or altered.
        """
        ref = self.manifest.golden.items
        return None if ref is None else items_from_bytes(self.read(ref))

    def attachment(self, role: str) -> bytes | None:
        """Return a file that goes with the bundle, such as `card`, checked; None if there is none.

        Raises:
            BundleInvalid: It is missing or was altered.
        """
        if role in self.inline:
            return self.inline[role]
        ref = self.manifest.attachments.get(role)
        return None if ref is None else self.read(ref)

    def _refuse_other(self, ref: FileRef, digest: str) -> None:
        if digest != ref.sha256:
            raise BundleInvalid(
                f"{self.folder / ref.file} was altered: sha256 {digest[:12]}…, its manifest says {ref.sha256[:12]}…",
                hint=self._restore_hint(ref),
            )

    def _export_hint(self) -> str:
        return f"kit unpack {self.packed}, then: kit export {self.name}" if self.packed else f"kit export {self.name}"

    def _restore_hint(self, ref: FileRef) -> str:
        """Say how to mend its files; the copy of a packed bundle is checked and mended whenever it is opened."""
        if self.packed:
            return f"open {self.packed} again"
        variant = next((one for one in self.variants if ref in one.files()), None)
        return _restore_hint(self.name, _flags(variant) if variant else "")


T = TypeVar("T")


def with_fresh(bundle: Bundle, use: Callable[[Bundle], T]) -> T:
    """Use a bundle; if that fails because another process published into it meanwhile, again as it is now.

    A file that no manifest names any more is collected, so that a reader who opened the folder before finds it gone.

    Raises:
        BundleInvalid: It fails, and the manifest is as it was; or it fails again and again.
    """
    for _ in range(_TRIES):
        try:
            return use(bundle)
        except BundleInvalid:
            now = renewed(bundle)
            if now is None:
                raise
        bundle = now
    return use(bundle)


def renewed(bundle: Bundle) -> Bundle | None:
    """Return a bundle's folder opened again if files are gone and its manifest has changed; None else.

    Packed bundles, those that came with kit and ready models are never published into.
    """
    if type(bundle) is not Bundle or bundle.packed is not None or bundle.is_shipped:
        return None
    if all((bundle.folder / ref.file).exists() for ref in bundle.manifest.files()):
        return None
    try:
        now = open_folder(bundle.folder)
    except BundleInvalid:
        return None
    return None if now.manifest == bundle.manifest else now


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
    manifest, inline = manifest_from_bytes(data, path, hint=_restore_hint(folder.name))
    return Bundle(folder, manifest, inline=inline)


def manifest_from_bytes(data: bytes, path: Path, *, hint: str) -> tuple[Manifest, dict[str, bytes]]:
    """Read and check a manifest's JSON, of this version or an earlier one, and the attachments that one holds itself.

    `path` names it in messages; `hint` is what to do when it is corrupt.

    Raises:
        BundleInvalid: It is corrupt, newer than this kit, or names files outside its folder.
    """
    try:
        plain = plain_json.read(data, what=str(path), most_bytes=MANIFEST_MAX_BYTES)
    except plain_json.PlainJsonError as error:
        raise BundleInvalid(str(error), hint=hint) from error
    version = plain.get("schema_version") if isinstance(plain, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BundleInvalid(
            f"{path} has schema version {version}; this kit reads up to {SCHEMA_VERSION}", hint="install a newer kit"
        )
    try:
        newest = _migrated(plain)
        manifest: Manifest = serial.decode(Manifest, newest.data, path="manifest")
    except serial.DecodeError as error:
        raise BundleInvalid(f"{path} is no valid manifest: {error}", hint=hint) from error
    _refuse_paths(manifest, path)
    _refuse_words(manifest, path)
    return manifest, newest.attachments


def _migrated(plain: Any) -> Migrated:
    if not isinstance(plain, dict):
        raise serial.DecodeError(f"manifest: expected an object, found {type(plain).__name__}")
    if not isinstance(plain.get("schema_version"), int):
        raise serial.DecodeError("manifest: the field 'schema_version' is missing")
    try:
        return migrated(plain)
    except KeyError as error:
        raise serial.DecodeError(f"manifest: the field {error} is missing") from error
    except (TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise serial.DecodeError(f"manifest: {error}") from error


def _refuse_paths(manifest: Manifest, path: Path) -> None:
    named: dict[str, FileRef] = {}
    for ref in manifest.files():
        if not _PLAIN_NAME.fullmatch(ref.file) or ref.file.casefold() == MANIFEST:
            raise BundleInvalid(f"{path} names {ref.file!r}, which is not a plain file name")
        if not PurePath(ref.file).stem.endswith(f"-{ref.sha256[:8]}"):
            raise BundleInvalid(
                f"{path} names {ref.file}, which must carry the beginning of its sha256: -{ref.sha256[:8]}"
            )
        if named.setdefault(ref.file, ref) != ref:
            raise BundleInvalid(f"{path} names {ref.file} twice, with different contents")


def _refuse_words(manifest: Manifest, path: Path) -> None:
    """Refuse names that a table, a file name or a command line could not take; a graph's own need only be printable."""
    signature = manifest.signature
    words = [("variant", one.id) for one in manifest.variants]
    words += [("operator domain", domain) for one in manifest.variants for domain in one.needs.domains]
    for what, word in words:
        if not _WORD.fullmatch(word):
            raise BundleInvalid(
                f"{path} names a {what} {word[:100]!r}: letters, digits, '.', '_', '@', '+' and '-' make one"
            )
    for name in (*signature.axes, *(spec.name for spec in (*signature.inputs, *signature.outputs))):
        if len(name) > _LONGEST or not name.isprintable():
            raise BundleInvalid(f"{path} names a tensor or an axis {name[:100]!r}, which cannot be printed")


def _restore_hint(name: str, flags: str = "") -> str:
    return f"copy the bundle again from where it came, or rebuild it: kit export {name}{flags}"


def digest(path: Path, *, anew: bool = False) -> str:
    """Return a file's sha256, read by stream; a large file that did not change since is not read again. Raises OSError."""
    stamp = _stamp(path) if path.stat().st_size > STAMPED_ABOVE_BYTES else ""
    known = _stamps().get(stamp) if stamp and not anew else None
    if known is not None:
        return known
    found = files.sha256(path)
    if stamp:
        _remember(stamp, found)
    return found


def _stamps_path() -> Path:
    return platformdirs.user_cache_path("kit") / "hashes.json"


def _stamp(path: Path) -> str:
    found = path.stat()
    return f"{path.resolve()}|{found.st_size}|{found.st_mtime_ns}|{found.st_ino}"


def _stamps() -> dict[str, str]:
    try:
        found = plain_json.read(_stamps_path().read_bytes(), what="hashes", most_bytes=MANIFEST_MAX_BYTES)
        return {str(stamp): str(digest) for stamp, digest in found.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _remember(stamp: str, digest: str) -> None:
    place = stamp.split("|", maxsplit=1)[0]
    held = {one: kept for one, kept in _stamps().items() if not one.startswith(f"{place}|")}
    with contextlib.suppress(OSError):  # the next opening hashes again
        _stamps_path().parent.mkdir(parents=True, exist_ok=True)
        files.replace(_stamps_path(), json.dumps(held | {stamp: digest}, indent=1).encode())


def _flags(variant: Variant) -> str:
    """Return what `kit export` is to be told to make a variant again, beyond the bundle's name."""
    if variant.precision is Precision.FP32:
        return ""
    said = f" --precision {variant.precision}"
    if variant.format in {VariantFormat.QOPERATOR, VariantFormat.PIXEL}:
        said += f" --format {variant.format}"
    if variant.format is VariantFormat.DYNAMIC:
        said += " --quantization dynamic"
    if variant.format is VariantFormat.WEIGHT_ONLY and variant.precision is Precision.INT8:
        said += " --quantization weights"
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
