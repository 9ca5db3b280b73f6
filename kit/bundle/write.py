"""Write bundles: new files first, synced; one replace of the manifest commits; what no manifest names is collected."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from kit.bundle.golden import Items, check_golden, golden_bytes, items_bytes
from kit.bundle.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    FileRef,
    Golden,
    Manifest,
    Provenance,
    TaskRef,
    Variant,
)
from kit.bundle.packed import Packed, looks_packed, unpack_into
from kit.bundle.read import MANIFEST_MAX_BYTES, Bundle, manifest_from_bytes, open_folder
from kit.errors import BundleInvalid, CheckFailed, StorageUnavailable, UsageError
from kit.samples import Samples, count
from kit.system import files, packages, plain_json, serial
from kit.tensors import Signature

_HASHED = re.compile(r"^[A-Za-z0-9._-]+-([0-9a-f]{8})\.(?:onnx|data|npz|safetensors|md|json|txt|model)$")
_ATTACHED = {"card": ".md"}
_LINE = 200  # of a manifest, so that a file or a score stands on one


class TaskPlug(Protocol):
    """What a bundle keeps of a task: see kit.tasks.base.Task."""

    name: str
    files: Mapping[str, Path]

    def options(self) -> dict[str, Any]:
        """Return plain JSON values."""


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A checked variant whose files, named by its FileRefs, wait in a folder, best on the bundle's own file system."""

    variant: Variant
    folder: Path


def create(
    folder: Path,
    *,
    name: str,
    signature: Signature,
    golden: Sequence[Samples],
    tools: Mapping[str, str],
    task: TaskPlug | None = None,
    original: Provenance | None = None,
    weights: bytes | None = None,
    variants: Sequence[Staged] = (),
    items: Items | None = None,
    attachments: Mapping[str, bytes] | None = None,
    default: str | None = None,
    baseline: str | None = None,
) -> Bundle:
    """Write a bundle from nothing, or replace the one in `folder` whole.

    `golden` holds the original's answers; `tools` are packages and versions that made the bundle. `weights` are the
    bytes of a safetensors file, named by `original` then. Files of `variants` are moved in; `default` and `baseline`
    are ids, that of the first if None. `attachments` are files by role: `card` is Markdown, others are JSON.

    Raises:
        UsageError: The folder holds other things, or the golden samples do not fit the signature.
        StorageUnavailable: It cannot be written.
    """
    check_golden(golden, signature)
    refuse_foreign(folder)
    first = variants[0].variant.id if variants else None
    with _storage(folder), _locked(folder):
        new = _New()
        if original is not None and weights is not None:
            original = dataclasses.replace(original, weights=new.add("weights", ".safetensors", weights))
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            name=name,
            signature=signature,
            task=_task_ref(new, task),
            original=original,
            golden=_golden(new, golden, signature, items),
            tools=dict(tools),
            variants=tuple(new.install(staged) for staged in variants),
            baseline=baseline or first,
            default=default or first,
            attachments={role: new.attach(role, data) for role, data in (attachments or {}).items()},
        )
        return _commit(folder, manifest, new)


def publish(
    bundle: Bundle,
    variants: Sequence[Staged],
    *,
    tools: Mapping[str, str],
    default: str | None = None,
    withdrawn: Sequence[str] = (),
) -> Bundle:
    """Add checked variants to a bundle, replacing those of the same id, in one step; their files are moved in.

    `default` is the id of the new default, None for the one there is. `withdrawn` variants are taken out, if there.

    Raises:
        CheckFailed: The model was replaced since `bundle` was opened, so that the variants are of another one.
        UsageError: It was opened from a packed file.
        StorageUnavailable: The folder cannot be written; the bundle is as it was.
    """
    refuse_packed(bundle)
    with _storage(bundle.folder), _locked(bundle.folder):
        current = open_folder(bundle.folder)  # another export may have published since
        if current.manifest.original != bundle.manifest.original or current.signature != bundle.signature:
            raise CheckFailed(
                f"bundle {bundle.name!r} was made anew meanwhile; nothing was published",
                hint=f"kit export {bundle.name}",
            )
        new = _New()
        merged = {variant.id: variant for variant in current.variants if variant.id not in withdrawn}
        for staged in variants:
            merged[staged.variant.id] = new.install(staged)
        first = next(iter(merged), None)
        manifest = dataclasses.replace(
            current.manifest,
            variants=tuple(merged.values()),
            default=default or _if_there(current.manifest.default, merged) or first,
            baseline=_if_there(current.manifest.baseline, merged) or first,
            tools={**current.manifest.tools, **tools},
        )
        return _commit(bundle.folder, manifest, new, inline=current.inline)


