"""The one schema of results: what the command line, the page and a report read, and nothing else."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from kit import serial
from kit.bench.stats import Comparison, Outcome
from kit.bundle import Bundle
from kit.errors import BadInput, StorageUnavailable
from kit.machine import Machine
from kit.spec import Accuracy, Precision, Provider

SCHEMA_VERSION = 1
KIND = "kit-bench"


class Status(StrEnum):
    """Whether a row holds what was asked for."""

    OK = "ok"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"
    FALLBACK = "fallback"


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Latency of one call, whole batch, in microseconds; p99 only from 1,000 calls or more.

    Attributes:
        low_us: Lower end of the 95 % interval of the median, over rounds.
        high_us: Upper end.
        medians_us: Median of each round, in the order they ran: what another run is compared with.
    """

    calls: int
    rounds: int
    p50_us: float
    p90_us: float
    p95_us: float
    p99_us: float | None
    max_us: float
    low_us: float
    high_us: float
    images_per_second: float
    medians_us: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A row against its baseline: the fp32 variant on the CPU, same batch and threads, where there is one."""

    outcome: Outcome
    baseline: str
    comparison: Comparison | None = None

    def describe(self) -> str:
        """Return `FASTER 1.74x [1.70, 1.78]`, or `baseline`."""
        found = self.comparison
        if found is None:
            return "baseline"
        return f"{self.outcome} {found.speedup:.2f}x [{found.low:.2f}, {found.high:.2f}]"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant on one provider at one batch size.

    Attributes:
        provider: What was asked for.
        ran_on: Where it truly ran; None when it did not.
        placement: Nodes by provider, such as `cuda 6/6`.
        mode: `host`: inputs and outputs in host memory.
        accuracy_source: `live`, or `manifest` where no labelled data is at hand.
        correct_images: Which test images were read correctly, packed as by numpy.packbits, base64; empty unless live.
    """

    bundle: str
    variant: str
    precision: Precision
    sha256: str
    size_bytes: int
    runtime: str
    provider: Provider
    batch_size: int
    threads: int
    mode: str
    status: Status
    reason: str = ""
    fix: str = ""
    ran_on: Provider | None = None
    placement: str = ""
    latency: Latency | None = None
    accuracy: Accuracy | None = None
    accuracy_source: str = ""
    correct_images: str = ""
    verdict: Verdict | None = None


@dataclass(frozen=True, kw_only=True)
class Results:
    """A whole run: the machine, the tools, what was asked, and the rows."""

    schema_version: int
    kind: str
    created: str
    machine: Machine
    tools: dict[str, str]
    seed: int
    arguments: dict[str, str]
    rows: tuple[Row, ...]

    def to_json(self) -> str:
        """Return the results as JSON text."""
        return json.dumps(serial.encode(self), indent=2, ensure_ascii=False) + "\n"

    def save(self, path: Path) -> None:
        """Write the JSON file.

        Raises:
            StorageUnavailable: It cannot be written.
        """
        partial = path.with_name(f".partial-{path.name}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(self.to_json(), encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise StorageUnavailable(f"cannot write {path}: {error.strerror or error}") from error


def last_path(bundle: Bundle) -> Path:
    """Return where `kit bench` keeps its last results of a bundle: beside its folder, which only bundles write to."""
    return bundle.folder.parent / f"{bundle.folder.name}.bench.json"


def load(path: Path) -> Results:
    """Read a results file.

    Raises:
        BadInput: It is not one, or newer than this kit.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadInput(f"{path} is no JSON: {error}") from error
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise BadInput(f"{path} holds no results of kit bench", hint="make one: kit bench --json FILE")
    if isinstance(data.get("schema_version"), int) and data["schema_version"] > SCHEMA_VERSION:
        raise BadInput(
            f"{path} has schema version {data['schema_version']}, this kit reads up to {SCHEMA_VERSION}",
            hint="install a newer kit",
        )
    try:
        return serial.decode(Results, data, path="results")
    except serial.DecodeError as error:
        raise BadInput(f"{path} is no valid results file: {error}") from error
