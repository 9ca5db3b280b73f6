"""Measuring for a page: one bench at a time on a machine, in a process of its own that gives way to everybody's questions."""

from __future__ import annotations

import json
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

from apps.demo.errand import Errand
from apps.demo.visitor import Visitor
from apps.demo.worker import Worker, WorkerStopped
from kit.bench.results import Results, from_json
from kit.system.progress import OnProgress

_GLANCE_SECONDS = 0.2
_measuring = threading.Lock()


def start(visitor: Visitor, request: dict[str, Any], *, budget_seconds: int, grace_seconds: int) -> Errand[Results]:
    """Measure the bundle in sight, after whatever is measured for other visitors: two at once would slow each other.

    What was found stays with the visitor, whatever is in sight when it ends. `request`: see apps.demo.jobs.measure;
    `budget_seconds`: of the rounds; `grace_seconds`: for what comes before and after them.
    """
    worker = visitor.bench_worker(budget_seconds + grace_seconds)
    asked: dict[str, Any] = {"path": visitor.path, "request": {**request, "budget_seconds": budget_seconds}}

    def measured(on_progress: OnProgress) -> Results:
        with worker:
            _wait_for_turn(worker, on_progress)
            try:
                answer = worker.ask(
                    "apps.demo.jobs:measure", asked, seconds=budget_seconds + grace_seconds, on_progress=on_progress
                )
            finally:
                _measuring.release()
        found = from_json(json.loads(answer.told["results"]), Path("measured here"))
        visitor.benches.setdefault(asked["path"], {})[f"measured here, {when(found)}"] = found
        return found

    return Errand(measured, worker.stop)


def when(found: Results) -> str:
    """Return when a run began, in the words of its file if that is no time."""
    try:
        return f"{datetime.fromisoformat(found.created):%d %B %Y, %H:%M:%S}"
    except ValueError:
        return found.created


def _wait_for_turn(worker: Worker, on_progress: OnProgress) -> None:
    """Take the machine for measuring; raises WorkerStopped if the visitor has stopped it meanwhile."""
    while not _measuring.acquire(timeout=_GLANCE_SECONDS):
        on_progress("Waiting until the measurement of another visitor has ended", 0.0)
        if not worker.is_alive:
            raise WorkerStopped("the process has ended", hint="try again")