def attach(bundle: Bundle, role: str, data: bytes) -> Bundle:
    """Give a bundle a file by its role, such as `card`, in place of the one it has.

    Raises:
        UsageError: It was opened from a packed file.
        StorageUnavailable: The folder cannot be written; the bundle is as it was.
    """
    refuse_packed(bundle)
    with _storage(bundle.folder), _locked(bundle.folder):
        current = open_folder(bundle.folder)
        new = _New()
        attachments = {**current.manifest.attachments, role: new.attach(role, data)}
        inline = {one: held for one, held in current.inline.items() if one != role}
        return _commit(
            bundle.folder, dataclasses.replace(current.manifest, attachments=attachments), new, inline=inline
        )


def upgrade(bundle: Bundle, *, items: Items | None = None) -> Bundle:
    """Write a bundle's manifest in the newest version, and `items` if it has none; models and samples stay as they are.

    Raises:
        UsageError: It was opened from a packed file.
        StorageUnavailable: The folder cannot be written; the bundle is as it was.
    """
    refuse_packed(bundle)
    with _storage(bundle.folder), _locked_from_exports(bundle.folder):
        current = open_folder(bundle.folder)
        groups, golden = current.golden(), current.manifest.golden
        proof, new = golden.items, _New()
        if proof is None and items is not None:
            proof = new.add("items", ".npz", items_bytes(items))
        golden = dataclasses.replace(
            golden, samples=count(groups, current.signature), source=_sources(groups), items=proof
        )
        return _commit(bundle.folder, dataclasses.replace(current.manifest, golden=golden), new, inline=current.inline)


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
        BundleInvalid: A member was altered, or has the name of another file of the bundle that is there.
        StorageUnavailable: The folder cannot be written; the bundle is as it was.
    """
    with _storage(folder), _locked_from_exports(folder):
        _refuse_same_names(packed, folder)
        unpack_into(packed, file, folder)
        _collect(folder, packed.manifest)
    return Bundle(folder, packed.manifest)


def _refuse_same_names(packed: Packed, folder: Path) -> None:
    """Refuse to replace a file before the manifest that names it: names carry 32 bits of a hash, which can be made to meet."""
    try:
        present = {ref.file: ref.sha256 for ref in open_folder(folder).manifest.files()}
    except BundleInvalid:  # there is none, or none that could still be read
        return
    for ref in packed.manifest.files():
        if present.get(ref.file, ref.sha256) != ref.sha256:
            raise BundleInvalid(
                f"{packed.origin} holds another {ref.file} than the bundle in {folder}",
                hint="unpack it elsewhere: -o FOLDER",
            )


def _is_packed(path: Path) -> UsageError:
    return UsageError(f"{path} is a packed bundle, which is not written into", hint=f"kit unpack {path}")


def _is_our_manifest(path: Path) -> bool:
    """Whether a manifest.json is a bundle's, in however bad a state, and not some web page's."""
    try:
        data = plain_json.read(path.read_bytes(), what=str(path), most_bytes=MANIFEST_MAX_BYTES)
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and {"schema_version", "golden"} <= data.keys()


def _is_ours(path: Path) -> bool:
    """Whether kit wrote a file: the beginning of its sha256 stands in its name. What only looks so is a stranger's."""
    if path.name.startswith(files.PARTIAL):
        return True
    hashed = _HASHED.match(path.name)
    return hashed is not None and path.is_file() and files.sha256(path).startswith(hashed[1])


def file_ref(content: bytes | Path, stem: str, suffix: str) -> FileRef:
    """Name a file after its content, which is bytes or lies in a file; raises OSError."""
    if isinstance(content, bytes):
        digest, size = hashlib.sha256(content).hexdigest(), len(content)
    else:
        digest, size = files.sha256(content), content.stat().st_size
    return FileRef(file=f"{stem}-{digest[:8]}{suffix}", sha256=digest, size_bytes=size)


def _if_there(wanted: str | None, variants: Mapping[str, Variant]) -> str | None:
    return wanted if wanted in variants else None


