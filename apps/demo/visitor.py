"""What belongs to one visitor: the bundle in sight, the process that runs it, what was uploaded. Nothing of it is shared.

Bundles that are trusted (apps.demo.places) run in a process without limits. All others run in one that may take LIMIT_BYTES
of memory and, for each question, LIMIT_SECONDS; even what they take and give is asked of such a process.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import weakref
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from apps.demo import places
from apps.demo.describing import described
from apps.demo.spare import spare
from apps.demo.worker import NO_LIMITS, Answer, Limits, Worker
from kit import ready
from kit.bundle import Bundle
from kit.bundle.packed import SUFFIX, looks_packed
from kit.errors import BundleNotFound, KitError, StorageUnavailable, UsageError
from kit.runtime import registry
from kit.system.machine import this_machine
from kit.system.progress import OnProgress, silent
from kit.tensors import Tensors

LIMIT_BYTES = 2 * 10**9
LIMIT_SECONDS = 30.0
LIMIT_CPU_SECONDS = 900
MAX_UPLOAD_MB = 200
FIRST_RUNTIMES = ("onnxruntime", "openvino")
"""Those that are open from the start, where they are installed; PyTorch takes some seconds to import."""

OPENING_SECONDS = {"pytorch": 6.0, "pytorch-compile": 25.0}
"""How long a variant may take to open in the slow runtimes."""

_PATIENT_SECONDS = 600.0


@dataclass(frozen=True)
class Contestant:
    """A variant in a runtime, open or with the reason why it is not."""

    number: int
    variant: str
    runtime: str
    provider: str
    nodes: str
    problem: str
    fix: str

    @property
    def name(self) -> str:
        """What it is called among the others."""
        return f"{self.variant} · {self.runtime}"

    @property
    def called(self) -> str:
        """What a sentence calls it."""
        return f"{self.variant} in {self.runtime}"


@dataclass(frozen=True)
class Checked:
    """A packed file that holds: where it lies unpacked, what it is, and what was checked, a sentence each."""

    place: Path
    bundle: Bundle
    said: tuple[str, ...]


@dataclass
class Visitor:
    """One visitor's own things.

    Attributes:
        path: Of the bundle in sight; what `kit demo` was started with at first.
        artifacts_only: Open no path that is not trusted, except uploads.
        seconds: How long a question about a stranger's bundle may take.
        checked: Packed files that were checked, by the names under which they are listed: where they lie unpacked.
        opened: Bundles that were opened by their path, by name.
        bench: The apps.demo.errand.Errand that measures; None if nothing is measured.
        benches: What was measured or uploaded, by path of the bundle and then by name.
        settings: Of the forms, by path of the bundle and name.
        errand: Other work that goes on, with its key; `stopped` and `wanted`: keys of work that was stopped or waits.
        ended: Other work that has ended, and that nobody has come back for yet, by its key.
        results: What was found about the bundle in sight, kept for the next drawing of the page.
    """

    path: str
    artifacts_only: bool = False
    seconds: float = LIMIT_SECONDS
    checked: dict[str, str] = field(default_factory=dict)
    opened: dict[str, str] = field(default_factory=dict)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix=places.VISITORS)).resolve())
    bench: Any = None
    benches: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    errand: tuple[Hashable, Any] | None = None
    stopped: Hashable = None
    wanted: Hashable = None
    ended: dict[Hashable, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    _told: Path | None = None
    _worker: Worker | None = None
    _looking: Worker | None = None
    _stamp: str = ""
    _rooms: int = 0
    _seen: tuple[tuple[str, int, int], Bundle] | None = None
    _opened: dict[tuple[str, tuple[str, ...]], list[Contestant]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        try:
            self._told = places.find(self.path)
            self.path = str(self._told)
        except KitError:  # the page says so: it opens the same path
            self._told = None

    @property
    def told(self) -> str:
        """The path of what `kit demo` was started with; empty if there is none."""
        return "" if self._told is None else str(self._told)

    @property
    def is_strange(self) -> bool:
        """Whether the bundle in sight runs with limits."""
        return not places.is_trusted(Path(self.path), self._told)

    @property
    def is_own(self) -> bool:
        """Whether the bundle in sight lies in the visitor's own folder, where packed files are unpacked."""
        return Path(self.path).is_relative_to(self.folder)

    def place(self, name: str) -> Path:
        """Return the place of a bundle that this visitor may open; nothing of it is opened.

        Raises:
            BundleNotFound: There is none, or it is another visitor's.
            BundleInvalid: Its place cannot be read.
            UsageError: Only artifacts may be opened, and it is none.
        """
        found = places.find(name)
        if found.is_relative_to(self.folder) or places.is_trusted(found, self._told):
            return found
        if places.is_of_visitors(found):
            raise BundleNotFound(f"there is no bundle {name!r}")
        if self.artifacts_only:
            raise UsageError(f"{name} is none of this page's bundles", hint="choose one of the list, or upload a .kit")
        return found

    def look(self, place: Path) -> Bundle:
        """Return what a bundle is, found out in another process if it might do harm; raises KitError if that fails."""
        if places.is_trusted(place, self._told) and not ready.is_ready(place):
            return ready.find(place)
        with self._apart(place) as worker:
            answer = worker.ask("apps.demo.describing:describe", {"path": str(place)}, seconds=self._patience(place))
        return described(place, answer)

    @contextlib.contextmanager
    def _apart(self, place: Path) -> Iterator[Worker]:
        """Start a process that looks at a bundle before it is put in sight; `look_no_longer` ends it."""
        with Worker(self._limits(place)) as worker:
            self._looking = worker
            yield worker

    def look_no_longer(self) -> None:
        """End what `look` or `check` does."""
        if self._looking is not None:
            self._looking.stop()

    def bundle(self) -> Bundle:
        """Return the bundle in sight, looked at again only if its file or its manifest has changed; raises what `look` does."""
        place = Path(self.path)
        stamp = places.stamp(place)
        if stamp is None:
            return self.look(places.find(self.path))  # says that it is gone
        if self._seen is None or self._seen[0] != stamp:
            self._seen = (stamp, self.look(place))
        return self._seen[1]

    @property
    def stamp(self) -> str:
        """What differs if the bundle in sight was exported again."""
        return self._stamp

    def choose(self, place: Path, bundle: Bundle) -> None:
        """Put another bundle, as `place` and `look` returned it, in sight; its questions go to a process of its own."""
        stamp = places.stamp(place)
        if str(place) != self.path:
            self.path = str(place)
            self._start_over()
        self._seen = (stamp, bundle) if stamp else None

    def notice(self, bundle: Bundle) -> None:
        """Forget what was found of a bundle that has been exported again."""
        stamp = " ".join(
            [
                str(bundle.signature),
                str(bundle.manifest.task),
                *(ref.sha256 for one in bundle.variants for ref in one.files()),
            ]
        )
        if self._stamp and stamp != self._stamp:
            self._start_over()
            self.benches.pop(self.path, None)
        self._stamp = stamp

    def _start_over(self) -> None:
        self.results = {}
        self._stamp = ""
        self._seen = None
        self.errand = self.stopped = self.wanted = None
        self.ended = {}
        self.stop_bench()
        self.forget()

    def stop_bench(self) -> None:
        """End a bench that runs; what it measured is lost."""
        if self.bench is not None:
            self.bench.stop()
            self.bench = None

    def leave(self) -> None:
        """End all that runs, and take what was uploaded away."""
        self.stop_bench()
        self.forget()
        shutil.rmtree(self.folder, ignore_errors=True)

    def forget(self) -> None:
        """End the process; the next question starts another."""
        if self._worker is not None:
            self._worker.stop()
        self._worker = None
        self._opened = {}

    def ready(self) -> None:
        """Start the process, so that it has started when the first question comes."""
        if self._worker is None or not self._worker.is_alive:
            self._opened = {}
            self._worker = spare.take(self.path) or self.new_worker()

    def new_worker(self) -> Worker:
        """Start a process that may run the bundle in sight."""
        return Worker(self._limits(Path(self.path)))

    def bench_worker(self, seconds: int) -> Worker:
        """Start a process that may measure the bundle in sight on every core for some time; it ends with its visitor.

        It gives way: what others ask meanwhile is answered as if nobody measured.
        """
        limits = self._limits(Path(self.path), seconds * max(this_machine().cpus_to_use, 1))
        worker = Worker(replace(limits, gives_way=True))
        weakref.finalize(self, worker.stop)
        return worker

    def _limits(self, place: Path, cpu_seconds: int = LIMIT_CPU_SECONDS) -> Limits:
        trusted = places.is_trusted(place, self._told)
        return NO_LIMITS if trusted else Limits(memory_bytes=LIMIT_BYTES, cpu_seconds=cpu_seconds)

    def _patience(self, place: Path) -> float:
        return _PATIENT_SECONDS if places.is_trusted(place, self._told) else self.seconds

    def ask(
        self,
        task: str,
        values: dict[str, Any] | None = None,
        arrays: Tensors | None = None,
        *,
        on_progress: OnProgress = silent,
    ) -> Answer:
        """Have a task done, such as `jobs:predict` of apps.demo; raises KitError with the reason if that fails."""
        self.ready()
        assert self._worker is not None  # just started
        patience = self._patience(Path(self.path))
        return self._worker.ask(f"apps.demo.{task}", values, arrays, seconds=patience, on_progress=on_progress)

    def contestants(self, runtimes: tuple[str, ...], *, on_progress: OnProgress = silent) -> list[Contestant]:
        """Open every variant in these runtimes, unless they are open already."""
        self.ready()
        key = (self.path, runtimes)
        if key not in self._opened:
            asked = {"path": self.path, "runtimes": list(runtimes)}
            told = self.ask("jobs:open_bundle", asked, on_progress=on_progress).told["contestants"]
            self._opened = {key: [Contestant(number, **one) for number, one in enumerate(told)]}
        return self._opened[key]

    def keep_upload(self, data: bytes) -> Path:
        """Write an upload into a folder of its own and return its path; raises StorageUnavailable if that fails."""
        path = self._room() / f"upload{SUFFIX}"
        try:
            path.write_bytes(data)
        except OSError as error:
            raise StorageUnavailable(f"the upload cannot be kept: {error.strerror or error}") from error
        return path

    def needs_check(self, place: Path) -> bool:
        """Whether it is a packed file from elsewhere, which is checked before it is put in sight."""
        return not places.is_trusted(place, self._told) and looks_packed(place)

    def check(self, path: Path, name: str, on_progress: OnProgress) -> Checked:
        """Check a packed file in a process with limits, which unpacks it into the visitor's folder.

        Args:
            path: Of the packed file; an upload is not kept.
            name: What its sender calls it; its bundle is called so.
            on_progress: Told what is being checked.

        Raises:
            KitError: It is refused; nothing of it is kept.
        """
        is_upload = path.is_relative_to(self.folder)
        into = self._room() / re.sub(r"-[0-9a-f]{8}$", "", _stem(name))
        asked = {"path": str(path), "into": str(into)}
        try:
            with self._apart(into) as worker:
                told = worker.ask("apps.demo.jobs:check", asked, seconds=self.seconds, on_progress=on_progress).told
                answer = worker.ask("apps.demo.describing:describe", {"path": str(into)}, seconds=self.seconds)
        except BaseException:  # a process that is ended cleans nothing up
            shutil.rmtree(into.parent, ignore_errors=True)
            raise
        finally:
            if is_upload:
                path.unlink(missing_ok=True)
        self.checked[f"{told['name']} ({places.UPLOADED if is_upload else 'checked'})"] = str(into)
        return Checked(into, described(into, answer), tuple(map(str, told["checked"])))

    def _room(self) -> Path:
        self._rooms += 1
        room = self.folder / str(self._rooms)
        try:
            room.mkdir(parents=True)
        except OSError as error:
            raise StorageUnavailable(f"the upload cannot be kept: {error.strerror or error}") from error
        return room


def _stem(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", Path(name).stem)[-60:].strip("._-") or "bundle"


def installed_runtimes() -> tuple[str, ...]:
    """Return the runtimes that are quick and installed here: no reference, no other browser, no converter."""
    left_out = {"onnx-reference", "onnxruntime-plain", registry.BROWSER, "mnn"}
    return tuple(name for name in registry.names() if name not in left_out and registry.is_here(name))


def first_runtimes() -> tuple[str, ...]:
    """Return the runtimes that are open from the start."""
    return tuple(name for name in installed_runtimes() if name in FIRST_RUNTIMES)
