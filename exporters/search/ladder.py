"""What is tried, from the simplest on, when static int8 loses something for sure, or more than is allowed.

Each step is kept only where it pays.

1. Ranges that leave out what hardly occurs: percentiles, the least squared error, then entropy (Migacz 2017, "8-bit
   inference with TensorRT").
2. The layers that lose most stay in float, as few as will do (exporters.search.blame).

Whatever is sure to lose something has the first two of these tried before it comes to the gate (`narrow`).

Smoothed inputs, weights rounded for the sake of their layer's output and moved biases come before all this: they are part of
how int8 is made (exporters.formats). Candidates are judged on the validation samples; the gate has the last word.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

from exporters.candidates import Candidate, VariantRecipe
from exporters.formats.int8 import StaticInt8
from exporters.gate import Passed
from exporters.search.blame import Result, Trial, fewest_excluded
from exporters.workbench import Workbench
from kit.choices import CalibrationMethod
from kit.errors import GateFailed, KitError, UsageError
from kit.metrics import Score
from kit.system.progress import OnProgress, silent

_WHOLE = "the whole range"

METHODS = (CalibrationMethod.PERCENTILE, CalibrationMethod.MSE, CalibrationMethod.ENTROPY)
_NARROWER = METHODS[:2]  # a single value far out is cut off by a percentile alone; many, by what they cost


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A step that was tried.

    Attributes:
        name: What was done, in words.
        score: Of the first metric on the validation samples; None if it could not be made, or nothing could be told.
        sqnr_db: Signal over quantization noise of the answers.
        is_right: Whether it loses no more than is allowed.
        problem: Why it could not be made; else empty.
    """

    variant: str
    name: str
    score: Score | None = None
    sqnr_db: float = float("nan")
    is_right: bool = False
    seconds: float = 0.0
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Climb:
    """What became of a variant that lost too much.

    Attributes:
        passed: It, once it met the gate; None if nothing helped.
        rungs: What was tried, in order, the variant as it was first.
        reason: Why nothing came of it; empty if something did.
    """

    passed: Passed | None
    rungs: tuple[Rung, ...]
    reason: str = ""


def climb(
    recipe: VariantRecipe,
    bench: Workbench,
    *,
    tries_calibrations: bool = True,
    is_over: Callable[[], bool] = lambda: False,
    on_progress: OnProgress = silent,
) -> Climb:
    """Look for a way in which static int8 loses no more than is allowed.

    The recipe is of static int8 that can leave layers in float. Once `is_over` says that the time is up, nothing new is
    begun.
    """
    trial = Trial(bench)
    unable = recipe.format.unable(bench.source.model)
    rungs: list[Rung] = []

    def tried(name: str, one: VariantRecipe) -> Result | None:
        on_progress(f"{recipe.id}: {name}")
        started = time.perf_counter()
        try:
            found = trial.of(one, unable)
        except (GateFailed, UsageError) as error:
            rungs.append(_rung(recipe, name, started, problem=str(error)))
            return None
        rungs.append(_rung(recipe, name, started, found))
        return found

    best, least = recipe, tried(_WHOLE, recipe)
    if least is None or least.excess <= 0:
        return Climb(passed=None, rungs=tuple(rungs), reason="validation samples do not show what it loses")
    assert isinstance(recipe.format, StaticInt8)  # whoever climbs has chosen one
    for method in METHODS if tries_calibrations else ():
        if is_over():
            return Climb(passed=None, rungs=tuple(rungs), reason="the time was up")
        other = dataclasses.replace(recipe, format=dataclasses.replace(recipe.format, method=method))
        found = tried(f"ranges by {method}", other)
        if found is not None and found.badness < least.badness:
            best, least = other, found
    exclude = unable
    if least.excess > 0:
        started = time.perf_counter()
        try:
            exclude = fewest_excluded(best, bench, on_progress, is_over=is_over)
            found = trial.of(best, exclude)
        except GateFailed as error:
            rungs.append(_rung(recipe, "layers in float", started, problem=str(error)))
            return Climb(passed=None, rungs=tuple(rungs), reason=str(error))
        left = len(exclude) - len(unable)
        name = f"{left} layer{'s' * (left != 1)} in float"
        rungs.append(_rung(recipe, name, started, found))
    on_progress(f"{recipe.id}: checks")
    try:
        passed = bench.examine(best.make(bench.source, exclude))
    except GateFailed as error:
        return Climb(passed=None, rungs=tuple(rungs), reason=str(error).removeprefix(f"{recipe.id} "))
    return Climb(passed=passed, rungs=tuple(rungs))


def narrow(
    recipe: VariantRecipe,
    whole: Candidate,
    bench: Workbench,
    *,
    is_over: Callable[[], bool] = lambda: False,
    on_progress: OnProgress = silent,
) -> tuple[Candidate, tuple[Rung, ...]]:
    """Try narrower ranges in place of the whole ones, where static int8 loses something for sure.

    Returns the candidate with the least noise on the validation samples, and what was tried: nothing where nothing is lost for
    sure.

    Args:
        recipe: Of static int8 with the whole range.
        whole: What was made by it; discarded if it is not returned.
        bench: The model, and samples.
        is_over: Whether the time is up: nothing new is begun then.
        on_progress: Told what is being done.
    """
    assert isinstance(recipe.format, StaticInt8)  # whoever calls has chosen one
    trial = Trial(bench)
    started = time.perf_counter()
    try:
        least = trial.judged(whole.files.path)
    except KitError:  # what does not even run is for the gate to name
        return whole, ()
    if least.first is None or (least.first.low or 0.0) <= 0:
        return whole, ()
    best, rungs = whole, [_rung(recipe, _WHOLE, started, least)]
    for method in _NARROWER:
        if is_over():
            break
        name = f"ranges by {method}"
        on_progress(f"{recipe.id}: {name}")
        started = time.perf_counter()
        other = dataclasses.replace(recipe, format=dataclasses.replace(recipe.format, method=method))
        made = None
        try:
            made = other.make(bench.source, recipe.format.unable(bench.source.model))
            found = trial.judged(made.files.path)
        except KitError as error:
            if made is not None:
                made.discard()
            rungs.append(_rung(recipe, name, started, problem=str(error)))
            continue
        rungs.append(_rung(recipe, name, started, found))
        best, worse = (made, best) if found.badness < least.badness else (best, made)
        least = found if best is made else least
        worse.discard()
    return best, tuple(rungs)


def _rung(recipe: VariantRecipe, name: str, started: float, found: Result | None = None, *, problem: str = "") -> Rung:
    seconds = time.perf_counter() - started
    if found is None:
        return Rung(variant=recipe.id, name=name, seconds=seconds, problem=problem)
    return Rung(
        variant=recipe.id,
        name=name,
        score=found.first,
        sqnr_db=found.sqnr_db,
        is_right=found.excess <= 0,
        seconds=seconds,
    )
