"""A bundle as one file, `NAME-1a2b3c4d.kit`: a zip whose members are stored as they are and lie side by side.

It holds what its manifest names, in the sizes and with the hashes the manifest gives, and nothing else. A file may come from
anyone: all of that is proved before a byte of it is written, so that neither paths, links nor sizes reach out of the folder
it is unpacked into. Opened, it is unpacked once into the user's cache, in a folder named after the sha256 of the whole file;
what is damaged there is mended, and the cache may be deleted at any time.

    with path.open("rb") as file:
        packed = check(file, path)  # or any other binary file, an upload say; raises BundleInvalid, writes nothing
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import shutil
import stat
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import platformdirs

from kit.bundle.manifest import MANIFEST, FileRef, Manifest
from kit.bundle.read import MANIFEST_MAX_BYTES, ROOT, Bundle, digest_of, manifest_from_bytes, name_of
from kit.errors import BundleInvalid, BundleNotFound, StorageUnavailable
from kit.system import files

SUFFIX = ".kit"
MAX_BYTES = 64 * 10**9
"""Of the whole file."""
MAX_MEMBERS = 256
_OTHER_ZIPS = frozenset({".pt2", ".npz", ".pt", ".pth", ".whl"})  # which begin as a packed bundle does

_MAGIC = b"PK\x03\x04"
_LOCAL_BYTES = 30
_CHUNK_BYTES = 2**20
_ENTRY_MAX_BYTES = 46 + 1024
# APPNOTE.TXT 4.3.16: signature, two disk numbers, entries here and in all, size and offset of the directory, comment length.
_END = struct.Struct("<4s4H2LH")
_END_MAGIC = b"PK\x05\x06"
# 4.3.14 and 4.3.15: the same in 64 bits, and where it lies.
_END64 = struct.Struct("<4sQ2H2L4Q")
_END64_MAGIC = b"PK\x06\x06"
_LOCATOR = struct.Struct("<4sLQL")
_LOCATOR_MAGIC = b"PK\x06\x07"
_END64_ABOVE_BYTES = 2**31 - 1  # a smaller file has no use for 64 bits
_UTF8_NAME = 0x800
_DOS_FOLDER = 0x10
# What zipfile raises for files that were damaged or made to hurt, whichever of their fields is wrong.
_CORRUPT = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError, struct.error)
_AGAIN = "copy it again from where it came"
_CUT = "it does not end as a packed bundle does; it was cut off, or is some other zip"


class _Refused(Exception):  # noqa: N818 - never leaves this file
    """Why a file is refused, without its name."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What a packed file holds, by its directory and its manifest.

    Attributes:
        origin: The file, or what an upload was called.
        sha256: Of the whole file.
        manifest_bytes: Its JSON as it stands in the file, fields of later writers included.
        inline: Attachments that an earlier manifest holds itself.
    """

    origin: Path
    sha256: str
    manifest: Manifest
    manifest_bytes: bytes
    inline: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the bundle."""
        return name_of(self.origin)


def looks_packed(path: Path) -> bool:
    """Whether `path` is a file that claims to be a packed bundle: by its suffix, or by beginning as a zip does."""
    try:
        if not path.is_file():
            return False
        if path.suffix.lower() == SUFFIX:
            return True
        if path.suffix.lower() in _OTHER_ZIPS:
            return False
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def open_packed(path: Path) -> Bundle:
    """Open a packed file: check it, and unpack it into the cache unless it lies there whole.

    Raises:
        BundleInvalid: It is corrupt, altered, or not safe to unpack.
        StorageUnavailable: It can be unpacked neither into the cache nor into a temporary folder.
    """
    with opened(path) as file:
        packed = inspect(file, path)
        return Bundle(_unpack_somewhere(packed, file), packed.manifest, packed=path, inline=packed.inline)


def look(path: Path) -> Packed:
    """Return what a packed file holds, its manifest read and its members' hashes not.

    Raises:
        BundleInvalid: It is corrupt, or not safe to unpack.
    """
    with opened(path) as file:
        return inspect(file, path)


def check(file: BinaryIO, origin: Path, *, max_bytes: int = MAX_BYTES) -> Packed:
    """Prove that a packed file is whole and safe to unpack, every member's sha256 included. Writes nothing.

    `file` is any seekable binary file, and `origin` its name, for messages and for the hash it carries.

    Raises:
        BundleInvalid: It is not; the message says why.
    """
    packed = inspect(file, origin, max_bytes=max_bytes)
    for ref in packed.manifest.files():
        copy_member(packed, file, ref, None)
    return packed


