"""What the lab writes into a bundle of its own: how the weights came to be, as attachments in JSON.

record = training_record(bundle)  # None for a bundle that was not trained here
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeVar

from kit.bundle import Bundle
from kit.errors import BundleInvalid
from kit.metrics import Score
from kit.system import plain_json, serial

TRAINING, ORIGIN = "training", "origin"
"""Roles of the attachments."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """How many times as fast as something else, with the 95 % interval."""

    batch_size: int
    threads: int
    speedup: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The bundle that a compressed one was made of.

    Attributes:
        architecture: Before.
        pixels_left_out: Inputs that carried nothing.
        units_left: Of each hidden layer.
        score: Top-1 of the new fp32 on the test split, and what it lost against the original's fp32.
        speedups: Of the new fp32 against the original's, in one run.
        machine: Where that was measured.
    """

    bundle: str
    weights_sha256: str
    architecture: str
    pixels_left_out: int
    units_left: tuple[int, ...]
    score: Score | None
    speedups: tuple[Speedup, ...]
    machine: str


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """What a model's probabilities are worth, found on the validation split.

    Attributes:
        expected_error: Expected calibration error at the published temperature: how far the probability of the answer is from
            the share of right answers, the mean over 15 bins of equal count.
        expected_error_raw: The same at temperature 1.
        answered: Share of images at or above the abstain threshold.
        answered_top1: Share of right answers among those.
    """

    expected_error: float
    expected_error_raw: float
    answered: float
    answered_top1: float


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """Where the weights came from.

    Attributes:
        recipe: The recipe's fields by name, enough to train again.
        validation: Top-1 of the kept weights on the validation split; None if all images were trained on.
        epochs_run: Fewer than the recipe's if training was interrupted.
        history: One row for each epoch: epoch, loss, validation_top1 (unless nothing was held out), learning_rate, seconds.
        confidence: None if nothing was held out.
        device: Where it was trained and in which precision, such as `cpu bfloat16`.
    """

    dataset: str
    recipe: dict[str, str]
    seed: int
    validation_fraction: float
    validation: Score | None
    epochs_run: int
    best_epoch: int
    interrupted: bool
    train_seconds: float
    history: tuple[dict[str, float], ...] = ()
    confidence: Confidence | None = None
    device: str = ""


def training_record(bundle: Bundle) -> TrainingRecord | None:
    """Return how a bundle was trained; None if the lab did not train it.

    Raises:
        BundleInvalid: The record is corrupt or was altered.
    """
    return _read(bundle, TRAINING, TrainingRecord, score="validation")


def origin_of(bundle: Bundle) -> Origin | None:
    """Return what a compressed bundle was made of; None for others. Raises as `training_record`."""
    return _read(bundle, ORIGIN, Origin, score="score")


def attachments(*, training: TrainingRecord, origin: Origin | None = None) -> dict[str, bytes]:
    """Return records as the attachments of a bundle, by role."""
    found = {TRAINING: _bytes(training)}
    return found if origin is None else found | {ORIGIN: _bytes(origin)}


def _bytes(record: TrainingRecord | Origin) -> bytes:
    return (json.dumps(serial.encode(record, brief=True), indent=1, ensure_ascii=False) + "\n").encode()


def _read(bundle: Bundle, role: str, kind: type[T], *, score: str) -> T | None:
    data = bundle.attachment(role)
    if data is None:
        return None
    try:
        plain = plain_json.read(data, what=f"the {role} record", most_bytes=len(data))
        if isinstance(plain, dict):
            plain[score] = _as_score(plain.get(score, plain.pop("accuracy", None)))
        return serial.decode(kind, plain, path=role)
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise BundleInvalid(f"the {role} record of bundle {bundle.name!r} cannot be read: {error}") from error


def _as_score(value: Any) -> Any:
    """Return a score's JSON; earlier versions counted images and had top-1 alone."""
    if value is None or "images" not in value:
        return value
    images, correct = value["images"], value["correct"]
    worse, improved = value.get("flips_to_wrong", 0), value.get("flips_to_right", 0)
    found = {"metric": "top-1", "dataset": value["dataset"], "split": value["split"], "samples": images, "unit": "%"}
    found["value"] = correct / images
    if worse or improved:
        found |= {"baseline": (correct + worse - improved) / images, "worse": worse, "improved": improved}
    return found
