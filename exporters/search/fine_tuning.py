"""Fine-tuning, if somebody asks for it: the weights are trained before integers are made of them, and kept where that pays."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from exporters.candidates import VariantRecipe
from exporters.formats.base import Source
from exporters.formats.int8 import usual_bits
from exporters.formats.weights import BLOCK_SIZES, WeightOnly
from exporters.search.blame import Result, Trial
from exporters.workbench import FineTuning, Workbench
from kit.choices import Precision
from kit.errors import GateFailed
from kit.system.progress import OnProgress, silent

if TYPE_CHECKING:
    from exporters.sources.pupil import Lesson

_INTEGERS = frozenset({Precision.INT8, Precision.INT4})


def better(recipe: VariantRecipe, bench: Workbench, on_progress: OnProgress = silent) -> tuple[Workbench, str]:
    """Train the weights for a recipe, and return the workbench with the source that it makes less noise of, and a remark.

    The two are compared on the validation samples. What was trained for another recipe of as many bits serves for this one too.
    A recipe without integers gets the workbench as it is, and no remark; so does every one unless fine-tuning was asked for.

    Raises:
        UsageError: There are too few training samples, or no layer could learn.
        GateFailed: The model has an operator without a gradient.
    """
    asked = bench.fine_tuning
    if asked is None or recipe.format.precision not in _INTEGERS or recipe.format.refusal(bench.source.model):
        return bench, ""
    lesson = _lesson(recipe, bench.source, asked.seconds)
    if lesson not in asked.done:
        asked.done[lesson] = _taught(bench.source, asked, lesson, on_progress)
    tuned = dataclasses.replace(bench, source=asked.done[lesson])
    on_progress(f"{recipe.id}: did fine-tuning pay")
    before, after = _tried(bench, recipe), _tried(tuned, recipe)
    change = ""
    if before is not None and after is not None:
        change = f": signal to quantization noise {after.sqnr_db:.1f} dB instead of {before.sqnr_db:.1f}"
    if after is None or (before is not None and after.badness >= before.badness):
        return bench, f"{asked.seconds:,.0f} s of fine-tuning brought nothing, and are left out{change}"
    return tuned, f"fine-tuned for {asked.seconds:,.0f} s{change}"


def _lesson(recipe: VariantRecipe, source: Source, seconds: float) -> Lesson:
    from exporters.sources.pupil import Lesson

    made = recipe.format
    if isinstance(made, WeightOnly):
        return Lesson(seconds=seconds, bits=made.bits, block=BLOCK_SIZES[made.bits], has_integer_inputs=False)
    return Lesson(seconds=seconds, bits=getattr(made, "weight_bits", None) or usual_bits(source.model))


def _taught(source: Source, asked: FineTuning, lesson: Lesson, on_progress: OnProgress) -> Source:
    assert source.train  # whoever asked for it was refused without
    program = asked.pupil.taught(source.train, lesson, on_progress)
    folder = Path(tempfile.mkdtemp(prefix="fine-tuned-", dir=source.folder))
    path = asked.pupil.written(program, asked.opset).save(folder)
    return dataclasses.replace(source, path=path, is_fine_tuned=True, roundings={}, smoothings={})


def _tried(bench: Workbench, recipe: VariantRecipe) -> Result | None:
    """Return how a variant does, with the layers in float that were asked for; None if it cannot be made."""
    exclude = tuple(dict.fromkeys((*recipe.exclude, *recipe.format.unable(bench.source.model))))
    try:
        return Trial(bench).of(recipe, exclude)
    except GateFailed:
        return None
