"""A file from a stranger is proved before a byte of it is written."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import stat
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kit import bundle as bundles
from kit.bundle import Bundle
from kit.errors import BundleInvalid

REF = {"file": "x", "sha256": "0" * 64, "size_bytes": 1}
Members = list[tuple[zipfile.ZipInfo, bytes]]
Change = Callable[[Members], object]

pytestmark = pytest.mark.usefixtures("cache")


def rewrite(packed: Path, change: Change, name: str = "other.kit") -> Path:
    """Write a zip like `packed` with other members, under a name that carries no hash."""
    with zipfile.ZipFile(packed) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    change(members)
    out = packed.with_name(name)
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as archive:
        warnings.simplefilter("ignore")  # zipfile warns of duplicate names
        for info, data in members:
            archive.writestr(info, data)
    return out


def edit_manifest(members: Members, **changes: object) -> None:
    info, data = members[0]
    members[0] = (info, json.dumps({**json.loads(data), **changes}).encode())


def stranger(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def compress(members: Members) -> None:
    for info, _ in members[1:]:
        info.compress_type = zipfile.ZIP_DEFLATED


def refuse(path: Path, words: str, cache: Path) -> None:
    """Opening and unpacking say the same and leave nothing anywhere."""
    cache.mkdir(parents=True, exist_ok=True)
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(BundleInvalid, match=words):
        bundles.find(path)
    with pytest.raises(BundleInvalid, match=words):
        bundles.unpack(path, path.parent / "unpacked")
    with path.open("rb") as file, pytest.raises(BundleInvalid, match=words):
        bundles.check_packed(file, path)
    assert sorted(path.parent.rglob("*")) == before


def test_a_packed_file_may_be_renamed_but_not_altered_under_its_name(packed: Path, cache: Path) -> None:
    for name, expected in ((f"{packed.stem} (1).kit", "tiny"), ("mine.kit", "mine"), ("mine.zip", "mine")):
        copy = Path(shutil.copy(packed, packed.with_name(name)))
        assert bundles.find(copy).name == expected
        copy.unlink()
    shutil.rmtree(cache)
    refuse(packed.rename(packed.with_name("tiny-00000000.kit")), "its name says", cache)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda members: members.append((stranger("/etc/passwd"), b"x")), "absolute path"),
        (lambda members: members.append((stranger("C:evil.onnx"), b"x")), "absolute path"),
        (lambda members: members.append((stranger("../evil.onnx"), b"x")), "reaches out"),
        (lambda members: members.append((stranger("..\\evil.onnx"), b"x")), "reaches out"),
        (lambda members: members.append((stranger("a/evil.onnx"), b"x")), "folder"),
        (lambda members: members.append((stranger("a\\evil.onnx"), b"x")), "folder"),
        (lambda members: members.append((stranger("a/", stat.S_IFDIR | 0o755), b"")), "folder"),
        (lambda members: members.append((stranger("link", stat.S_IFLNK | 0o777), b"/etc/passwd")), "link"),
        (lambda members: members.append((stranger("pipe", stat.S_IFIFO | 0o644), b"")), "link"),
        (lambda members: members.append((stranger("bell\a"), b"")), "printed"),
        (lambda members: members.append((stranger(""), b"")), "has no name"),
        (lambda members: members.append(members[-1]), "same name"),
        (lambda members: members.append((stranger("Manifest.json"), b"{}")), "same name"),
        (lambda members: members.append((stranger("extra.onnx"), b"x")), "'extra.onnx' is not in its manifest"),
        (lambda members: members.extend((stranger(f"{n}"), b"") for n in range(300)), "members"),
        (lambda members: members.pop(), "lacks weights-"),
        (lambda members: members.pop(0), "no manifest.json"),
        (lambda members: members.__setitem__(0, (members[0][0], b" " * (16 * 2**20 + 1))), "manifest.json has"),
        (lambda members: members.__setitem__(0, (members[0][0], b"{")), "no JSON"),
        (lambda members: edit_manifest(members, schema_version=99), "schema version 99"),
        (lambda members: edit_manifest(members, golden={"file": {**REF, "file": "../x"}}), "plain file"),
        (lambda members: edit_manifest(members, attachments={"card": {**REF, "file": "manifest.json"}}), "plain file"),
        (lambda members: edit_manifest(members, attachments={"card": {**REF, "sha256": "0"}}), "64 hexadecimal"),
        (lambda members: members.__setitem__(1, (members[1][0], members[1][1] + b"x")), "its manifest says"),
        (lambda members: members.__setitem__(1, (members[1][0], bytes(len(members[1][1])))), "another sha256"),
        (compress, "is compressed"),
    ],
)
def test_what_is_not_a_packed_bundle_is_refused(packed: Path, cache: Path, change: Change, words: str) -> None:
    refuse(rewrite(packed, change), words, cache)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: b"", "no packed bundle"),
        (lambda _: b"PK\x03\x04", "no packed bundle"),
        (lambda _: b"<html>404</html>" * 9, "no packed bundle"),
        (lambda data: data[:-1], "cut off"),
        (lambda data: data[: len(data) // 2], "cut off"),
        (lambda data: data + b"behind", "cut off"),
        (lambda data: data[:4] + b"before" + data[4:], "cut off"),
        (lambda data: data[:-12] + b"\xff\xff" * 2 + data[-8:], "cut off|directory of"),
        (lambda data: data[:-22] + b"PK\x06\x06" + bytes(52) + b"PK\x06\x07" + bytes(16) + data[-22:], "64-bit"),
        (lambda data: data[:-14] + b"\xff\xff" * 2 + data[-10:], "directory of 65,535"),
    ],
)
def test_what_is_not_whole_is_refused(packed: Path, cache: Path, change: Callable[[bytes], bytes], words: str) -> None:
    path = packed.with_name("other.kit")
    path.write_bytes(change(packed.read_bytes()))
    refuse(path, words, cache)


def test_any_flipped_bit_is_noticed(packed: Path) -> None:
    data = packed.read_bytes()
    rng = np.random.default_rng(0)
    for position in [0, len(data) - 1, *rng.integers(0, len(data), 40).tolist()]:
        flipped = bytearray(data)
        flipped[position] ^= 1 << int(rng.integers(8))
        with pytest.raises(BundleInvalid):
            bundles.check_packed(io.BytesIO(flipped), packed)


def test_garbage_in_headers_is_a_clear_error_and_no_defect(packed: Path) -> None:
    """Under a name without a hash the zip itself has to be read, whatever is in it."""
    data = packed.read_bytes()
    starts = [data.index(b"PK\x03\x04"), int.from_bytes(data[-6:-2], "little"), len(data) - 22]
    rng = np.random.default_rng(0)
    refused = 0
    for start in starts:
        for _ in range(150):
            changed = bytearray(data)
            changed[start + int(rng.integers(0, min(90, len(data) - start)))] = int(rng.integers(256))
            try:
                bundles.check_packed(io.BytesIO(changed), Path("upload.kit"))
            except BundleInvalid:
                refused += 1
    assert refused > 100


def test_members_that_share_their_bytes_are_refused(packed: Path, cache: Path) -> None:
    """A small file that would unpack to a large folder: many names for the same bytes."""
    payload = bytes(100_000)
    ref = {"sha256": hashlib.sha256(payload).hexdigest(), "size_bytes": len(payload)}
    names = [f"v{n}-{ref['sha256'][:8]}.onnx" for n in range(2)]

    def change(members: Members) -> None:
        variant = json.loads(members[0][1])["variants"][0]
        many = [{**variant, "id": f"v{n}", "graph": {"file": names[n], **ref}} for n in range(2)]
        edit_manifest(members, variants=many, default="v0", baseline="v0")
        del members[1]  # fp32
        members += [(stranger(name), payload) for name in names]

    path = rewrite(packed, change)
    bundles.find(path)  # honest so far
    shutil.rmtree(cache)
    data = path.read_bytes()
    first, other = (name.encode() for name in names)
    second = data.index(other, data.index(payload)) - 30  # cut it out, and let its entry point at the first one
    directory = int.from_bytes(data[-6:-2], "little")
    entries = bytearray(data[directory:-22])
    pointer = entries.index(other) - 4
    entries[pointer : pointer + 4] = entries[entries.index(first) - 4 : entries.index(first)]
    end = bytearray(data[-22:])
    end[16:20] = second.to_bytes(4, "little")
    path.write_bytes(data[:second] + entries + end)
    refuse(path, "more bytes than the file has", cache)


def test_an_upload_is_checked_without_a_file_and_has_a_size_limit(packed: Path, tiny: Bundle, cache: Path) -> None:
    upload = io.BytesIO(packed.read_bytes())
    assert bundles.check_packed(upload, Path(packed.name)).manifest == tiny.manifest
    with pytest.raises(BundleInvalid, match="that are allowed"):
        bundles.check_packed(upload, Path(packed.name), max_bytes=100)
    assert not cache.exists()