def inspect(file: BinaryIO, origin: Path, *, max_bytes: int = MAX_BYTES) -> Packed:
    """Do what `check` does without reading the members other than the manifest; `unpack_into` checks the others.

    Raises:
        BundleInvalid: It is not safe to unpack; the message says why.
    """
    try:
        with _reading(origin):
            directory_bytes, total_bytes = _check_frame(file, max_bytes)
            digest = _check_digest(file, origin)
            with zipfile.ZipFile(file) as archive:
                members = _check_members(archive.infolist())
                data = _manifest_bytes(archive, members)
        manifest, inline = manifest_from_bytes(data, origin / MANIFEST, hint=_AGAIN)
        _check_named(members, manifest)
        _check_disjoint(members, total_bytes - directory_bytes)
    except _Refused as refused:
        raise BundleInvalid(f"{origin} is refused: {refused}", hint=_AGAIN) from refused
    return Packed(origin=origin, sha256=digest, manifest=manifest, manifest_bytes=data, inline=inline)


def copy_member(packed: Packed, file: BinaryIO, ref: FileRef, target: BinaryIO | None) -> None:
    """Copy a file the manifest names, by stream, and check its sha256; without a target, check it alone.

    Raises:
        BundleInvalid: It was altered; what was copied is not to be used.
    """
    digest = hashlib.sha256()
    for chunk in _chunks(packed, file, ref):
        digest.update(chunk)
        if target is not None:
            target.write(chunk)  # what goes wrong here is not the packed file's fault
    if digest.hexdigest() != ref.sha256:
        raise BundleInvalid(
            f"{packed.origin} was altered: {ref.file} has another sha256 than its manifest", hint=_AGAIN
        )


def _chunks(packed: Packed, file: BinaryIO, ref: FileRef) -> Iterator[bytes]:
    with _reading(packed.origin), zipfile.ZipFile(file) as archive, archive.open(ref.file) as member:
        while chunk := member.read(_CHUNK_BYTES):
            yield chunk


def unpack_into(packed: Packed, file: BinaryIO, folder: Path) -> None:
    """Unpack into a folder that does not exist yet, which appears whole or not at all; or make whole the one that does.

    In a folder that exists the manifest is replaced last, and what is right already is not touched, so that processes that do
    this at once do not disturb each other. Raises OSError where nothing can be written.

    Raises:
        BundleInvalid: A member was altered.
    """
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        files.sweep(folder.parent)
        partial = folder.parent / files.partial_name()
        partial.mkdir()  # as the umask has it
        try:
            _install(packed, file, partial)
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # it is when another process was quicker
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    _install(packed, file, folder)


