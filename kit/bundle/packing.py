"""From a bundle's folder to one packed file, and back."""

from __future__ import annotations

import io
import shutil
import stat
import zipfile
from pathlib import Path
from typing import BinaryIO

from kit.bundle import packed as reading
from kit.bundle import write
from kit.bundle.manifest import MANIFEST, check_name
from kit.bundle.packed import MAX_BYTES, MAX_MEMBERS, SUFFIX, Packed
from kit.bundle.read import ROOT, Bundle, digest_of, manifest_from_bytes, with_fresh
from kit.errors import BundleInvalid, StorageUnavailable, UsageError
from kit.system import files

_CHUNK_BYTES = 2**20
_EPOCH = (1980, 1, 1, 0, 0, 0)


def pack(bundle: Bundle, out: Path | None = None) -> Path:
    """Write a bundle as one file, which everything that takes a bundle's folder takes as well, and return its path.

    The same bundle gives the same bytes, whoever packs it, wherever and whenever. Its files are checked meanwhile; what
    its manifest does not name stays behind. `out` is a file ending in `.kit`, or a folder that exists, the current one
    if None: there the file has the bundle's name and eight digits of its own sha256, `mnist-mlp-1a2b3c4d.kit`.

    Raises:
        BundleInvalid: A file of the bundle is missing or was altered.
        UsageError: The bundle is too large, or `out` is no such name.
        StorageUnavailable: It cannot be written; nothing was.
    """
    folder = Path() if out is None else out
    if not folder.is_dir() and folder.suffix.lower() != SUFFIX:
        raise UsageError(
            f"{folder} is no name for a packed bundle", hint=f"end it in {SUFFIX}, or name a folder that exists"
        )
    place = folder if folder.is_dir() else folder.absolute().parent
    files.check_room(place, sum(ref.size_bytes for ref in bundle.manifest.files()), what="the packed file")
    try:
        place.mkdir(parents=True, exist_ok=True)
        with files.partial(place) as partial:
            with partial.open("r+b") as file:
                pack_into(bundle, file)
            digest = files.sha256(partial)
            path = folder / f"{bundle.name}-{digest[:8]}{SUFFIX}" if folder.is_dir() else folder
            if not digest.startswith(digest_of(path)):
                raise UsageError(
                    f"{path.name} would say that its sha256 begins with {digest_of(path)}, and it begins with {digest[:8]}",
                    hint="choose a name that does not end in eight hexadecimal digits, or name a folder",
                )
            with partial.open("rb") as file:
                reading.check(file, path)  # what is written here is accepted there
            files.install(partial, path)
    except OSError as error:
        raise StorageUnavailable(
            f"cannot write {folder}: {error.strerror or error}", hint="free some space there, or name another place"
        ) from error
    return path


def unpack(path: Path, out: Path | None = None) -> Bundle:
    """Unpack a packed file into a folder of its own, which may be trained and exported into.

    The folder `out` is made, or replaced when it is a bundle; None for `artifacts/NAME`, which is not replaced.

    Raises:
        BundleInvalid: The file is corrupt, altered, or not safe to unpack; nothing was written.
        UsageError: The folder holds other things, or an unnamed one another bundle; the file has no name for a bundle.
        BundleNotFound: There is no such file.
        StorageUnavailable: The folder cannot be written.
    """
    with reading.opened(path) as file:
        packed = reading.check(file, path)
        folder = out or ROOT / _name(packed.name)
        write.refuse_foreign(folder)
        if out is None:
            _refuse_other(folder, packed)
        return write.unpack_over(packed, file, folder)


def packed_bytes(bundle: Bundle) -> bytes:
    """Return a packed file whole, for a bundle that fits into memory."""
    buffer = io.BytesIO()
    pack_into(bundle, buffer)
    return buffer.getvalue()


def pack_into(bundle: Bundle, file: BinaryIO) -> None:
    """Write a packed file: the manifest first, then the files it names, sorted, without anything that varies.

    Raises:
        BundleInvalid: A file of the bundle is missing or was altered.
        UsageError: It is too large.
    """
    start = file.tell()

    def whole(now: Bundle) -> None:
        file.seek(start)
        file.truncate()
        _write(now, file)

    with_fresh(bundle, whole)


def _write(bundle: Bundle, file: BinaryIO) -> None:
    path = bundle.folder / MANIFEST
    try:
        manifest_bytes = path.read_bytes()
    except OSError as error:
        raise BundleInvalid(f"{path} cannot be read: {error.strerror or error}") from error
    manifest, _ = manifest_from_bytes(manifest_bytes, path, hint="")
    refs = {ref.file: ref for ref in manifest.files()}
    total = sum(ref.size_bytes for ref in refs.values())
    if total > MAX_BYTES - len(manifest_bytes) - 2**20 or len(refs) >= MAX_MEMBERS:
        raise UsageError(
            f"bundle {bundle.name!r} has {len(refs)} files of {total:,} bytes, more than one packed file may hold",
            hint="copy its folder instead",
        )
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_member(MANIFEST), manifest_bytes)
        for name in sorted(refs):
            member = _member(name)
            member.file_size = refs[name].size_bytes
            with bundle.check(refs[name], anew=True).open("rb") as source, archive.open(member, "w") as target:
                shutil.copyfileobj(source, target, _CHUNK_BYTES)


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.create_system = 3  # Unix, on whatever system it is packed
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    return info


def _name(name: str) -> str:
    try:
        return check_name(name)
    except ValueError as error:
        raise UsageError(str(error), hint="name the folder with -o") from error


def _refuse_other(folder: Path, packed: Packed) -> None:
    """Refuse to replace another bundle of the same name unless its folder was named: it may be the only one there is."""
    manifest = folder / MANIFEST
    if manifest.is_file() and manifest.read_bytes() != packed.manifest_bytes:
        raise UsageError(
            f"{folder} holds another bundle of that name",
            hint=f"name another folder, or this one to replace it: -o {folder}",
        )
