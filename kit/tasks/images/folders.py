"""What a folder of pictures holds, by one set of rules for predicting, for data sets and for training.

- Hidden files and folders (`.name`), and folders of tools (`__MACOSX`), count for nothing.
- A picture is a regular file, or a link to one, whose suffix is in SUFFIXES. So is what cannot be looked at, as a link that
  leads nowhere: it is then reported with what cannot be read.
- Links to folders are followed, each folder once.
- Everything else is passed over, and `passed_over` says so.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FIRST_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
"""What was looked for before SUFFIXES: names of data sets that were recorded then stand for such files alone."""

SUFFIXES = FIRST_SUFFIXES | {".apng", ".avif", ".jfif", ".jpe", ".pbm", ".pgm", ".pnm", ".ppm", ".tga"}
"""What a folder of pictures is searched for."""

LOOKED_FOR = "looked for " + ", ".join(sorted(SUFFIXES))

NO_PICTURES = ("that is no picture kit reads", "that are no pictures kit reads")
OF_NO_CLASS = ("that is no picture of a class", "that are no pictures of a class")
UNREADABLE = ("that cannot be read", "that cannot be read")
"""Why files are passed over: of one, and of several."""

_NAMED = 3  # files named in a message, before "..."


@dataclass(frozen=True, kw_only=True)
class Found:
    """What lies in a folder: pictures, files that are none, and folders that were not entered; each sorted."""

    pictures: tuple[Path, ...]
    files: tuple[Path, ...] = ()
    folders: tuple[Path, ...] = ()

    def describe_rest(self) -> str:
        """Return what was passed over, for people; empty if nothing was."""
        notes = [passed_over(self.files, NO_PICTURES)] if self.files else []
        if self.folders:
            notes.append(f"passed over {_counted(self.folders, 'folder')} beside the pictures: {_names(self.folders)}")
        return "; ".join(notes)


def below(folder: Path) -> Found:
    """Return the pictures right in a folder; those of its subfolders if there are none. Raises OSError."""
    inside = entries(folder)
    pictures = tuple(path for path in inside if is_picture(path))
    if pictures:
        rest = [path for path in inside if not is_picture(path)]
        folders = tuple(path for path in rest if path.is_dir())
        return Found(pictures=pictures, files=tuple(path for path in rest if path not in folders), folders=folders)
    every = list(walk(folder))
    pictures = tuple(path for path in every if is_picture(path))
    return Found(pictures=pictures, files=tuple(path for path in every if not is_picture(path)))


def pictures_below(folder: Path) -> Iterator[Path]:
    """Give the pictures of `below` one by one, sorted by name; raises OSError.

    Of a folder with a million, the names are held and nothing else.
    """
    with os.scandir(folder) as inside:
        names = sorted(entry.name for entry in inside)
    here = (path for path in map(folder.__truediv__, names) if is_picture(path))
    first = next(here, None)
    if first is None:
        yield from filter(is_picture, walk(folder))
        return
    yield first
    yield from here


def count_below(folder: Path) -> int:
    """Return about how many pictures `below` finds: files are told by their names alone. Raises OSError."""
    with os.scandir(folder) as inside:
        here = sum(1 for entry in inside if _is_named_like_picture(entry.name))
    if here:
        return here
    return sum(_is_named_like_picture(name) for _, _, names in os.walk(folder, followlinks=False) for name in names)


def entries(folder: Path) -> list[Path]:
    """Return what lies right in a folder, sorted, without what is hidden; raises OSError."""
    return [path for path in sorted(folder.iterdir()) if not _is_hidden(path)]


def walk(folder: Path) -> Iterator[Path]:
    """Give the files in a folder and below it, sorted, links followed, each folder once; raises OSError."""
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        if not path.is_dir():
            yield path
            continue
        real = os.path.realpath(path)
        if real not in seen:  # else it is a link to a folder above
            seen.add(real)
            waiting += reversed(entries(path))


def is_picture(path: Path, suffixes: frozenset[str] = SUFFIXES) -> bool:
    """Whether a path is to be read as a picture."""
    if _is_hidden(path) or path.suffix.lower() not in suffixes:
        return False
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def _is_named_like_picture(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - of a million names


def passed_over(paths: Sequence[Path], why: tuple[str, str]) -> str:
    """Return `passed over 2 files that are no pictures kit reads: e.heic, notes.txt`."""
    return f"passed over {_counted(paths, 'file')} {why[len(paths) > 1]}: {_names(paths)}"


def _counted(paths: Sequence[Path], noun: str) -> str:
    return f"{len(paths):,} {noun}{'' if len(paths) == 1 else 's'}"


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths[:_NAMED]) + (", ..." if len(paths) > _NAMED else "")


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or (path.name.startswith("__") and path.is_dir())
