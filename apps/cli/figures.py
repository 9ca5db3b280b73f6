"""Scores and errors in words: the same everywhere on the command line."""

from __future__ import annotations

from collections.abc import Sequence

from kit.bundle.manifest import Quantization, Variant
from kit.metrics import Fidelity, Score
from kit.report.format import NONE


def loss(score: Score | None) -> str:
    """Return what was lost against the baseline and its 95 % interval: `-0.02 [-0.08, 0.04]`, in points for shares."""
    if score is None or (score.baseline is None and score.worse is None):
        return NONE
    factor, form = (100.0, ".2f") if score.unit == "%" else (1.0, ".3g")
    interval = score.loss_interval
    ends = "" if interval is None else f" [{factor * interval[0]:{form}}, {factor * interval[1]:{form}}]"
    return f"{factor * score.loss:+{form}}{ends}"


def changed(score: Score | None) -> str:
    """Return `3 worse, 5 better`, for metrics that are right or wrong."""
    if score is None or score.worse is None or score.improved is None:
        return ""
    return f"{score.worse} worse, {score.improved} better"


def main_score(variant: Variant, split: str = "test") -> Score | None:
    """Return the score that counts for a variant on a split: the first one, which is that of its bar."""
    return variant.score(split=split)


def header(scores: Sequence[Score | None], split: str) -> str:
    """Return the header of a column of scores: `top-1 test`, or the split alone if metrics differ."""
    named = {score.metric for score in scores if score is not None}
    return f"{named.pop()} {split}" if len(named) == 1 else split


def relative(found: Fidelity) -> str:
    """Return an output's largest error as a share of the original's largest value; the absolute one if that is unknown."""
    return f"{found.max_abs_error:.2g}" if found.max_rel_error is None else f"{found.max_rel_error:.2g}"


def share(number: float | None) -> str:
    """Return `99.97 %`."""
    return "" if number is None else f"{100 * number:.2f} %"


def cosine(found: Fidelity) -> str:
    """Return a cosine with the digits that tell it from 1."""
    return "" if found.cosine is None else f"{found.cosine:.6f}"


def layers(quantization: Quantization | None) -> str:
    """Return how much is quantized, and how: `1/1 layers, 12 % of weights, 9 % of arithmetic in integers, 8 bit`."""
    if quantization is None:
        return ""
    one = quantization
    scale = f"blocks of {one.block_size}" if one.block_size else "per channel" if one.per_channel else "per tensor"
    parts = [f"{one.layers_quantized}/{one.layers_total} layers"]
    parts += [
        f"{_percent(done, total)} of {what}"
        for done, total, what in (
            (one.weights_quantized, one.weights_total, "weights"),
            (one.macs_quantized, one.macs_total, "arithmetic"),
        )
        if total > 0
    ]
    trained = ", fine-tuned" if one.fine_tuned else ""
    return f"{', '.join(parts)} in integers, {one.weight_bits} bit {scale}{trained}"


def _percent(done: int, total: int) -> str:
    """Return a share in whole percent; 100 % only if it is all, 0 % only if it is nothing."""
    whole = round(100 * done / total)
    return f"{whole if done in {0, total} else min(max(whole, 1), 99)} %"
