"""Prometheus figures of the service. Nothing of a payload is in them, and label values are names of models alone."""

from __future__ import annotations

import os

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

CONTENT_TYPE = CONTENT_TYPE_LATEST
MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def share(folder: str) -> None:
    """Keep the figures of this process, and of those that it forks, together in a folder."""
    os.environ[MULTIPROCESS] = folder
    values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call]  # chosen when the package was imported


def forget(pid: int) -> None:
    """Leave out what a process that ended was doing; what it did still counts."""
    mark_process_dead(pid)  # type: ignore[no-untyped-call]


class Figures:
    """All figures of a server."""

    def __init__(self) -> None:
        own = CollectorRegistry()
        by_model = ("model", "version")
        self.latency = Histogram(
            "kit_request_seconds",
            "From the body of a request to its answer.",
            by_model,
            registry=own,
            buckets=_SECONDS,
        )
        self.queue = Histogram("kit_queue_seconds", "Waiting for the model.", by_model, registry=own, buckets=_SECONDS)
        self.calls = Histogram("kit_call_seconds", "The model's calls.", by_model, registry=own, buckets=_SECONDS)
        self.rows = Histogram("kit_call_rows", "Samples in a call.", by_model, registry=own, buckets=_ROWS)
        self.failures = Counter(
            "kit_failures", "Requests without an answer, by cause.", ("model", "cause"), registry=own
        )
        self.waiting = Gauge(
            "kit_waiting_requests", "Requests in the queue.", by_model, registry=own, multiprocess_mode="livesum"
        )
        self.info = Gauge(
            "kit_model_info",
            "1 for each model that is ready.",
            ("model", "version", "variant", "runtime", "provider", "placement", "sha256"),
            registry=own,
            multiprocess_mode="livemax",
        )
        self.refused_swaps = Counter(
            "kit_refused_swaps", "Files that changed on disk and were not taken.", ("model",), registry=own
        )
        self._registry = own

    def text(self) -> bytes:
        """Return them as Prometheus reads them; of all workers, if there are several."""
        if MULTIPROCESS in os.environ:
            together = CollectorRegistry()
            MultiProcessCollector(together)  # type: ignore[no-untyped-call]
            return generate_latest(together)
        return generate_latest(self._registry)


class ModelFigures:
    """The figures of one version, its labels looked up once."""

    def __init__(self, figures: Figures, name: str, version: str) -> None:
        self.latency = figures.latency.labels(name, version)
        self.queue = figures.queue.labels(name, version)
        self.waiting = figures.waiting.labels(name, version)
        self._calls = figures.calls.labels(name, version)
        self._rows = figures.rows.labels(name, version)

    def on_call(self, rows: int, microseconds: float) -> None:
        """Count a call of the model."""
        self._calls.observe(microseconds * 1e-6)
        self._rows.observe(rows)
