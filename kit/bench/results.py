"""The one schema of results: what the command line, the page and a report read, and nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import fastjsonschema

from kit.bench import migrations
from kit.bench.conditions import Conditions
from kit.bench.measure import LEAST_ROUNDS
from kit.bench.points import described
from kit.bench.scenarios import Scenario
from kit.bench.stats import Comparison, Outcome
from kit.bundle import Bundle
from kit.choices import Mode, Precision, Provider
from kit.errors import BadInput
from kit.metrics import Score
from kit.system import files, plain_json, serial
from kit.system.machine import Machine
from kit.system.wording import counted, percent

SCHEMA_VERSION = 3
"""3: sizes of named axes, samples, scores of any metric. 1 and 2 are read (kit.bench.migrations)."""

KIND = "kit-bench"
SCHEMA_FILE = Path(__file__).with_name("results.schema.json")
"""JSON Schema of a results file, for programs that are not kit. Made from the classes below, and a test keeps it so."""

MOST_BYTES = 256 * 2**20
"""Of a results file."""

_DRIFTED = 0.1
_OVER_BUDGET = 1.1
_LAGS = 1.3
"""Mean over median of a call, from which on samples per second and latency seem to contradict each other."""


class Status(StrEnum):
    """Whether a row holds what was asked for."""

    OK = "ok"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"
    FALLBACK = "fallback"


_LONGEST_US = 1e15


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Latency of one query, whole batch, in microseconds; p99 only from 1,000 calls or more.

    Attributes:
        low_us: Lower end, and `high_us` the upper, of the 95 % interval of the median over 10 rounds or more.
        samples_per_second: From calls timed in one go, the median over rounds; in the Server scenario, from first to
            last answer.
        medians_us: Median of each round, in the order they ran: what another run is compared with.
        mean_us: Of calls timed in one go, without a clock between them.
        noise: Spread of the rounds' medians: median absolute deviation, as a share of their median, times 1.4826.
        percentiles_us: Percentiles 0 to 100 of all calls, 101 values.
        openings: How often the model was opened anew, so that the luck of one place in memory does not decide.
        warmup_ms: Time spent before the first recorded call.
        settled: Whether the latency had stopped falling by then.
        service_us: In the Server scenario: time of an answer once it has begun, without waiting.
        samples_per_second_low: Lower end, and `samples_per_second_high` the upper, of its 95 % interval over rounds.
    """

    calls: int
    rounds: int
    p50_us: float
    p90_us: float
    p95_us: float
    p99_us: float | None
    max_us: float
    low_us: float | None
    high_us: float | None
    samples_per_second: float
    medians_us: tuple[float, ...] = ()
    mean_us: float | None = None
    noise: float | None = None
    percentiles_us: tuple[float, ...] = ()
    openings: int = 1
    warmup_ms: float | None = None
    settled: bool = True
    service_us: float | None = None
    samples_per_second_low: float | None = None
    samples_per_second_high: float | None = None

    @property
    def lags(self) -> float:
        """How many times as long as the median a call takes on the mean, of calls timed in one go; 1 if that is not known."""
        return 1.0 if self.mean_us is None or not self.p50_us else self.mean_us / self.p50_us

    def __post_init__(self) -> None:
        single = (self.p50_us, self.p90_us, self.p95_us, self.p99_us, self.max_us, self.low_us, self.high_us)
        times = (*single, self.mean_us, self.service_us, *self.medians_us, *self.percentiles_us)
        if not all(time is None or 0 <= time <= _LONGEST_US for time in times):
            raise ValueError("a latency is negative, or longer than thirty years")


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """From the start of a fresh process to its first prediction, files in the system's cache.

    Attributes:
        total_ms: Median, from the start of the process to its first answer.
        low_ms: Lower end, and `high_ms` the upper, of its 95 % interval, over 10 processes or more.
        stages_ms: What takes the time, the medians of each stage in order.
        peak_memory_bytes: The most such a process held, the median; None where the system does not tell.
        totals_ms: Of each process, in the order they ran.
    """

    processes: int
    total_ms: float
    low_ms: float | None
    high_ms: float | None
    stages_ms: dict[str, float]
    peak_memory_bytes: int | None = None
    totals_ms: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NodeTime:
    """One node of the final graph, as the runtime's profiler saw it; `share` is of the whole call."""

    node: str
    operator: str
    provider: str
    mean_us: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Control:
    """The baseline against itself, in the same rounds as the others: the noise of the run.

    Attributes:
        outcome: SAME in a run that can be trusted; FASTER or SLOWER say that it cannot.
        drift: Change of the baseline's latency from the first third of the rounds to the last, as a share.
    """

    contestant: str
    sizes: dict[str, int]
    outcome: Outcome
    comparison: Comparison | None
    drift: float | None = None
    at: str = ""

    @property
    def point(self) -> str:
        """What its sizes are called: `batch 64`."""
        return self.at or described(self.sizes)

    def remarks(self) -> tuple[str, ...]:
        """Return what a reader of the figures must know, in sentences."""
        said, at = [], self.point
        if self.outcome in {Outcome.FASTER, Outcome.SLOWER} and self.comparison is not None:
            said.append(
                f"{at}: the baseline differed from itself, {self.comparison.describe()}; do not trust differences of that "
                "size in this run"
            )
        if self.drift is not None and abs(self.drift) > _DRIFTED:
            said.append(
                f"{at}: the machine became {percent(abs(self.drift))} {'slower' if self.drift > 0 else 'faster'} meanwhile; "
                "comparisons are paired and stand, latencies are of both halves"
            )
        return tuple(said)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A row against the baseline at the same sizes: the bundle's baseline variant in ONNX Runtime on the CPU, if it ran."""

    outcome: Outcome
    baseline: str
    comparison: Comparison | None = None

    def describe(self) -> str:
        """Return `FASTER 1.74x [1.70, 1.78]`, or `baseline`."""
        return " ".join(self.parts())

    def parts(self) -> tuple[str, ...]:
        """Return the word, and the figures if there are any: `FASTER` and `1.74x [1.70, 1.78]`."""
        if self.comparison is None:
            return ("baseline" if self.outcome is Outcome.BASELINE else str(self.outcome),)
        return str(self.outcome), self.comparison.describe()


