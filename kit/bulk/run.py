"""From sources to a file of answers."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kit.bulk import chunks as pieces
from kit.bulk.answering import Answered, Answering, Opening
from kit.bulk.chunks import Reading, Seen
from kit.bulk.crew import Alone, Crew, Processes
from kit.bulk.forms import form_of
from kit.bulk.output import Done, Output
from kit.choices import Provider
from kit.engine import Engine
from kit.errors import BadInput, KitError, UsageError
from kit.runtime.base import RunnerOptions
from kit.system.machine import this_machine
from kit.system.packages import DISTRIBUTION, version
from kit.tasks.base import Task
from kit.tasks.rows import STDIN

OnRows = Callable[[int, int | None], None]
"""Told of the rows that are done and of those there are, None if that is unknown."""

_UPDATES_SECONDS = 0.1
_LOOKED_THROUGH = 100_000  # files


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was done.

    Attributes:
        refused: How many rows have a reason in place of an answer.
        first_problem: Name and reason of the first of these that this run met.
        resumed: Rows that an earlier run had answered.
        seconds: This run took.
        workers: Processes that answered; 1 for this one.
    """

    output: Path
    rows: int
    refused: int
    first_problem: str
    resumed: int
    seconds: float
    workers: int

    @property
    def rate(self) -> float:
        """Items a second of this run."""
        return (self.rows - self.resumed) / max(self.seconds, 1e-9)


def predict(
    model: str | Path | None,
    sources: Sequence[str],
    output: Path,
    *,
    variant: str | None = None,
    runtime: str | None = None,
    options: RunnerOptions | None = None,
    workers: int | None = None,
    ray: str | None = None,
    strict: bool = False,
    probabilities: bool | None = None,
    on_rows: OnRows = lambda _done, _whole: None,
    on_start: Callable[[Opening, int, int], None] = lambda _opening, _workers, _resumed: None,
    on_note: Callable[[str], None] = lambda _note: None,
) -> Outcome:
    """Answer all items of files and folders, and write the answers in their order.

    If the same was begun before and stopped, it goes on from there. An item that cannot be read, or that the model does not
    take, has its reason in the column `error`.

    Args:
        model: Bundle or ready .onnx; None for the default one.
        sources: Paths that the model's task reads.
        output: .csv, .jsonl or .parquet; it appears when all is answered.
        variant: Id; None: what `kit tune` chose here, else the bundle's default.
        runtime: Name of a runtime; None likewise.
        options: Of each worker's runtime; None likewise, on one thread.
        workers: Processes; None: one for each usable CPU, or this one alone if there is little to do.
        ray: Address of a Ray cluster whose nodes answer, or `auto`; None: this machine.
        strict: Stop at the first item without an answer.
        probabilities: Whether a classifier's answers hold those of all classes; None: of a hundred classes or fewer.
        on_rows: Told how far it is.
        on_start: Told how the model is opened, by how many workers, and how many items were answered before.
        on_note: Told what a person should know of the workers, and of what folders hold beside items.

    Raises:
        BadInput: None of the sources is there; or `strict`, and an item has no answer.
        UsageError: Something else was begun under this name, or what there is to answer has changed since.
        VerifyFailed: The model does not answer here what its bundle promises.
        MemoryShort: A worker was killed.
        StorageUnavailable, BundleNotFound, BundleInvalid, PackageMissing, ProviderUnavailable.
    """
    if not sources:
        raise UsageError("there is nothing to predict", hint="give files or folders")
    if ray is not None and STDIN in sources:
        raise UsageError("a cluster cannot read what is piped into this process", hint="write it into a file")
    started = time.monotonic()
    form = form_of(output)
    opening = Opening.of(model, variant=variant, runtime=runtime, options=options, probabilities=probabilities)
    with contextlib.closing(Answering(opening, form)) as answering:
        task = answering.task
        pieces.check_sources(task, sources)
        rows = pieces.chunk_rows(task, answering.engine.signature)
        whole = pieces.count(task, sources)
        crew = _crew(opening, answering, form.suffix, workers, ray, is_little=whole is not None and whole <= 2 * rows)
        provider = answering.engine.provider
        fallback = fallback_note(answering.engine, opening.options.provider)
        if not isinstance(crew, Alone):
            answering.close()  # its task reads on; its memory is for those that answer
        request = _request(opening, sources, rows, has_probabilities=answering.has_probabilities)
        with Output(output, form, request) as file:
            before = file.done
            ran = replace(opening, options=replace(opening.options, provider=provider))
            on_start(ran, crew.workers, before.rows)
            for note in itertools.chain([fallback] if fallback else [], crew.notes, _passed_over(task, sources, whole)):
                on_note(note)
            reading = Reading(task, sources, rows)
            seen = _skipped(reading, before, file.folder)
            with contextlib.closing(crew.answers(reading)) as answers:
                problem = _written(answers, file, seen, strict=strict, on_rows=lambda done: on_rows(done, whole))
            done = file.finish(_about(ran))
    return Outcome(
        output=output,
        rows=done.rows,
        refused=done.refused,
        first_problem=problem,
        resumed=before.rows,
        seconds=time.monotonic() - started,
        workers=crew.workers,
    )


