"""A bench that runs in a process of its own, while the page goes on: its progress, its end, and the button that stops it."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apps.demo.worker import Worker
from kit.bench.results import Results, from_json
from kit.errors import KitError


@dataclass
class BenchJob:
    """One run. The page looks at its fields every half second.

    Attributes:
        what: What is being done.
        share: Of all, 0 to 1.
        results: When it is done.
        problem: Why it is not.
    """

    worker: Worker
    path: str
    request: dict[str, Any]
    seconds: float
    what: str = "starting a process"
    share: float = 0.0
    results: Results | None = None
    problem: str = ""
    stopped: bool = False
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        """Start at once."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether there is anything to wait for."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the process; what was measured is lost."""
        self.stopped = True
        self.worker.stop()

    def _run(self) -> None:
        try:
            with self.worker:
                answer = self.worker.ask(
                    "apps.demo.jobs:measure",
                    {"path": self.path, "request": self.request},
                    seconds=self.seconds,
                    on_progress=self._told,
                )
            self.results = from_json(json.loads(answer.told["results"]), Path("measured here"))
        except KitError as error:
            self.problem = "" if self.stopped else f"{error}. {error.hint}"
        except Exception as error:  # noqa: BLE001 - the border of a thread: nobody else would hear of it
            self.problem = f"a defect of kit: {type(error).__name__}: {error}"

    def _told(self, what: str, share: float | None = None) -> None:
        self.what, self.share = what, self.share if share is None else share