class _New:
    """Files that are to be written once the manifest that names them is found good."""

    def __init__(self) -> None:
        self._data: dict[str, bytes] = {}
        self._staged: list[Staged] = []

    def add(self, stem: str, suffix: str, data: bytes) -> FileRef:
        ref = file_ref(data, stem, suffix)
        self._data[ref.file] = data
        return ref

    def attach(self, role: str, data: bytes) -> FileRef:
        return self.add(role, _ATTACHED.get(role, ".json"), data)

    def install(self, staged: Staged) -> Variant:
        self._staged.append(staged)
        return staged.variant

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self._data.items():
            files.replace(folder / name, data, read_only=True)
        for staged in self._staged:
            for ref in staged.variant.files():
                source = staged.folder / ref.file
                if source.resolve() != (folder / ref.file).resolve():
                    files.install(source, folder / ref.file, read_only=True)


def _golden(new: _New, groups: Sequence[Samples], signature: Signature, items: Items | None) -> Golden:
    return Golden(
        file=new.add("golden", ".npz", golden_bytes(groups)),
        samples=count(groups, signature),
        source=_sources(groups),
        items=None if items is None else new.add("items", ".npz", items_bytes(items)),
    )


def _sources(groups: Sequence[Samples]) -> str:
    return "; ".join(dict.fromkeys(group.source for group in groups if group.source))


def _task_ref(new: _New, task: TaskPlug | None) -> TaskRef | None:
    if task is None:
        return None
    named = {role: new.add(role, path.suffix, path.read_bytes()) for role, path in task.files.items()}
    return TaskRef(name=task.name, options=task.options(), files=named, package=_package_of(task.name))


def _package_of(task: str) -> str:
    entries = packages.entry_points("kit.tasks", task.partition("@")[0])
    return next((entry.dist.name for entry in entries if entry.dist), "")


def _commit(folder: Path, manifest: Manifest, new: _New, *, inline: Mapping[str, bytes] | None = None) -> Bundle:
    """Write new files and the manifest that names them; nothing at all if that manifest could not be read again."""
    added = {role: new.attach(role, data) for role, data in (inline or {}).items()}
    manifest = dataclasses.replace(
        manifest, schema_version=SCHEMA_VERSION, attachments={**manifest.attachments, **added}
    )
    text = _checked(folder / MANIFEST, manifest)
    new.write(folder)
    files.replace(folder / MANIFEST, text)
    _collect(folder, manifest)
    return Bundle(folder, manifest)


def _checked(path: Path, manifest: Manifest) -> bytes:
    """Return a manifest as it is written, read once on trial; raises UsageError if it could not be opened again."""
    try:
        plain = serial.encode(manifest, brief=True)
        serial.decode(Manifest, plain, path="manifest")  # names the field
        text = _readable(plain).encode()
        manifest_from_bytes(text, path, hint="")
    except (BundleInvalid, TypeError, ValueError) as error:
        raise UsageError(f"the bundle could not be opened again, so nothing was written: {error}") from error
    return text


def _readable(plain: dict[str, Any]) -> str:
    return f"{_laid_out(plain, 0)}\n"


def _laid_out(value: Any, depth: int) -> str:
    flat = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or (depth > 0 and len(flat) + 2 * depth <= _LINE):
        return flat
    inner = "  " * (depth + 1)
    if isinstance(value, dict):
        lines = [f"{inner}{json.dumps(key)}: {_laid_out(one, depth + 1)}" for key, one in value.items()]
        return "{\n" + ",\n".join(lines) + "\n" + "  " * depth + "}"
    return "[\n" + ",\n".join(inner + _laid_out(one, depth + 1) for one in value) + "\n" + "  " * depth + "]"


def _collect(folder: Path, manifest: Manifest) -> None:
    named = {ref.file for ref in manifest.files()}
    for item in folder.iterdir():
        if item.name not in named and _is_ours(item):
            # Windows keeps a file that is open elsewhere; the next commit collects it.
            with contextlib.suppress(OSError):
                files.remove(item)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one writer at a time change a bundle. The lock lies beside the folder, which holds only what the manifest names."""
    filelock = packages.needed("filelock", distribution="filelock", purpose="writing a bundle", extra="train")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.parent / f".{folder.name}.lock"):
        yield


def _locked_from_exports(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Lock a bundle, or the place of a new one; where filelock is not installed nothing is exported."""
    return _locked(folder) if find_spec("filelock") else contextlib.nullcontext()


@contextlib.contextmanager
def _storage(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageUnavailable(
            f"cannot write the bundle {folder}: {error.strerror or error}",
            hint="free some space there, or work in a folder that can be written; the bundle is as it was before",
        ) from error
