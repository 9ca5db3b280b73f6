"""The artifact folder: the only room that knows how one is written and read.

```
artifacts/NAME/
    manifest.json             the only mutable name; replaced whole, last
    weights-1a2b3c4d.safetensors
    golden-5e6f7a8b.npz       inputs, labels and PyTorch's logits
    fp32-9c0d1e2f.onnx        every other file carries part of its own sha256
```

A change writes and syncs its new files first; one `os.replace` of the manifest commits; files that no manifest names are
collected afterwards. A kill at any moment leaves the old bundle or the new one. Nothing here imports onnx, torch or
onnxruntime, and nothing is ever pickled.

    bundle = find("mnist-mlp")
    path = bundle.path(bundle.variant("fp32").artifact)
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit import packages, serial
from kit.errors import BundleInvalid, BundleNotFound, CheckFailed, StorageUnavailable, UsageError
from kit.spec import FileRef, ModelSpec, TrainingRecord, Variant

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
ROOT = Path("artifacts")
PACKAGED = Path(__file__).parent / "bundles"
DEFAULT_NAME = "mnist-mlp"

_PARTIAL = ".partial-"
_HASHED = re.compile(r"^[A-Za-z0-9-]+-([0-9a-f]{8})\.(?:onnx|npz|safetensors)$")
_MANIFEST_MAX_BYTES = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What manifest.json says."""

    schema_version: int
    spec: ModelSpec
    golden: FileRef
    tools: dict[str, str]
    weights: FileRef | None = None
    training: TrainingRecord | None = None
    variants: tuple[Variant, ...] = ()
    default_variant: str | None = None

    def __post_init__(self) -> None:
        """Refuse variants that cannot be told apart, and a default that is none of them."""
        ids = [variant.id for variant in self.variants]
        if len(set(ids)) != len(ids):
            raise ValueError(f"two variants have the same id: {ids}")
        if (self.default_variant not in ids) if ids else (self.default_variant is not None):
            raise ValueError(f"the default variant {self.default_variant!r} is none of {ids}")

    def files(self) -> tuple[FileRef, ...]:
        """Every file the manifest names."""
        weights = (self.weights,) if self.weights else ()
        return (*weights, self.golden, *(variant.artifact for variant in self.variants))


@dataclass(frozen=True, kw_only=True)
class GoldenSamples:
    """Inputs with the answers PyTorch gave, to prove a bundle where there is neither data nor torch.

    Attributes:
        pixels: uint8 `[N, *input shape]`.
        labels: int64 `[N]`, -1 where unknown.
        logits: float32 `[N, classes]`, from the PyTorch module in fp32 on a CPU.
        source: Where the pictures come from and under which licence.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    source: str


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest. Files are checked when asked for, not when opened."""

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.spec.name

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
        data = self.read(self.manifest.golden)
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                golden = GoldenSamples(
                    pixels=arrays["pixels"],
                    labels=arrays["labels"],
                    logits=arrays["logits"],
                    source=str(arrays["source"]),
                )
        except (ValueError, KeyError, OSError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
            raise BundleInvalid(
                f"{self.folder / self.manifest.golden.file} holds no golden samples: {error}"
            ) from error
        check_golden(golden, self.spec)
        return golden


def check_golden(golden: GoldenSamples, spec: ModelSpec) -> None:
    """Raise BundleInvalid unless the golden samples fit the ModelSpec."""
    count = len(golden.pixels)
    shapes = (golden.pixels.shape[1:], golden.labels.shape, golden.logits.shape)
    expected = (spec.input.shape, (count,), (count, *spec.output.shape))
    dtypes = (str(golden.pixels.dtype), str(golden.logits.dtype))
    if count == 0 or shapes != expected or dtypes != (spec.input.dtype, spec.output.dtype):
        raise BundleInvalid(f"golden samples {shapes} {dtypes} do not fit the model {expected}")


def golden_bytes(golden: GoldenSamples) -> bytes:
    """Serialise golden samples as a compressed npz."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        pixels=golden.pixels,
        labels=golden.labels,
        logits=golden.logits,
        source=np.array(golden.source),
    )
    return buffer.getvalue()


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
    names = [bundle.name for bundle in available()]
    if names:
        return "bundles here: " + ", ".join(names)
    return f"no bundles under ./{ROOT}; make one: kit quickstart, or: kit train"


def _restore_hint(name: str) -> str:
    return f"copy the bundle again from where it came, or rebuild it: kit export {name}"


def create(
    folder: Path,
    *,
    spec: ModelSpec,
    golden: GoldenSamples,
    tools: Mapping[str, str],
    weights: bytes | None = None,
    training: TrainingRecord | None = None,
    variants: tuple[tuple[Variant, bytes], ...] = (),
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
        )
        return _commit(folder, manifest)


def publish(bundle: Bundle, variants: tuple[tuple[Variant, bytes], ...], *, tools: Mapping[str, str]) -> Bundle:
    """Add checked variants to a bundle, replacing those of the same id, in one step.

    Raises:
        CheckFailed: Its weights were replaced since `bundle` was opened, so that the variants are of another model.
        StorageUnavailable: The folder cannot be written; the bundle is as it was.
    """
    with _storage(bundle.folder), _locked(bundle.folder):
        current = open_folder(bundle.folder)  # another export may have published since
        if current.manifest.weights != bundle.manifest.weights:
            raise CheckFailed(
                f"bundle {bundle.name!r} was trained anew meanwhile; nothing was published",
                hint=f"kit export {bundle.name}",
            )
        merged = {variant.id: variant for variant in current.variants}
        for variant, data in variants:
            merged[variant.id] = _add_variant(bundle.folder, variant, data)
        manifest = dataclasses.replace(
            current.manifest,
            variants=tuple(merged.values()),
            default_variant=current.manifest.default_variant or next(iter(merged), None),
            tools={**current.manifest.tools, **tools},
        )
        return _commit(bundle.folder, manifest)


def refuse_foreign(folder: Path) -> None:
    """Raise UsageError when `folder` is a file, or holds anything but a bundle."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, not a folder", hint="choose another --out")
    if not folder.is_dir() or _is_our_manifest(folder / MANIFEST):
        return
    strangers = [item.name for item in folder.iterdir() if not _is_ours(item)]
    if strangers:
        raise UsageError(f"{folder} holds other files ({strangers[0]}, ...)", hint="choose an empty --out")


def _is_our_manifest(path: Path) -> bool:
    """Whether a manifest.json is a bundle's, in however bad a state, and not some web page's."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and {"schema_version", "spec", "golden"} <= data.keys()


def _is_ours(path: Path) -> bool:
    """Whether kit wrote a file: the beginning of its sha256 stands in its name. What only looks so is a stranger's."""
    if path.name.startswith(_PARTIAL):
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
    _write_synced(folder / ref.file, data)
    return ref


def _commit(folder: Path, manifest: Manifest) -> Bundle:
    text = json.dumps(serial.encode(manifest), indent=2, ensure_ascii=False) + "\n"
    _write_synced(folder / MANIFEST, text.encode())
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


def _write_synced(path: Path, data: bytes) -> None:
    """Write a file so that its name holds either all of the bytes or what it held before."""
    descriptor, partial = tempfile.mkstemp(prefix=_PARTIAL, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(partial).chmod(0o644)  # mkstemp's 0600 would hide the bundle from the service that loads it
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
            hint="free some space or choose another --out; the bundle is as it was before",
        ) from error