def fallback_note(engine: Engine, asked: Provider) -> str:
    """Return why an engine does not run where it was asked to, and what to do about it; empty if it does."""
    reason, fix = engine.fallback
    if not reason:
        return ""
    failed = f"{asked} cannot run here: {reason}. The CPU answers instead" if engine.provider is not asked else reason
    return f"{failed}. To mend it: {fix}" if fix else failed


def _request(opening: Opening, sources: Sequence[str], rows: int, *, has_probabilities: bool) -> dict[str, Any]:
    """Return what must be the same for going on with what an earlier run wrote."""
    return {
        "variant": opening.variant,
        "sha256": opening.sha256,
        "runtime": opening.runtime,
        "options": asdict(opening.options) | {"provider": opening.options.provider.value},
        "sources": [source if source == STDIN else str(Path(source).absolute()) for source in sources],
        "rows in a chunk": rows,
        "probabilities": has_probabilities,
        "version of kit": version(DISTRIBUTION) or "",
    }


def _passed_over(task: Task, sources: Sequence[str], whole: int | None) -> Iterator[str]:
    """Give what is left out of folders, unless they are so large that looking for it would take long."""
    look = getattr(task, "passed_over", None)
    if look is None or whole is None or whole > _LOOKED_THROUGH:
        return
    for source in sources:
        with contextlib.suppress(KitError):
            if note := look(source):
                yield f"{source}: {note}"


def _crew(
    opening: Opening, answering: Answering, suffix: str, workers: int | None, ray: str | None, *, is_little: bool
) -> Crew:
    if ray is not None:
        from kit.bulk.on_ray import OnRay

        return OnRay(opening, suffix, address=ray, workers=workers)
    usual = max(1, this_machine().cpus_to_use // opening.options.threads)
    # To start processes for a chunk or two takes longer than to answer them; of a GPU they would share the memory.
    if is_little or opening.options.provider is not Provider.CPU:
        usual = 1
    count = workers or usual
    return Alone(answering) if count == 1 else Processes(opening, suffix, count)


def _skipped(reading: Reading, before: Done, folder: Path) -> Seen:
    seen = reading.skip(before.chunks)
    if before.chunks and seen.digest() != before.seen:
        raise UsageError(
            "what there is to answer is no more what it was when this began",
            hint=f"begin anew: remove {folder}",
        )
    return seen


def _written(
    answers: Iterator[Answered], file: Output, seen: Seen, *, strict: bool, on_rows: Callable[[int], None]
) -> str:
    """Write the answers to all that is left; return the first reason for having none."""
    rows, problem, told = file.done.rows, "", 0.0
    for answered in answers:
        if strict and answered.first_problem:
            raise BadInput(
                f"stopped at an item without an answer: {answered.first_problem}",
                hint="mend or remove it and give the same command again: it goes on here",
            )
        seen.add(answered.fingerprint)
        file.add(answered, seen)
        rows += answered.rows
        problem = problem or answered.first_problem
        if time.monotonic() - told >= _UPDATES_SECONDS:
            told = time.monotonic()
            on_rows(rows)
    return problem


def _about(opening: Opening) -> dict[str, str]:
    return {
        "model": Path(opening.origin).name,
        "variant": opening.variant,
        "sha256": opening.sha256,
        "runtime": opening.runtime,
        "provider": opening.options.provider.value,
        "kit": version(DISTRIBUTION) or "",
        "machine": this_machine().describe(),
    }
