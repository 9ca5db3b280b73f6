"""Write bundles: new files first, synced; one replace of the manifest commits; what no manifest names is collected."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from kit.bundle.contents import MANIFEST, SCHEMA_VERSION, GoldenSamples, Manifest, check_golden, golden_bytes
from kit.bundle.packed import Packed, looks_packed, unpack_into
from kit.bundle.read import Bundle, open_folder
from kit.bundle.records import FileRef, ModelSpec, Origin, TrainingRecord, Variant
from kit.errors import CheckFailed, StorageUnavailable, UsageError
from kit.system import files, packages, serial

_HASHED = re.compile(r"^[A-Za-z0-9-]+-([0-9a-f]{8})\.(?:onnx|npz|safetensors|md)$")


def create(
    folder: Path,
    *,
    spec: ModelSpec,
    golden: GoldenSamples,
    tools: Mapping[str, str],
    weights: bytes | None = None,
    training: TrainingRecord | None = None,
    variants: tuple[tuple[Variant, bytes], ...] = (),
    origin: Origin | None = None,
) -> Bundle:
    """Write a bundle from nothing, or replace the one in `folder` whole.

    Args:
        folder: Made if need be; refused when it holds anything but a bundle.
        spec: What the model is.
        golden: Samples with PyTorch's logits.
        tools: Package names and versions that made it.
        weights: A safetensors file's bytes.
        training: Where the weights came from.
        variants: Checked variants with their bytes; the first becomes the default.
        origin: What the model was compressed from.

    Raises:
        UsageError: The folder holds other things.
        StorageUnavailable: It cannot be written.
    """
    check_golden(golden, spec)
    refuse_foreign(folder)
    with _storage(folder), _locked(folder):
        folder.mkdir(parents=True, exist_ok=True)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            spec=spec,
            golden=_add(folder, "golden", ".npz", golden_bytes(golden)),
            tools=dict(tools),
            weights=_add(folder, "weights", ".safetensors", weights) if weights is not None else None,
            training=training,
            variants=tuple(_add_variant(folder, variant, data) for variant, data in variants),
            default_variant=variants[0][0].id if variants else None,
            origin=origin,
        )
        return _commit(folder, manifest)


def publish(
    bundle: Bundle,
    variants: tuple[tuple[Variant, bytes], ...],
    *,
    tools: Mapping[str, str],
    default: str | None = None,
    withdrawn: tuple[str, ...] = (),
) -> Bundle:
    """Add checked variants to a bundle, replacing those of the same id, in one step.

    Args:
        bundle: As it was opened.
        variants: With their bytes.
        tools: Package names and versions that made them.
        default: Id of the variant that becomes the default; the one there is stays without it.
        withdrawn: Ids of variants that are taken out, if they are there.

    Raises:
        CheckFailed: Its weights were replaced since `bundle` was opened, so that the variants are of another model.
        UsageError: It was opened from a packed file.
        StorageUnavailable: The folder cannot be written; the bundle is as it was.
    """
    refuse_packed(bundle)
    with _storage(bundle.folder), _locked(bundle.folder):
        current = open_folder(bundle.folder)  # another export may have published since
        if current.manifest.weights != bundle.manifest.weights:
            raise CheckFailed(
                f"bundle {bundle.name!r} was trained anew meanwhile; nothing was published",
                hint=f"kit export {bundle.name}",
            )
        merged = {variant.id: variant for variant in current.variants if variant.id not in withdrawn}
        for variant, data in variants:
            merged[variant.id] = _add_variant(bundle.folder, variant, data)
        manifest = dataclasses.replace(
            current.manifest,
            variants=tuple(merged.values()),
            default_variant=default or current.manifest.default_variant or next(iter(merged), None),
            tools={**current.manifest.tools, **tools},
        )
        return _commit(bundle.folder, manifest)


def attach_card(bundle: Bundle, text: str) -> Bundle:
    """Give a bundle its model card, in place of the one it has.

    Raises:
        UsageError: It was opened from a packed file.
        StorageUnavailable: The folder cannot be written; the bundle is as it was.
    """
    refuse_packed(bundle)
    with _storage(bundle.folder), _locked(bundle.folder):
        current = open_folder(bundle.folder)
        card = _add(bundle.folder, "card", ".md", text.encode())
        return _commit(bundle.folder, dataclasses.replace(current.manifest, card=card))


def refuse_unwritable(bundle: Bundle) -> None:
    """Refuse, before anything is made for it, a bundle that could not be written into at the end.

    Raises:
        UsageError: It was opened from a packed file, or came with kit.
        StorageUnavailable: Its folder cannot be written.
    """
    refuse_packed(bundle)
    files.check_writable(bundle.folder / MANIFEST)


def refuse_foreign(folder: Path) -> None:
    """Raise UsageError when `folder` is a file, or holds anything but a bundle."""
    if looks_packed(folder):
        raise _is_packed(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, not a folder", hint="choose another --out")
    if not folder.is_dir() or _is_our_manifest(folder / MANIFEST):
        return
    strangers = [item.name for item in folder.iterdir() if not _is_ours(item)]
    if strangers:
        raise UsageError(f"{folder} holds other files ({strangers[0]}, ...)", hint="choose an empty --out")


def refuse_packed(bundle: Bundle) -> None:
    """Raise UsageError when a bundle was opened from a packed file, or came with kit: neither is written into."""
    if bundle.packed is not None:
        raise _is_packed(bundle.packed)
    if bundle.is_shipped:
        raise UsageError(
            f"the bundle {bundle.name!r} comes with kit and is not written into",
            hint=f"make a copy: kit unpack $(kit pack {bundle.name})",
        )


def unpack_over(packed: Packed, file: BinaryIO, folder: Path) -> Bundle:
    """Make a folder of a packed file, new or in place of the bundle that is in it, in one step.

    Raises:
        BundleInvalid: A member was altered.
        StorageUnavailable: The folder cannot be written; the bundle is as it was.
    """
    # Training and exporting need filelock, unpacking does not: without it there is no other writer to keep out.
    lock = _locked(folder) if folder.is_dir() and find_spec("filelock") else contextlib.nullcontext()
    with _storage(folder), lock:
        unpack_into(packed, file, folder)
        _collect(folder, packed.manifest)
    return Bundle(folder, packed.manifest)


def _is_packed(path: Path) -> UsageError:
    return UsageError(f"{path} is a packed bundle, which is not written into", hint=f"kit unpack {path}")


def _is_our_manifest(path: Path) -> bool:
    """Whether a manifest.json is a bundle's, in however bad a state, and not some web page's."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and {"schema_version", "spec", "golden"} <= data.keys()


