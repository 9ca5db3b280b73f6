"""Names and versions of the models that are served: what lies where, what is ready, and how one takes another's place.

A source is a bundle, a packed bundle, a ready .onnx, or a folder of such: a folder whose children are called 1, 2, ... holds
versions of one model. `load` finds models in these folders alone.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from apps.serve.metrics import Figures, ModelFigures
from apps.serve.model import How, Model
from apps.serve.refusals import Refused
from kit import ready
from kit.bundle.manifest import MANIFEST
from kit.bundle.packed import SUFFIX
from kit.errors import KitError, UsageError
from kit.system.files import PARTIAL

log = logging.getLogger("kit.serve")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DIGITS = re.compile(r"[1-9][0-9]{0,8}")
_HASHED = re.compile(r"-[0-9a-f]{8}$")
ONLY_VERSION = "1"
READY, UNAVAILABLE, LOADING = "READY", "UNAVAILABLE", "LOADING"
_UNLOADED = "unloaded"  # the reason of what a client asked to be closed: nobody opens it again by himself

Opened = dict[tuple[Path, tuple[int, ...]], Model]


@dataclass(eq=False)
class Entry:
    """A version of a model, whether it is loaded or not.

    Attributes:
        version: Digits.
        state: One of READY, LOADING and UNAVAILABLE, in the protocol's words.
        reason: Why it is not ready; kept from clients.
        stamp: Of its file when it was opened; another one means that it was replaced.
    """

    name: str
    version: str
    source: Path
    state: str = UNAVAILABLE
    reason: str = "not loaded"
    model: Model | None = None
    stamp: tuple[int, ...] = ()
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Repository:
    """All models of a server.

    Args:
        sources: Paths or names of bundles, or folders of them; `NAME=PATH` gives a name of one's own.
        how: How they are opened.
        figures: Of the metrics.
        opened: Models that are open already, by source and the stamp of its file; a worker inherits them.

    Raises:
        UsageError: A source holds no model, or two have one name.
    """

    def __init__(self, sources: Sequence[str], how: How, figures: Figures, *, opened: Opened | None = None) -> None:
        self._how = how
        self._figures = figures
        self._opened = opened or {}
        self._folders: list[Path] = []
        self._entries: dict[str, dict[str, Entry]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._problem = ""
        for source in sources:
            for name, version, path in found(source):
                self._add(name, version, path)
            if _is_folder_of_models(Path(source)):
                self._folders.append(Path(source))

    @property
    def entries(self) -> Iterator[Entry]:
        """Every version of every model."""
        return (entry for versions in self._entries.values() for entry in versions.values())

    @property
    def is_ready(self) -> bool:
        """Whether every model that was asked for is ready."""
        return all(entry.state == READY or entry.reason == _UNLOADED for entry in self.entries)

    def model(self, name: str, version: str | None = None) -> Model:
        """Return a model that is ready; without a version, the highest one that is.

        Raises:
            Refused: 404: there is no such model; 503: it is not ready.
        """
        model = self.entry(name, version).model
        if model is None:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the model is not ready", cause="not_ready")
        return model

    def entry(self, name: str, version: str | None = None) -> Entry:
        """Return a version, by default the highest that is ready, else the highest; raises Refused 404 for none."""
        versions = self._entries.get(name)
        if versions is None:
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such model", cause="unknown_model")
        if version:
            if version not in versions:
                raise Refused(HTTPStatus.NOT_FOUND, "there is no such version", cause="unknown_model")
            return versions[version]
        if len(versions) == 1:
            return next(iter(versions.values()))
        return max(versions.values(), key=lambda one: (one.model is not None, int(one.version)))

    def knows(self, name: str) -> bool:
        """Whether there is a model of this name, ready or not."""
        return name in self._entries

    def versions(self, name: str) -> list[str]:
        """Return the versions of a model that are ready."""
        return [one.version for one in self._entries[name].values() if one.state == READY]

    def index(self) -> list[dict[str, str]]:
        """Return the protocol's list of all models."""
        return [
            {"name": one.name, "version": one.version, "state": one.state, "reason": "" if one.model else one.reason}
            for one in self.entries
        ]

    async def load_all(self) -> None:
        """Open every model that is not open; those that fail are not ready, and the log says why."""
        for entry in list(self.entries):
            await self._load(entry)

    async def load(self, name: str) -> None:
        """Open every version of a model of the repository folders, or open it anew.

        Raises:
            Refused: 404: no folder holds it; 400: it is not proved here.
        """
        self.look_for_new()
        self.entry(name)
        loaded = [await self._load(entry, anew=True) for entry in list(self._entries[name].values())]
        if not all(loaded):
            raise Refused(HTTPStatus.BAD_REQUEST, "the model does not load; the server's log says why", cause="load")

    async def unload(self, name: str) -> None:
        """Answer what a model was asked, then close it; raises Refused 404 if there is none."""
        self.entry(name)
        for entry in list(self._entries[name].values()):  # another request may enter one meanwhile
            async with entry.lock:
                model, entry.model = entry.model, None
                entry.state, entry.reason = UNAVAILABLE, _UNLOADED
                if model is not None:
                    self._tell(model, is_ready=False)
                    await model.retire(asyncio.sleep)

    async def watch(self, every: float) -> None:
        """Look for files that changed, for ever: prove them, and let them take the place of the old ones."""
        while True:
            await asyncio.sleep(every)
            self.look_for_new()
            for entry in list(self.entries):
                now = stamp_of(entry.source)
                if entry.reason == _UNLOADED or not now or now == entry.stamp:
                    continue
                if now == await self._settled(entry) and entry.reason != _UNLOADED:
                    await self._load(entry, anew=True)

    def look_for_new(self) -> None:
        """Enter models that have come into the repository folders; the log says if one cannot be looked at."""
        problem = ""
        for folder in self._folders:
            try:
                for name, version, path in _below(folder):
                    if version not in self._entries.get(name, {}):
                        self._add(name, version, path)
            except (KitError, OSError) as error:
                problem = str(error)
        if problem and problem != self._problem:
            log.error("a folder is not looked at", extra={"fields": {"problem": problem}})
        self._problem = problem

    async def close(self) -> None:
        """Answer what was taken and close everything."""
        for entry in list(self.entries):
            model, entry.model = entry.model, None
            entry.state = UNAVAILABLE
            if model is not None:
                await model.retire(asyncio.sleep)

    async def _settled(self, entry: Entry) -> tuple[int, ...]:
        await asyncio.sleep(0.2)  # a file that is still being copied changes meanwhile
        return stamp_of(entry.source)

    async def _load(self, entry: Entry, *, anew: bool = False) -> bool:
        async with entry.lock:
            if entry.model is not None and not anew:
                return True
            stamp = stamp_of(entry.source)
            if entry.model is None:
                entry.state, entry.reason = LOADING, "loading"
            try:
                model = await self._open(entry, stamp)
            except Exception as error:  # noqa: BLE001 - whatever one file brings, the others are served
                entry.stamp = stamp  # not tried again until it changes
                self._refused(entry, error)
                return False
            old, entry.stamp = entry.model, stamp
            model.start(ModelFigures(self._figures, entry.name, entry.version))
            if old is not None:
                self._tell(old, is_ready=False)
            self._tell(model, is_ready=True)
            entry.model, entry.state, entry.reason = model, READY, ""
            log.info("ready", extra={"fields": {**model.describe(), "proof": model.proof}})
            if old is not None:
                retiring = asyncio.get_running_loop().create_task(old.retire(asyncio.sleep))
                self._tasks.add(retiring)
                retiring.add_done_callback(self._tasks.discard)
            return True

    async def _open(self, entry: Entry, stamp: tuple[int, ...]) -> Model:
        inherited = self._opened.pop((entry.source, stamp), None)
        if inherited is not None:
            return inherited
        return await asyncio.to_thread(Model.opened, entry.name, entry.version, entry.source, self._how)

    def _refused(self, entry: Entry, error: Exception) -> None:
        kept = entry.model is not None
        if kept:
            self._figures.refused_swaps.labels(entry.name).inc()
        else:
            entry.state, entry.reason = UNAVAILABLE, "it does not load, or is not proved here"
        said = {"model": entry.name, "version": entry.version, "problem": str(error) or repr(error), "kept_old": kept}
        said["next"] = getattr(error, "hint", "")
        log.error("not loaded", extra={"fields": said})

    def _tell(self, model: Model, *, is_ready: bool) -> None:
        described = model.describe()
        labels = {
            name: described[name]
            for name in ("model", "version", "variant", "runtime", "provider", "placement", "sha256")
        }
        self._figures.info.labels(**labels).set(1 if is_ready else 0)

    def _add(self, name: str, version: str, path: Path) -> None:
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} can be no name of a model", hint="give it one: kit serve NAME=PATH")
        versions = self._entries.setdefault(name, {})
        if version in versions:
            raise UsageError(
                f"two models are called {name}: {versions[version].source} and {path}",
                hint=f"give one of them another name: kit serve NAME={path}",
            )
        versions[version] = Entry(name, version, path)