def cache_folder() -> Path:
    """Return where packed files are unpacked when they are opened."""
    return platformdirs.user_cache_path("kit") / "bundles"


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading; one that cannot be is BundleInvalid, or BundleNotFound."""
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise BundleNotFound(
            f"there is no packed bundle {os.fspath(path)!r}",
            hint=f"look at the path; kit list shows those under ./{ROOT}, and kit pack BUNDLE makes one",
        ) from error
    except OSError as error:
        raise BundleInvalid(f"{path} cannot be read: {error.strerror or error}") from error
    with file:
        yield file


@contextlib.contextmanager
def _reading(origin: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BundleInvalid(f"{origin} cannot be read: {error.strerror or error}") from error
    except _CORRUPT as error:
        raise BundleInvalid(f"{origin} is corrupt: {error}", hint=_AGAIN) from error


def _check_frame(file: BinaryIO, max_bytes: int) -> tuple[int, int]:
    """Check the zip's last record, before anything believes it; return the directory's size and the file's in bytes.

    Nothing may stand before the first member or behind the last record, and the directory must be small: zipfile reads all
    of it into memory.
    """
    total = file.seek(0, os.SEEK_END)
    if total > max_bytes:
        raise _Refused(f"it has {total:,} bytes, more than the {max_bytes:,} that are allowed")
    file.seek(0)
    begins = file.read(len(_MAGIC)) == _MAGIC
    if not begins or total < _LOCATOR.size + _END.size:
        raise _Refused("it is no packed bundle: kit pack writes a zip")
    file.seek(-_LOCATOR.size - _END.size, os.SEEK_END)
    locator = _LOCATOR.unpack(file.read(_LOCATOR.size))
    magic, disk, first_disk, here, entries, size, offset, comment = _END.unpack(file.read(_END.size))
    if magic != _END_MAGIC or comment:
        raise _Refused(_CUT)
    tail = _END.size
    if locator[0] == _LOCATOR_MAGIC:  # zipfile believes the 64-bit directory, whatever the other says
        if total <= _END64_ABOVE_BYTES:
            raise _Refused("it has a second directory, as 64-bit zips do, and is too small for one")
        tail += _LOCATOR.size + _END64.size
        here, entries, size, offset = _check_end64(file, locator, total - tail)
    if offset + size + tail != total:
        raise _Refused(_CUT)
    if disk or first_disk or here != entries or not 0 < entries <= MAX_MEMBERS or size > entries * _ENTRY_MAX_BYTES:
        raise _Refused(f"its directory of {entries:,} members and {size:,} bytes is no packed bundle's")
    return size + tail, total


def _check_end64(file: BinaryIO, locator: tuple[Any, ...], place: int) -> tuple[int, int, int, int]:
    """Return entries here and in all, and size and offset of the directory, from the 64-bit record at `place`."""
    _, disk, offset, disks = locator
    file.seek(max(place, 0))
    magic, length, _, _, number, first, here, entries, size, start = _END64.unpack(file.read(_END64.size))
    if magic != _END64_MAGIC or offset != place or disk or disks != 1 or number or first:
        raise _Refused(_CUT)
    if length != _END64.size - 12:
        raise _Refused("its 64-bit directory has an extension that kit pack does not write")
    return here, entries, size, start


def _check_digest(file: BinaryIO, origin: Path) -> str:
    file.seek(0)
    digest = _sha256(file)
    named = digest_of(origin)
    if not digest.startswith(named):
        raise _Refused(
            f"it was altered: its name says that its sha256 begins with {named}, and it begins with {digest[:8]} "
            f"(a name of your own must not end in eight hexadecimal digits)"
        )
    return digest


def _check_members(infos: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    if len(infos) > MAX_MEMBERS:
        raise _Refused(f"it has {len(infos):,} members, more than the {MAX_MEMBERS} that are allowed")
    for info in infos:
        problem = _problem(info)
        if problem:
            raise _Refused(f"its member {info.orig_filename!r} {problem}")
    names = [info.filename for info in infos]
    if len({name.casefold() for name in names}) != len(names):  # some file systems do not tell A from a
        raise _Refused("two of its members have the same name")
    return dict(zip(names, infos, strict=True))


def _problem(info: zipfile.ZipInfo) -> str:
    name = info.orig_filename
    if not name or not info.filename:  # zipfile's is_dir needs a character
        return "has no name"
    if name.startswith(("/", "\\")) or name[1:2] == ":":
        return "has an absolute path"
    if ".." in name.replace("\\", "/").split("/"):
        return "reaches out of its folder"
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.is_dir() or info.external_attr & _DOS_FOLDER or "/" in name or "\\" in name or kind == stat.S_IFDIR:
        return "is a folder, or lies in one"
    if kind not in {0, stat.S_IFREG}:
        return "is a link, or some other thing that is no file"
    if name != info.filename or not name.isprintable():
        return "has two names, or none that can be printed"
    if info.flag_bits & ~_UTF8_NAME:
        return "is encrypted, or of unknown size"
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        return "is compressed; members are stored as they are"
    return ""


def _manifest_bytes(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> bytes:
    info = members.get(MANIFEST)
    if info is None:
        raise _Refused(f"it holds no {MANIFEST}")
    if info.file_size > MANIFEST_MAX_BYTES:
        raise _Refused(f"its {MANIFEST} has {info.file_size:,} bytes, more than the {MANIFEST_MAX_BYTES:,} allowed")
    return archive.read(info)


def _check_named(members: dict[str, zipfile.ZipInfo], manifest: Manifest) -> None:
    refs: dict[str, FileRef] = {}
    for ref in manifest.files():
        if refs.setdefault(ref.file, ref) != ref or ref.file.casefold() == MANIFEST:
            raise _Refused(f"its manifest names {ref.file} twice")
    strangers = sorted(members.keys() - refs.keys() - {MANIFEST})
    if strangers:
        raise _Refused(f"its member {strangers[0]!r} is not in its manifest")
    for name, ref in refs.items():
        if name not in members:
            raise _Refused(f"it lacks {name}, which its manifest names")
        if members[name].file_size != ref.size_bytes:
            raise _Refused(f"{name} has {members[name].file_size:,} bytes, its manifest says {ref.size_bytes:,}")


def _check_disjoint(members: dict[str, zipfile.ZipInfo], room_bytes: int) -> None:
    """Refuse members that share their bytes, so that a small file would unpack to a large folder."""
    if sum(_LOCAL_BYTES + len(name) + info.file_size for name, info in members.items()) > room_bytes:
        raise _Refused("its members hold more bytes than the file has")


def _install(packed: Packed, file: BinaryIO, folder: Path) -> None:
    """Write each file that is not there as the manifest wants it, and the manifest last."""
    for ref in packed.manifest.files():
        if _digest(folder / ref.file) != ref.sha256:
            with files.partial(folder) as partial:
                with partial.open("r+b") as target:
                    copy_member(packed, file, ref, target)
                files.install(partial, folder / ref.file, read_only=True)
    manifest = folder / MANIFEST
    if _digest(manifest) != hashlib.sha256(packed.manifest_bytes).hexdigest():
        files.replace(manifest, packed.manifest_bytes)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return _sha256(file)
    except OSError:
        return ""


def _sha256(file: BinaryIO) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # any binary file will do


def _unpack_somewhere(packed: Packed, file: BinaryIO) -> Path:
    """Unpack into the cache; where that cannot be written to, into a folder that goes when this process ends."""
    for root in (cache_folder, _temporary_folder):
        try:
            folder = root() / packed.sha256
            files.sweep(folder.parent)
            unpack_into(packed, file, folder)
        except OSError as error:
            refusal = error
        else:
            return folder
    raise StorageUnavailable(
        f"cannot unpack {packed.origin}: {refusal.strerror or refusal}",
        hint=f"free some space in {cache_folder()} or in {tempfile.gettempdir()}",
    ) from refusal


@functools.cache
def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="kit-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