def _is_ours(path: Path) -> bool:
    """Whether kit wrote a file: the beginning of its sha256 stands in its name. What only looks so is a stranger's."""
    if path.name.startswith(files.PARTIAL):
        return True
    hashed = _HASHED.match(path.name)
    return hashed is not None and path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest().startswith(hashed[1])


def file_ref(stem: str, suffix: str, data: bytes) -> FileRef:
    """Name a file after its content."""
    digest = hashlib.sha256(data).hexdigest()
    return FileRef(file=f"{stem}-{digest[:8]}{suffix}", sha256=digest, size_bytes=len(data))


def _add_variant(folder: Path, variant: Variant, data: bytes) -> Variant:
    return dataclasses.replace(variant, artifact=_add(folder, variant.id, ".onnx", data))


def _add(folder: Path, stem: str, suffix: str, data: bytes) -> FileRef:
    ref = file_ref(stem, suffix, data)
    files.replace(folder / ref.file, data)
    return ref


def _commit(folder: Path, manifest: Manifest) -> Bundle:
    manifest = dataclasses.replace(manifest, schema_version=SCHEMA_VERSION)  # whatever version it was read from
    text = json.dumps(serial.encode(manifest), indent=2, ensure_ascii=False) + "\n"
    files.replace(folder / MANIFEST, text.encode())
    _collect(folder, manifest)
    return Bundle(folder, manifest)


def _collect(folder: Path, manifest: Manifest) -> None:
    """Remove files of ours that the manifest does not name; strangers stay."""
    named = {ref.file for ref in manifest.files()}
    for item in folder.iterdir():
        if item.name not in named and _is_ours(item):
            # Windows keeps a file that is open elsewhere; the next commit collects it.
            with contextlib.suppress(OSError):
                item.unlink()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one writer at a time change a bundle. The lock lies beside the folder, which holds only what the manifest names."""
    filelock = packages.needed("filelock", distribution="filelock", purpose="writing a bundle", extra="train")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.parent / f".{folder.name}.lock"):
        yield


@contextlib.contextmanager
def _storage(folder: Path) -> Iterator[None]:
    """Turn what the file system refuses into one clear error."""
    try:
        yield
    except OSError as error:
        raise StorageUnavailable(
            f"cannot write the bundle {folder}: {error.strerror or error}",
            hint="free some space there, or work in a folder that can be written; the bundle is as it was before",
        ) from error