def stamp_of(source: Path) -> tuple[int, ...]:
    """Return what changes when a model's file is replaced; nothing if there is none now."""
    path = source / MANIFEST if source.is_dir() else source
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def found(source: str) -> Iterator[tuple[str, str, Path]]:
    """Give name, version and path of every model that a word of the command line means."""
    named, is_named, rest = source.partition("=")
    if is_named and _NAME.fullmatch(named) and not Path(source).exists():
        yield named, ONLY_VERSION, _origin(rest)
        return
    folder = Path(source)
    if _is_folder_of_models(folder):
        models = list(_below(folder))
        if not models:
            raise UsageError(f"the folder {source} holds no model", hint="give a folder of bundles, or a bundle")
        yield from models
        return
    path = _origin(source)
    yield _name_of(path), ONLY_VERSION, path


def _origin(source: str) -> Path:
    if Path(source).is_file():
        return Path(source)
    return ready.find(source).origin


def _below(folder: Path) -> Iterator[tuple[str, str, Path]]:
    for child in sorted(folder.iterdir()):
        if child.name.startswith((".", PARTIAL)) or not _NAME.fullmatch(child.name):
            continue
        if _is_model(child):
            yield _name_of(child), ONLY_VERSION, child
        elif child.is_dir():
            for version in sorted(child.iterdir()):
                if not _DIGITS.fullmatch(version.name):
                    continue
                inside = [version] if _is_model(version) else sorted(version.glob("*.onnx"))
                if inside:
                    yield child.name, version.name, inside[0]


def _is_model(path: Path) -> bool:
    if path.is_dir():
        return (path / MANIFEST).is_file()
    return path.suffix in {SUFFIX, ".onnx"} and path.is_file()


def _is_folder_of_models(path: Path) -> bool:
    return path.is_dir() and not (path / MANIFEST).is_file()


def _name_of(path: Path) -> str:
    return path.name if path.is_dir() else _HASHED.sub("", path.stem)
