"""A model's folder in a repository: written whole, proved, and replaced only if nobody changed it since.

The config begins with a comment that holds the sha256 of the config and of every file. A folder is kit's own as long as it
holds these files and no others.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kit import __version__
from kit.bundle import Bundle, FileRef
from kit.errors import UsageError
from kit.system import files, plain_json

CONFIG = "config.pbtxt"

_HEAD = "# Written by kit export --triton. It replaces this folder as long as nothing in it was changed.\n# "
_CONFIG_MOST_BYTES = 2**20
_ELSEWHERE = "free some space there, or name another place"


def write(bundle: Bundle, place: Path, config: str, parts: Mapping[str, FileRef], made_of: Mapping[str, str]) -> bool:
    """Write a model's folder; return False if all of it is there already.

    What lies at `place` is replaced if it was written here and not changed since. `parts` are files of the bundle by
    their path in the folder; `made_of` is what the comment above the config says beside the hashes.

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
    said = {
        "kit": __version__,
        **made_of,
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        "files": {part: ref.sha256 for part, ref in parts.items()},
    }
    return f"{_HEAD}{json.dumps(said)}\n"


def _refuse_foreign(place: Path) -> str:
    """Return the config of a model that was written here and not changed since; empty if there is none."""
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
    is_own = said["config_sha256"] == hashlib.sha256(body).hexdigest()
    if not (is_own and files.holds(place, said["files"], beside={CONFIG})):
        raise ValueError(place)
    return data.decode()


def _store(bundle: Bundle, place: Path, text: str, parts: Mapping[str, FileRef]) -> None:
    needed_bytes = sum(ref.size_bytes for ref in parts.values())
    with files.folder(place, what="the model repository", needed_bytes=needed_bytes) as partial:
        for part, ref in parts.items():
            bundle.copy(ref, partial / part)
        files.write(partial / CONFIG, text)
