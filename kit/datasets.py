"""Data to check a model with: the set a bundle was made with, a set that a package registers by name, or a user's own files.

    splits = of(bundle)                                 # None if they are not on this machine
    splits = load("reviews.jsonl", task, signature)     # a path that the task reads, split by what each sample holds

A plug is a module or an object with `names`, `load` and `of`, registered under the entry point group `kit.datasets`. It reads
what is on this machine and downloads nothing.

```toml
[project.entry-points."kit.datasets"]
mine = "my_package.data"
```
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kit import samples
from kit.bundle import Bundle
from kit.errors import DatasetInvalid, Unavailable, UsageError
from kit.samples import Samples, Splits
from kit.system.packages import entry_points, load_plug, plugged
from kit.tasks.base import Task
from kit.tensors import Signature

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "kit.datasets"

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_CALLED = {TRAIN: TRAIN, "training": TRAIN, "val": VALIDATION, "valid": VALIDATION, VALIDATION: VALIDATION, TEST: TEST}
"""What parts of a data set are called, as folders or as files."""

_SHARES = ((TRAIN, 0.5), (VALIDATION, 0.75), (TEST, 1.0))
_FEW = 8
"""Samples that each part has at least, if there are enough for all three."""


class Plug(Protocol):
    """Data sets of a package."""

    def names(self) -> Sequence[str]:
        """Return the names that `load` knows."""

    def load(self, name: str, task: Task, signature: Signature, *, data_dir: Path | None = None) -> Splits:
        """Read a data set for a model.

        Raises:
            UsageError: The model does not take such samples.
            DatasetUnavailable: It is not on this machine.
            DatasetInvalid: Its files are corrupt.
        """

    def of(self, bundle: Bundle, *, data_dir: Path | None = None) -> Splits | None:
        """Read the data set a bundle was made with; None if the plug does not know it, or it is not on this machine.

        Raises:
            DatasetInvalid: Its files are corrupt.
        """


def names() -> tuple[str, ...]:
    """Return the registered data sets; a package whose plug does not work has none."""
    return tuple(dict.fromkeys(name for plug in _plugs() for name in plug.names))


def of(bundle: Bundle, *, data_dir: Path | None = None) -> Splits | None:
    """Return the labelled data a bundle was made with; None if it is not on this machine, or nobody knows it.

    Raises:
        DatasetInvalid: They are here, and corrupt or altered.
    """
    for plug in _plugs():
        with contextlib.suppress(Unavailable), plugged(plug.entry):  # another plug may know it
            found = plug.plug.of(bundle, data_dir=data_dir)
            if found is not None:
                return found
    return None


def load(name: str, task: Task, signature: Signature, *, data_dir: Path | None = None) -> Splits:
    """Read a data set: a registered name, or a path that the task reads.

    A folder that has the name of a registered set is typed as `./mnist`. `data_dir` is where registered sets lie, and
    where a path that is not found is looked for.

    A folder with parts of its own keeps them: `train`, `val` or `validation`, and `test`, as folders or as files such
    as `train.csv`. What has none is split by a hash of each sample, whatever else is in the set: half for training, a
    quarter each for validation and test.

    Raises:
        UsageError: There is no such set and no such path, or the model does not take its samples.
        DatasetUnavailable: A registered set that is not on this machine.
        Unavailable: The package that registers it failed; or there is no such path, and a package cannot be asked.
        DatasetInvalid: Files that are corrupt, or hold something else.
    """
    broken: list[Unavailable] = []
    for plug in _plugs(broken):
        if name in plug.names:
            with plugged(plug.entry):
                return plug.plug.load(name, task, signature, data_dir=data_dir)
    try:
        path = _located(name, data_dir)
    except UsageError:
        if broken:  # the name may be one of its own
            raise broken[0] from None
        raise
    parts = _parts(path)
    if not parts:
        return _split(path.resolve().name, _read(path, task, signature), signature)
    return _from_parts(
        path.resolve().name, {part: _read(one, task, signature) for part, one in parts.items()}, signature
    )


def at_hand(name: str, task: Task, signature: Signature, *, data_dir: Path | None = None) -> Splits | None:
    """Read a registered data set; None if it is not here, or nobody knows the name. Corrupt files still raise."""
    for plug in _plugs():
        if name in plug.names:
            try:
                with plugged(plug.entry):
                    return plug.plug.load(name, task, signature, data_dir=data_dir)
            except (Unavailable, UsageError):
                return None
    return None


@dataclass(frozen=True)
class _Loaded:
    entry: EntryPoint
    plug: Plug
    names: tuple[str, ...]


def _plugs(broken: list[Unavailable] | None = None) -> Iterator[_Loaded]:
    """Give the plugs that load; the others are left out, and told in `broken`."""
    for entry in entry_points(GROUP):
        try:
            plug: Plug = load_plug(entry)
            with plugged(entry):
                known = tuple(plug.names())
        except Unavailable as error:
            if broken is not None:
                broken.append(error)
            continue
        yield _Loaded(entry, plug, known)


def _located(name: str, data_dir: Path | None) -> Path:
    path = Path(name).expanduser()
    if name and not path.exists() and data_dir is not None:
        path = data_dir / name
    if not name or not path.exists():
        known = ", ".join(names())
        raise UsageError(
            f"there is no data set and no file called {name!r}",
            hint=f"choose one of: {known}; or a file or folder of your own" if known else "name a file or folder",
        )
    return path


def _parts(path: Path) -> dict[str, Path]:
    """Return the parts that a folder is laid out in; none unless there is more than one."""
    if not path.is_dir():
        return {}
    found: dict[str, Path] = {}
    for one in sorted(path.iterdir()):
        part = _CALLED.get((one.name if one.is_dir() else one.stem).lower())
        if part is not None and not one.name.startswith("."):
            found.setdefault(part, one)
    return found if len(found) > 1 else {}


def _read(path: Path, task: Task, signature: Signature) -> tuple[Samples, ...]:
    groups = task.samples(path, signature)
    try:
        samples.check(groups, signature, name=f"samples in {path}")
    except UsageError as error:
        raise DatasetInvalid(str(error), hint=error.hint) from error
    return tuple(groups)


def _from_parts(dataset: str, parts: dict[str, tuple[Samples, ...]], signature: Signature) -> Splits:
    if TEST not in parts:
        parts[VALIDATION], parts[TEST] = _divided(parts[VALIDATION], signature, ((0, 0.5), (1, 1.0)))
    if VALIDATION not in parts:
        parts[TRAIN], parts[VALIDATION] = _divided(parts[TRAIN], signature, ((0, 0.75), (1, 1.0)))
    return Splits(dataset=dataset, train=parts.get(TRAIN), validation=parts[VALIDATION], test=parts[TEST])


def _split(dataset: str, groups: tuple[Samples, ...], signature: Signature) -> Splits:
    if samples.count(groups, signature) < len(_SHARES):  # too few to hold any out
        return Splits(dataset=dataset, train=groups, validation=groups, test=groups, validation_name=TRAIN)
    shares = tuple((place, share) for place, (_, share) in enumerate(_SHARES))
    train, validation, test = _divided(groups, signature, shares)
    return Splits(dataset=dataset, train=train, validation=validation, test=test)


@dataclass(frozen=True)
class _One:
    """A sample: its group and its row in it, and where its hash falls between 0 and 1."""

    group: int
    row: int
    place: float


def _divided(
    groups: Sequence[Samples], signature: Signature, shares: Sequence[tuple[int, float]]
) -> list[tuple[Samples, ...]]:
    """Divide samples by their hashes; parts that are left with next to none get the nearest ones of the largest part."""
    every = sorted(_hashed(groups, signature), key=lambda one: (one.place, one.group, one.row))
    parts: list[list[_One]] = [[] for _ in shares]
    for one in every:
        parts[next(part for part, share in shares if one.place < share or share >= 1.0)].append(one)
    least = min(_FEW, max(len(every) // (2 * len(shares)), 1))
    for part in parts:
        while len(part) < least and len(largest := max(parts, key=len)) > least:
            part.append(largest.pop())
    if not all(parts):  # a single sample in all
        parts = [list(every) for _ in shares]
    return [_taken(groups, signature, part) for part in parts]


def _hashed(groups: Sequence[Samples], signature: Signature) -> Iterator[_One]:
    for number, group in enumerate(groups):
        for row in range(signature.rows(group.inputs)):
            digest = hashlib.sha256()
            for name, array in signature.take(group.inputs, slice(row, row + 1)).items():
                digest.update(f"{name} {array.dtype} {array.shape[1:]} ".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
            yield _One(number, row, int.from_bytes(digest.digest()[:6]) / 2**48)


def _taken(groups: Sequence[Samples], signature: Signature, chosen: Sequence[_One]) -> tuple[Samples, ...]:
    rows: dict[int, list[int]] = {}
    for one in sorted(chosen, key=lambda one: (one.group, one.row)):
        rows.setdefault(one.group, []).append(one.row)
    return tuple(_rows_of(groups[number], signature, np.array(kept, np.int64)) for number, kept in rows.items())


def _rows_of(group: Samples, signature: Signature, rows: Any) -> Samples:
    return group if len(rows) == signature.rows(group.inputs) else group.take(signature, rows)
