"""A model's folder in a repository: written whole, proved, and replaced only if nobody changed it since.

The config begins with a comment that holds the sha256 of the config and of every file. A folder is kit's own as long as it
holds these files and no others.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kit import __version__
from kit.bundle import Bundle, FileRef
from kit.errors import BundleInvalid, StorageUnavailable, UsageError
from kit.system import files, plain_json

CONFIG = "config.pbtxt"

_HEAD = "# Written by kit export --triton. It replaces this folder as long as nothing in it was changed.\n# "
_CONFIG_MOST_BYTES = 2**20
_ELSEWHERE = "free some space there, or name another place"


def write(bundle: Bundle, place: Path, config: str, parts: Mapping[str, FileRef], made_of: Mapping[str, str]) -> bool:
    """Write a model's folder; return False if all of it is there already.

    Args:
        bundle: Where the files come from.
        place: The folder; what lies there is replaced if it was written here and not changed since.
        config: Text of config.pbtxt.
        parts: Files of the bundle by their path in the folder.
        made_of: What the comment above the config says beside the hashes.

    Raises:
        UsageError: Something else lies there.
        BundleInvalid: A file of the bundle is missing or was altered.
        StorageUnavailable: It cannot be written; nothing was.
    """
    text = _record(config, parts, made_of) + config
    if _refuse_foreign(place) == text:
        return False
    _store(bundle, place, text, parts)
    return True


def _record(config: str, parts: Mapping[str, FileRef], made_of: Mapping[str, str]) -> str:
    """Return the comment above the config: what it was made of, and hashes that show whether somebody changed it."""
    said = {
        "kit": __version__,
        **made_of,
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        "files": {part: ref.sha256 for part, ref in parts.items()},
    }
    return f"{_HEAD}{json.dumps(said)}\n"


def _refuse_foreign(place: Path) -> str:
    """Return the config of a model that was written here and not changed since; empty if there is none.

    Raises:
        UsageError: Something else has that name.
    """
    if not os.path.lexists(place):
        return ""
    try:
        return _unchanged(place)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{place} was not written by kit export --triton, or was changed since: it is left alone",
            hint="remove it, or name the model otherwise: --name NAME",
        ) from error


def _unchanged(place: Path) -> str:
    """Return the text of config.pbtxt; raises OSError, or what a broken record makes of itself."""
    path = place / CONFIG
    if place.is_symlink() or path.stat().st_size > _CONFIG_MOST_BYTES:
        raise ValueError(place)
    data = path.read_bytes()
    if not data.startswith(_HEAD.encode()):
        raise ValueError(place)
    line, _, body = data.removeprefix(_HEAD.encode()).partition(b"\n")
    said: Any = plain_json.read(line, what=CONFIG, most_bytes=_CONFIG_MOST_BYTES)
    found = {one.relative_to(place).as_posix() for one in place.rglob("*") if one.is_symlink() or not one.is_dir()}
    whole = found == {CONFIG, *said["files"]} and said["config_sha256"] == hashlib.sha256(body).hexdigest()
    same = all(
        not (place / part).is_symlink() and files.sha256(place / part) == sha256
        for part, sha256 in (said["files"].items() if whole else ())
    )
    if not whole or not same:
        raise ValueError(place)
    return data.decode()


def _store(bundle: Bundle, place: Path, text: str, parts: Mapping[str, FileRef]) -> None:
    """Write a model's folder beside where it will be, prove the copies, and give it its name."""
    files.check_room(place.parent, sum(ref.size_bytes for ref in parts.values()), what="the model repository")
    partial = place.parent / files.partial_name()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        files.sweep(place.parent)
        partial.mkdir()
        try:
            for part, ref in parts.items():
                _copy(bundle, ref, partial / part)
            files.write(partial / CONFIG, text)
            _rename(partial, place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise StorageUnavailable(f"cannot write {place}: {error.strerror or error}", hint=_ELSEWHERE) from error


def _copy(bundle: Bundle, ref: FileRef, target: Path) -> None:
    """Copy a file of a bundle; what was copied is hashed, so that no change in between goes unseen."""
    source = bundle.path(ref)
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, target)
    if files.sha256(target) != ref.sha256:
        raise BundleInvalid(f"{source} was altered: it is not what its manifest says", hint=f"kit verify {bundle.name}")
    with target.open("r+b") as file:
        os.fsync(file.fileno())


def _rename(partial: Path, place: Path) -> None:
    """Give a folder its name; what bore it goes when that is done, and gets it back if it cannot be."""
    if not place.exists():
        partial.rename(place)
        return
    old = place.parent / files.partial_name()
    place.rename(old)
    try:
        partial.rename(place)
    except OSError:
        old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)
