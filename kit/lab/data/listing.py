"""What a folder of images by class holds, before any of it is decoded: FOLDER/CLASS/IMAGE, as torchvision's ImageFolder.

Splits are FOLDER/train/CLASS and FOLDER/test/CLASS (or val/); without them about a fifth of each class is held out for
testing, by a hash of each file's content: files that are added, renamed or moved within a class move no other, and copies of a
picture never stand on both sides.

Below a class folders may be nested, and links are followed. What is hidden counts for nothing; files that are no pictures are
passed over, and that is said (kit/tasks/images/folders.py has the rules).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kit.errors import DatasetInvalid
from kit.system.wording import counted
from kit.tasks.images import folders
from kit.tasks.images.folders import SUFFIXES

TEST_SHARE = 0.2
LEAST_IMAGES = 5
"""Fewest images of a class: less would leave nothing to train, to validate or to test on."""

_TRAIN, _TEST, _VALIDATION = "train", "test", ("val", "valid", "validation")
_NAMED = 5  # files named in a message, before "..."


@dataclass(frozen=True)
class Picture:
    """A file of a class: `test` is None where its content decides, and `digest` is the sha256 of that content."""

    path: Path
    label: int
    test: bool | None
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Every picture of a folder, sorted by class and content; `notes` say what was skipped or looks odd."""

    labels: tuple[str, ...]
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...]

    def sha256(self) -> str:
        """Hash what was found: classes, splits and contents, whatever the files are called."""
        lines = [*self.labels, *(f"{one.label} {one.test} {one.digest}" for one in self.pictures)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def holds_classes(folder: Path, *, nested: bool = True) -> bool:
    """Whether there are images in subfolders, or in theirs where `nested`; looks no further than the first."""
    try:
        inside = _subfolders(folder)
        train = next((path for name, path in inside.items() if name.lower() == _TRAIN), None)
        inside |= _subfolders(train) if train is not None else {}
        return any(
            folders.is_picture(path) for one in inside.values() for path in (_walk(one) if nested else _entries(one))
        )
    except DatasetInvalid:
        return False


def read(
    folder: Path,
    *,
    suffixes: frozenset[str] = SUFFIXES,
    on_share: Callable[[float], None] = lambda _: None,
) -> Listing:
    """List a folder and hash its files; `on_share` is told the share that is done, 0 to 1.

    Raises:
        DatasetInvalid: No classes or only one, too few images in one, or files that cannot be read.
    """
    labels, found, notes = _list(folder, suffixes)
    pictures = _hashed(found, on_share)
    if any(one.test is None for one in pictures):
        pictures = _split_by_content(pictures)
    _check_training(folder, labels, pictures)
    pictures.sort(key=lambda one: (one.label, one.digest, one.test))
    return Listing(labels=labels, pictures=tuple(pictures), notes=(*notes, *_copies(pictures)))


def refuse(folder: Path, problems: list[tuple[Path, str]]) -> None:
    """Raise DatasetInvalid where files could not be read, naming the first of them."""
    if not problems:
        return
    named = "; ".join(f"{path.relative_to(folder)}: {reason}" for path, reason in problems[:_NAMED])
    more = f"; and {len(problems) - _NAMED:,} more" if len(problems) > _NAMED else ""
    one = len(problems) == 1
    raise DatasetInvalid(
        f"{len(problems):,} image{'' if one else 's'} in {folder} cannot be read: {named}{more}",
        hint=f"repair {'it' if one else 'them'}, or move {'it' if one else 'them'} out of the folder",
    )


def _list(folder: Path, suffixes: frozenset[str]) -> tuple[tuple[str, ...], list[Picture], list[str]]:
    subfolders = _subfolders(folder)
    splits, notes = _splits(subfolders)
    roots = splits or [(folder, None)]
    _check_classes(folder, roots[0][0])
    labels = tuple(_subfolders(roots[0][0]))
    _check_names(labels)
    pictures: list[Picture] = []
    rest: list[Path] = []
    for root, test in roots:
        rest += [path for path in _entries(root) if not path.is_dir()]
        for name, one in _subfolders(root).items():
            if name not in labels:
                raise DatasetInvalid(
                    f"{one} is a class that {roots[0][0]} does not have", hint=f"known classes: {', '.join(labels)}"
                )
            for path in _walk(one):
                if folders.is_picture(path, suffixes):
                    pictures.append(Picture(path, labels.index(name), test))
                else:
                    rest.append(path)
    _check_counts(roots[0][0], labels, pictures)
    if splits and not any(one.test for one in pictures):
        raise DatasetInvalid(f"{folder} has a folder of test images without images in it", hint="fill or remove it")
    if rest:
        notes.append(folders.passed_over(rest, folders.OF_NO_CLASS))
    return labels, pictures, notes


def _splits(subfolders: dict[str, Path]) -> tuple[list[tuple[Path, bool | None]], list[str]]:
    """Return (folder, whether it is for testing) of each split, training first, and notes; none without splits."""
    known = {name.lower(): path for name, path in subfolders.items()}
    validation = [known[name] for name in _VALIDATION if name in known]
    tests = [known[_TEST]] if _TEST in known else validation[:1]
    if _TRAIN not in known or not tests or not _subfolders(known[_TRAIN]):
        return [], []
    more = [path for path in validation if path not in tests]
    notes = [
        f"{path.name}/ counts as training data: kit holds out a validation split of its own, and tests on {_TEST}/"
        for path in more
    ]
    others = [path.name for path in subfolders.values() if path not in {known[_TRAIN], *tests, *more}]
    if others:
        notes.append(f"left out beside {_TRAIN}/ and {tests[0].name}/: {', '.join(others)}")
    return [(known[_TRAIN], False), *((path, False) for path in more), (tests[0], True)], notes


def _check_classes(folder: Path, root: Path) -> None:
    classes = _subfolders(root)
    if len(classes) > 1:
        return
    inner = next((one for one in classes.values() if len(_subfolders(one)) > 1), None)
    hint = f"did you mean {inner}?" if inner else f"lay it out as {folder}/CLASS/IMAGE, two classes or more"
    found = f"one class alone, {next(iter(classes))!r}" if classes else "no subfolders, which are the classes"
    raise DatasetInvalid(f"{root} holds {found}", hint=hint)


def _check_names(labels: tuple[str, ...]) -> None:
    """Refuse names that are no text: they are the labels, and stand in JSON and on pages."""
    for name in labels:
        if not name.isprintable() or not name.strip():
            raise DatasetInvalid(f"the class {name!r} has no printable name", hint="rename its folder")


def _check_training(folder: Path, labels: tuple[str, ...], pictures: list[Picture]) -> None:
    """Refuse a class whose images are all for testing, since they are one and the same."""
    trained = {one.label for one in pictures if not one.test}
    for label, name in enumerate(labels):
        if label not in trained:
            raise DatasetInvalid(
                f"all images of the class {name!r} in {folder} are copies of one", hint="add others, or remove it"
            )


def _check_counts(root: Path, labels: tuple[str, ...], pictures: list[Picture]) -> None:
    counts = Counter(one.label for one in pictures if not one.test)
    few = [f"{name} ({counts[label]})" for label, name in enumerate(labels) if counts[label] < LEAST_IMAGES]
    if few:
        shown = ", ".join(few[:_NAMED]) + (", ..." if len(few) > _NAMED else "")
        raise DatasetInvalid(
            f"too few images in {len(few)} of the {len(labels)} classes of {root}: {shown}; a class needs {LEAST_IMAGES}",
            hint="add images (" + " ".join(sorted(SUFFIXES)) + "), or remove the folder",
        )


def _hashed(pictures: list[Picture], on_share: Callable[[float], None]) -> list[Picture]:
    found = []
    for done, one in enumerate(pictures):
        try:
            with one.path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:  # named with those that cannot be decoded, all at once
            digest = f"unreadable {error.strerror} {one.path.name}"
        found.append(Picture(one.path, one.label, one.test, digest))
        on_share((done + 1) / len(pictures))
    return found


def _split_by_content(pictures: list[Picture]) -> list[Picture]:
    """Hold out about a fifth of each class, one image at least."""
    held_out = [_is_for_testing(one) for one in pictures]
    for label in {one.label for one in pictures}:
        mine = [number for number, one in enumerate(pictures) if one.label == label]
        if len({held_out[number] for number in mine}) == 1:  # by chance all on one side
            least = min(mine, key=lambda number: pictures[number].digest)
            for number in mine:
                held_out[number] = pictures[number].digest == pictures[least].digest
    return [Picture(one.path, one.label, test, one.digest) for one, test in zip(pictures, held_out, strict=True)]


def _is_for_testing(picture: Picture) -> bool:
    hashed = hashlib.sha256(picture.digest.encode()).digest()
    return int.from_bytes(hashed[:4]) < TEST_SHARE * 2**32


def _copies(pictures: list[Picture]) -> Iterator[str]:
    trained = {one.digest for one in pictures if not one.test}
    both = sum(bool(one.test) and one.digest in trained for one in pictures)
    if both:
        copies = counted(both, "test image is a copy", "test images are copies")
        yield f"{copies} of training images: the accuracy flatters by as much"
    classes = Counter(digest for digest, _ in {(one.digest, one.label) for one in pictures})
    several = sum(count > 1 for count in classes.values())
    if several:
        yield f"{counted(several, 'image stands', 'images stand')} in more than one class"


def _subfolders(folder: Path) -> dict[str, Path]:
    """Return the subfolders by name, sorted as ImageFolder sorts them, without hidden ones and those of tools."""
    return {path.name: path for path in _entries(folder) if path.is_dir()}


def _walk(folder: Path) -> Iterator[Path]:
    try:
        yield from folders.walk(folder)
    except OSError as error:
        raise _invalid(folder, error) from error


def _entries(folder: Path) -> list[Path]:
    try:
        return folders.entries(folder)
    except OSError as error:
        raise _invalid(folder, error) from error


def _invalid(folder: Path, error: OSError) -> DatasetInvalid:
    return DatasetInvalid(f"{error.filename or folder} cannot be read: {error.strerror or error}")