@dataclass(frozen=True, kw_only=True)
class Row:
    """A case at one point: one variant in one runtime on one provider, at one size of every axis.

    Attributes:
        provider: What was asked for.
        threads: That one operator may use.
        mode: Where inputs and outputs lie: in host memory, or where the model runs.
        sizes: Of the axes in one call, by name; empty for a model whose sizes are all fixed.
        samples: In one call.
        at: The sizes that tell the rows of this run apart, such as `batch 64, sequence 128`.
        ran_on: Where it truly ran; None when it did not.
        placement: Nodes by provider, such as `cuda 6/6`.
        scores: Of metrics, the one that counts first; empty if nothing is known.
        score_source: `live`, or `manifest` if no labelled data is at hand.
        right: Which samples the first metric calls right, packed as by numpy.packbits, base64; empty unless counted live.
        query_samples: Samples in one query; 0 if a call is a query.
        offered_rate: Queries a second that arrived, in the Server scenario.
        memory_bytes: The most that opening it and running it at these sizes added to the process.
        energy_uj: Of one call, the whole chip's, idle power and neighbours included.
        profile: Where the time goes, by node; empty unless asked for.
        kernels: Final kernels by provider, if profiled.
        trace_file: Name of the trace for Perfetto, if profiled.
        session: Threads and session options, if cases differ in them.
    """

    bundle: str
    variant: str
    precision: Precision
    sha256: str
    size_bytes: int
    runtime: str
    provider: Provider
    threads: int
    mode: Mode
    status: Status
    sizes: dict[str, int] = field(default_factory=dict)
    samples: int = 1
    at: str = ""
    reason: str = ""
    fix: str = ""
    ran_on: Provider | None = None
    placement: str = ""
    latency: Latency | None = None
    scores: tuple[Score, ...] = ()
    score_source: str = ""
    right: str = ""
    verdict: Verdict | None = None
    scenario: Scenario = Scenario.SINGLE_STREAM
    query_samples: int = 0
    offered_rate: float | None = None
    memory_bytes: int | None = None
    energy_uj: float | None = None
    cold: ColdStart | None = None
    profile: tuple[NodeTime, ...] = ()
    kernels: str = ""
    trace_file: str = ""
    session: str = ""

    def __post_init__(self) -> None:
        if self.right:
            try:
                held = len(base64.b64decode(self.right, validate=True))
            except ValueError as error:
                raise ValueError(f"right is no base64: {error}") from error
            if not self.scores or held != -(-self.scores[0].samples // 8):
                raise ValueError(f"right has {held:,} bytes, a bit for each sample of the first score")

    @property
    def score(self) -> Score | None:
        """The score that counts; None if nothing is known."""
        return self.scores[0] if self.scores else None

    @property
    def point(self) -> str:
        """What its sizes are called: `batch 64`."""
        return self.at or described(self.sizes)

    @property
    def place(self) -> str:
        """Return `onnxruntime cpu`, and what is unusual about how it ran there: `onnxruntime cuda, device`."""
        mode = "" if self.mode == Mode.HOST else f", {self.mode}"
        session = f" {self.session}" if self.session else ""
        return f"{self.runtime} {self.ran_on or self.provider}{mode}{session}"

    @property
    def saturated(self) -> bool:
        """Whether queries arrived faster than they can be answered, so that latency grows with the length of the run."""
        if self.offered_rate is None or self.latency is None or self.latency.service_us is None:
            return False
        return self.latency.service_us * self.offered_rate >= 1e6


@dataclass(frozen=True, kw_only=True)
class Results:
    """A whole run: the machine, the tools, what was asked, and the rows.

    Attributes:
        limits: What the machine can do at most, if it was measured in the same run, by name with its unit.
        left_out: What was not measured, and why, in sentences without their full stop.
    """

    schema_version: int
    kind: str
    created: str
    machine: Machine
    tools: dict[str, str]
    seed: int
    arguments: dict[str, str]
    rows: tuple[Row, ...]
    controls: tuple[Control, ...] = ()
    conditions: Conditions | None = None
    limits: dict[str, float] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def remarks(self) -> tuple[str, ...]:
        """Return what a reader of the figures must know about the run, in sentences."""
        said = list(self.conditions.remarks()) if self.conditions else []
        said += [remark for control in self.controls for remark in control.remarks()]
        for row in self.rows:
            name = f"{row.variant} in {row.runtime}, {row.point}"
            if row.saturated and row.latency is not None and row.latency.service_us:
                said.append(
                    f"{name}: {row.offered_rate:,.0f} queries a second arrived and {1e6 / row.latency.service_us:,.0f} can be "
                    "answered; its latency grows as long as that lasts"
                )
            if row.latency is not None and row.offered_rate is None and row.latency.lags > _LAGS:
                said.append(
                    f"{name}: a call takes {row.latency.mean_us:,.3g} µs on the mean and {row.latency.p50_us:,.3g} µs in the "
                    "median: some are much slower, and samples per second count them all"
                )
            if row.latency is not None and not row.latency.settled:
                said.append(f"{name}: still became faster when its warm-up ended")
        said += [*self._budget_remarks(), *self.left_out]
        if any(row.threads > self.machine.cpus_to_use for row in self.rows):
            said.append(
                f"more threads than the {self.machine.cpus_to_use} CPUs that may be used here: they wait for each other"
            )
        return tuple(said)

    def _budget_remarks(self) -> list[str]:
        said = []
        rounds = [row.latency.rounds for row in self.rows if row.latency]
        if rounds and min(rounds) < LEAST_ROUNDS:
            few = f"{counted(min(rounds), 'round')} {'is' if min(rounds) == 1 else 'are'}"
            said.append(f"{few} too few for intervals and verdicts: measure longer")
        budget = float(self.arguments.get("budget_seconds") or 0)
        spent = self.conditions.seconds if self.conditions else 0.0
        if budget and spent > _OVER_BUDGET * budget + 1:
            said.append(
                f"it took {spent:,.0f} s, more than the budget of {budget:g} s: opening, first calls and one round take what "
                "they take"
            )
        return said

    def to_json(self) -> str:
        """Return the results as JSON text."""
        return json.dumps(serial.encode(self), indent=2, ensure_ascii=False) + "\n"

    def save(self, path: Path) -> None:
        """Write the JSON file.

        Raises:
            StorageUnavailable: It cannot be written.
        """
        files.write(path, self.to_json())


def last_path(bundle: Bundle) -> Path:
    """Return where `kit bench` keeps its last results of a bundle: beside its folder or its packed file."""
    return bundle.beside(".bench.json")


def load(path: Path) -> Results:
    """Read a results file.

    Raises:
        BadInput: It is not one, or newer than this kit.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read: {error.strerror}", hint=f"make one: kit bench BUNDLE --json {path}"
        ) from error
    return from_bytes(data, path)


def from_bytes(data: bytes, path: Path) -> Results:
    """Read what a results file holds; `path` names it in errors.

    Raises:
        BadInput: It is not one, or newer than this kit.
    """
    try:
        plain = plain_json.read(data, what=str(path), most_bytes=MOST_BYTES)
    except plain_json.PlainJsonError as error:
        raise BadInput(str(error)) from error
    return from_json(plain, path)


def from_json(data: Any, path: Path) -> Results:
    """Check what was read from a results file; `path` names it in errors.

    Raises:
        BadInput: It is not one, or newer than this kit.
    """
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise BadInput(f"{path} holds no results of kit bench", hint="make one: kit bench --json FILE")
    if isinstance(data.get("schema_version"), int) and data["schema_version"] > SCHEMA_VERSION:
        raise BadInput(
            f"{path} has schema version {data['schema_version']}, this kit reads up to {SCHEMA_VERSION}",
            hint="install a newer kit",
        )
    try:
        newest = migrations.migrated(data)
        _validator()(newest)
        return serial.decode(Results, newest, path="results")
    except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
        raise BadInput(f"{path} is no valid results file: {type(error).__name__}: {error}") from error
    except (ValueError, fastjsonschema.JsonSchemaValueException) as error:
        raise BadInput(f"{path} is no valid results file: {error}") from error


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a results file, as SCHEMA_FILE holds it."""
    return serial.json_schema(Results, title=f"kit bench results, schema version {SCHEMA_VERSION}")


@cache
def _validator() -> Callable[[Any], Any]:
    compiled: Callable[[Any], Any] = fastjsonschema.compile(json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))
    return compiled


if __name__ == "__main__":
    SCHEMA_FILE.write_text(json.dumps(schema(), indent=2) + "\n", encoding="utf-8")
