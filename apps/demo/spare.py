"""A process for the next visitor, in which the page's own bundle is open already: starting one takes longer than a look."""

from __future__ import annotations

import contextlib
import threading

from apps.demo.worker import Worker
from kit.errors import KitError

_REST_SECONDS = 5.0
"""Between a visitor who took the spare one and the start of another: the visitor's own questions come first."""


class Spare:
    """At most one process, started ahead of its use."""

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._asked: tuple[str, tuple[str, ...]] | None = None
        self._changing = threading.Lock()

    def prepare(self, path: str, runtimes: tuple[str, ...]) -> None:
        """Start a process that opens a bundle without limits; it is trusted. Returns at once."""
        worker = Worker()
        with self._changing:
            self._worker, self._asked = worker, (path, runtimes)
        threading.Thread(target=_open, args=(worker, path, runtimes), daemon=True).start()

    def take(self, path: str) -> Worker | None:
        """Return the process if it was started for this bundle, and have another one started soon; None if there is none."""
        with self._changing:
            if self._asked is None or self._asked[0] != path or self._worker is None:
                return None
            found, self._worker = self._worker, None
            again = threading.Timer(_REST_SECONDS, self.prepare, self._asked)
        again.daemon = True
        again.start()
        return found if found.is_alive else None


def _open(worker: Worker, path: str, runtimes: tuple[str, ...]) -> None:
    with contextlib.suppress(KitError):  # whoever takes it asks the same, and is told
        worker.ask("apps.demo.jobs:open_bundle", {"path": path, "runtimes": list(runtimes)})


spare = Spare()
