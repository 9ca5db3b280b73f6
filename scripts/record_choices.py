"""What the choices of the recipe `record` bring, on 10,000 training images held out: several seeds, paired.

    python scripts/record_choices.py --data-dir FOLDER [--seeds 0 1 2] [--choice "labels, no teacher"] [--work FOLDER]

A seed has its own split and its own teacher, which all choices share. The test set is not touched. Every run that is done is
kept in the work folder as JSON, so that a run that was stopped goes on where it was; the table is printed at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kit.lab import data
from kit.lab.data import Dataset
from kit.lab.training.checkpoint import RunFolder
from kit.lab.training.loop import Epoch, Listener, train
from kit.lab.training.recipe import Recipe, recipe
from kit.lab.training.world import world
from kit.tasks.classification import probabilities

HELD_OUT = 1 / 6
SHORT = 40
TEACHER = "teacher-0"


@dataclass(frozen=True)
class Run:
    """What one seed gave: a share of right answers, and the cross-entropy at the fitted temperature."""

    top1: float
    cross_entropy: float


def _taught(chosen: Recipe, **changes: float) -> Recipe:
    assert chosen.teaching is not None  # the recipe `record` has teachers
    return dataclasses.replace(chosen, teaching=dataclasses.replace(chosen.teaching, **changes))


def _short(chosen: Recipe) -> Recipe:
    return dataclasses.replace(chosen, epochs=SHORT)


CHOICES: dict[str, Callable[[Recipe], Recipe]] = {
    "as frozen, 200 epochs": lambda chosen: chosen,
    "784-64-64-10, as frozen": lambda chosen: dataclasses.replace(chosen, model="mlp-64-64"),
    f"{SHORT} epochs": _short,
    "labels, no teacher": lambda chosen: dataclasses.replace(_short(chosen), teaching=None),
    "temperature 1": lambda chosen: _taught(_short(chosen), temperature=1.0),
    "4 views": lambda chosen: _taught(_short(chosen), views=4),
    "no calm end": lambda chosen: dataclasses.replace(_short(chosen), calm=0.0),
}
BASELINE = f"{SHORT} epochs"
"""What the choices after it are held against."""


def main() -> None:
    """Train every choice with every seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--choice", action="append", choices=list(CHOICES), help="may be repeated; all without it")
    parser.add_argument("--work", type=Path, default=Path("artifacts/choices"))
    asked = parser.parse_args()
    dataset = data.load("mnist", data_dir=asked.data_dir)
    found: dict[str, dict[int, Run]] = {}
    for name in asked.choice or CHOICES:
        for seed in asked.seeds:
            found.setdefault(name, {})[seed] = _run(dataset, name, seed, asked.work)
    print(_table(found))


def _run(dataset: Dataset, name: str, seed: int, work: Path) -> Run:
    place = work / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
    kept = place.with_suffix(".json")
    if kept.exists():
        return Run(**json.loads(kept.read_text()))
    base = dataclasses.replace(
        recipe("record", dataset="mnist"), seed=seed, val_fraction=HELD_OUT, keep="last", confidence=None
    )
    chosen = CHOICES[name](base)
    # The teacher's recipe, seed and images are those of every choice: it is trained once.
    own, shared = RunFolder(place, chosen, dataset), RunFolder(work / f"teacher-{seed}", base, dataset)
    weights = shared.load_weights(TEACHER) if chosen.teaching is not None else None
    if weights is not None:
        own.save_weights(TEACHER, weights)
    with world("auto") as here:
        listener = Listener(on_epoch=lambda epoch: _say(name, seed, epoch))
        result = train(dataset, chosen, name="choice", world=here, run_folder=place, resume=True, listener=listener)
    if result.record.interrupted or result.validation is None:
        raise SystemExit(130)
    split, logits = result.validation
    sure = probabilities(logits, result.blueprint.temperature)[np.arange(len(split)), split.labels]
    run = Run(
        top1=float((logits.argmax(axis=1) == split.labels).mean()),
        cross_entropy=float(-np.log(np.maximum(sure, 1e-12)).mean()),
    )
    if chosen.teaching is not None and weights is None and (trained := own.load_weights(TEACHER)) is not None:
        shared.save_weights(TEACHER, trained)
    kept.write_text(json.dumps(dataclasses.asdict(run)))
    print(f"{name}, seed {seed}: {run.top1:.2%}, {run.cross_entropy:.4f}", flush=True)
    return run


def _say(name: str, seed: int, epoch: Epoch) -> None:
    if epoch.epoch % 10 == 0:
        print(f"{name}, seed {seed}: {epoch.phase} {epoch.epoch}/{epoch.epochs} loss {epoch.loss:.4f}", flush=True)


def _table(found: dict[str, dict[int, Run]]) -> str:
    rows = ["| choice | top-1, validation | CE | against the baseline, points |", "|---|---|---|---|"]
    base = found.get(BASELINE, {})
    for name, runs in found.items():
        tops = ", ".join(f"{run.top1:.2%}" for run in runs.values())
        losses = ", ".join(f"{run.cross_entropy:.4f}" for run in runs.values())
        gains = [100 * (run.top1 - base[seed].top1) for seed, run in runs.items() if seed in base]
        rows.append(f"| {name} | {tops} | {losses} | {_gain(gains) if name != BASELINE else 'baseline'} |")
    return "\n".join(rows)


def _gain(gains: list[float]) -> str:
    if len(gains) < 2:
        return "one seed"
    return f"{statistics.mean(gains):+.2f} ± {statistics.stdev(gains) / math.sqrt(len(gains)):.2f}"


if __name__ == "__main__":
    main()
