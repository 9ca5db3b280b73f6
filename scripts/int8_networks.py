"""kit's int8 beside the tools that a person would use instead, network by network: docs/int8_networks.md and .json.

    python scripts/int8_networks.py [--cache FOLDER] [--only NAME ...] [--rounds 60] [--tune-budget 60] [--write]

For each network: what `kit export --precision auto` publishes and `kit tune` opens on this machine; ONNX Runtime's two
quantizers, NNCF, Olive, Optimum and torchao with the same training samples; and the float network in ONNX Runtime, OpenVINO and
torch.compile. Each network has a process of its own and leaves a file in the cache's folder `results`, with what `kit export`
said beside it: what is there is not measured again unless `--only` names it. Speed is that of calls as a person writes them, in
interleaved rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import int8_inputs
import int8_page
import int8_peers
import numpy as np
import platformdirs
import zoo
from int8_losses import Answered, Test, bar
from int8_models import NETWORKS, Network
from int8_page import KIT, Found, Row, Times
from int8_peers import Call, Made, Work

import kit
from kit import datasets, metrics
from kit.bench.measure import Plan, measure
from kit.bench.scores import published
from kit.bench.stats import compare
from kit.bundle import Bundle
from kit.runtime import registry
from kit.runtime.base import RunnerOptions
from kit.runtime.choice import Choice
from kit.samples import Samples, drawn_rows, nearest
from kit.system.machine import this_machine
from kit.tasks.registry import task_of
from kit.tuning import Tuned, tune

BATCHES, THREADS = (1, 8), (1, 2)
LEAD_MS = 10.0
AUTO_OPTIONS = ("--budget", "3m")
"""Of `kit export --precision auto`, beside the batches."""

MOST_SAMPLES = 1024
"""Training samples that each tool is given at most: as many as `kit export` looks at."""


def main() -> None:
    """Run each network in a process of its own, then print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=platformdirs.user_cache_path("kit") / "zoo")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="networks whose names begin like this, once more")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--tune-budget", type=float, default=60.0, help="seconds of each `kit tune`")
    parser.add_argument("--write", action="store_true", help="write docs/int8_networks.md and docs/int8_networks.json")
    parser.add_argument("--network", type=int, help=argparse.SUPPRESS)  # the process of one network
    asked = parser.parse_args()
    Plan(rounds=asked.rounds)  # too few are refused now, not after the tools have worked for half an hour
    if asked.network is not None:
        _alone(NETWORKS[asked.network], asked.cache, asked.rounds, asked.tune_budget)
        return
    results = asked.cache / "results"
    results.mkdir(parents=True, exist_ok=True)
    for number, network in enumerate(NETWORKS):
        wanted = not asked.only or any(network.name.lower().startswith(name.lower()) for name in asked.only)
        if wanted and (asked.only or not (results / f"{network.slug}.json").is_file()):
            _in_own_process(number, asked)
    measured = [path for one in NETWORKS if (path := results / f"{one.slug}.json").is_file()]
    rows = int8_page.joined([network.name for network in NETWORKS], [json.loads(one.read_text()) for one in measured])
    print(int8_page.page(rows))
    if asked.write:
        int8_page.write(rows)


def _in_own_process(number: int, asked: argparse.Namespace) -> None:
    """Measure a network; what it chooses is kept out of the user's own store."""
    line = [sys.executable, str(Path(__file__)), "--network", str(number), "--cache", str(asked.cache.resolve())]
    line += ["--rounds", str(asked.rounds), "--tune-budget", str(asked.tune_budget)]
    network = NETWORKS[number]
    with tempfile.TemporaryDirectory() as store:
        own = {**os.environ, "XDG_DATA_HOME": store}
        done = subprocess.run(line, check=False, text=True, stdout=sys.stderr, stderr=subprocess.PIPE, env=own)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        found = Found(name=network.name, weights=network.weights, remark=zoo._sentence(done.stderr))  # noqa: SLF001
        _keep(asked.cache, network, found)


def _keep(cache: Path, network: Network, found: Found) -> None:
    path = cache / "results" / f"{network.slug}.json"
    path.write_text(json.dumps(dataclasses.asdict(found), indent=1) + "\n")


def _alone(network: Network, cache: Path, rounds: int, tune_budget: float) -> None:
    folder = cache / "packages" / network.packages
    if network.packages:
        int8_inputs.packages(cache, network.packages)
        sys.path.append(str(folder))
    place = zoo.Place(packages=folder, files=cache / "files" / f"int8-{network.slug}")
    place.files.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as work:
        _keep(cache, network, Comparing(network, place, cache, Path(work)).of(rounds, tune_budget))


class Comparing:
    """One network: its bundle, its peers, what each loses, how fast each is."""

    def __init__(self, network: Network, place: zoo.Place, cache: Path, folder: Path) -> None:
        self.network, self.place, self.cache, self.folder = network, place, cache, folder
        self.path = folder / network.slug
        self.rows: dict[str, Row] = {}

    def of(self, rounds: int, tune_budget: float) -> Found:
        """Do all of it; without a float bundle there is nothing to compare."""
        network = self.network
        found = Found(name=network.name, weights=network.weights, machine=this_machine().describe())
        problem, auto = self._exported()
        if problem:
            return dataclasses.replace(found, remark=f"kit export: {problem}")
        bundle = kit.find(self.path)
        splits = datasets.load(self._data, task_of(bundle), bundle.signature) if self._data else datasets.of(bundle)
        if splits is None:
            return dataclasses.replace(found, remark="its data set is not on this machine")
        metric = self._metric(bundle)
        test = Test(bundle, splits.test, metric, positions=network.positions, pairs=network.pairs)
        work = self._work(bundle, splits.train or ())
        models = int8_peers.made(work)
        self._say(f"{len(models)} models")
        answers = self._answered(work, models, test)
        points = self._points(bundle)
        tuned = self._tuned(bundle, points, tune_budget)
        choices = {point: one.choice for point, one in tuned.items()}
        self._of_kit(bundle, tuned, test, answers, auto)
        samples = splits.test if not network.pairs else test.groups
        for threads in THREADS:
            for point, sizes in points.items():
                if point[1] == threads:
                    given = nearest(samples, bundle.signature, sizes).resized(bundle.signature, sizes)
                    calls = self._calls(work, models, given, threads, choices.get(point))
                    self._measured(calls, int8_page.point(*point), rounds, threads)
                    self._say(f"measured {int8_page.point(*point)}")
        return dataclasses.replace(
            found,
            metric=metric.name,
            allowed=bar(metric),
            rows=tuple(self.rows.values()),
            variants=self._published(),
        )

    @property
    def _data(self) -> str:
        return self._options[self._options.index("--data") + 1] if "--data" in self._options else ""

    @functools.cached_property
    def _options(self) -> Sequence[str]:
        return self.network.inputs(self.place, self.cache) if self.network.inputs else ()

    def _exported(self) -> tuple[str, zoo.Step]:
        """Make the float bundle, and what `auto` makes of it; return why the former failed, and what the latter took."""
        network, source = self.network, self.network.source(self.place)
        if network.inputs is None:
            shutil.copytree(kit.find(source).folder, self.path)
        else:
            line = [zoo.KIT, "export", source, "--out", str(self.path), *network.options, *self._options]
            step = zoo.run(line, self.place)
            if step.problem:
                return step.problem, step
        batches = [word for batch in BATCHES for word in ("--batch-size", str(batch))]
        data = ["--data", self._data] if self._data else []
        line = [zoo.KIT, "export", str(self.path), "--precision", "auto", *batches, *data, *AUTO_OPTIONS]
        auto = zoo.run(line, self.place, told=self.cache / "results" / f"{network.slug}.txt")
        self._say(f"kit export --precision auto: {auto}")
        return "", auto

    def _published(self) -> dict[str, str]:
        manifest = json.loads((self.path / "manifest.json").read_text())
        return {one["id"]: zoo._scores(one) for one in manifest["variants"]}  # noqa: SLF001 - a script beside that one

    def _metric(self, bundle: Bundle) -> metrics.Metric:
        names = [score.metric for variant in bundle.variants for score in published(variant)]
        return metrics.find(names[0] if names else "cosine")

    def _work(self, bundle: Bundle, train: Sequence[Samples]) -> Work:
        baseline = next(one for one in bundle.variants if one.id == bundle.manifest.baseline)
        module = self.network.module
        make: Callable[[], Any] | None = functools.partial(module, self.place) if module else None
        if self.network.inputs is None:
            make = functools.partial(registry.rebuilt, bundle)
        return Work(
            cache=self.cache,
            folder=self.folder,
            graph=self._whole(self.path / baseline.graph.file),
            signature=bundle.signature,
            train=list(_drawn(bundle, train)),
            train_path=Path(self._data),
            is_transformer=self.network.is_transformer,
            module=make,
        )

    def _whole(self, graph: Path) -> Path:
        """Return the float graph with its weights in one file: not every tool follows files beside it."""
        import onnx

        path = self.folder / "fp32.onnx"
        onnx.save(onnx.load(graph), path)
        return path

    def _answered(self, work: Work, models: Sequence[Made], test: Test) -> dict[str, Answered]:
        """Ask every model the test part, the float network first."""
        found: dict[str, Answered] = {}
        for one in models:
            row = Row(
                tool=one.tool,
                problem=one.problem,
                size_mb=round(_size(one.file) / 1e6, 2) if one.file else None,
                seconds=one.step.seconds if one.step else None,
                peak_mb=one.step.peak_mb if one.step else None,
            )
            if not one.problem:
                try:
                    call = int8_peers.opened(work, one, test.largest, threads=1, compiles=False)
                    found[one.tool] = test.of(call) if found else test.refer(call)
                    row = _scored(row, test, found[one.tool])
                except Exception as error:  # noqa: BLE001 - another tool's, of any kind: a row that says so
                    row = dataclasses.replace(row, problem=_said(error))
            self.rows[one.tool] = row
            self._say(f"{row.tool}: {row.problem or row.loss}")
        return found

    def _points(self, bundle: Bundle) -> dict[tuple[int, int], dict[str, int]]:
        signature = bundle.signature
        batch = signature.batch
        more = {"sequence": int8_inputs.TOKENS} if self.network.pairs else {}
        batches = [one for one in BATCHES if batch is None or not signature.axes[batch].problem(one)]
        given = {one: signature.usual_sizes(**more, **({batch: one} if batch else {})) for one in batches}
        return {(one, threads): given[one] for threads in THREADS for one in batches}

    def _tuned(
        self, bundle: Bundle, points: Mapping[tuple[int, int], dict[str, int]], budget: float
    ) -> dict[tuple[int, int], Tuned]:
        found = {}
        for point, sizes in points.items():
            done = tune(bundle, sizes=sizes, most_threads=point[1], budget_seconds=budget)
            found[point] = done
            self._say(f"kit tune, {int8_page.point(*point)}: {done.choice.describe()}")
        return found

    def _of_kit(
        self,
        bundle: Bundle,
        tuned: Mapping[tuple[int, int], Tuned],
        test: Test,
        answers: Mapping[str, Answered],
        auto: zoo.Step,
    ) -> None:
        """Count what kit's choices lose: the row shows the one that loses the most, and each peer is paired with it."""
        worst: tuple[float, Answered, Row] | None = None
        told = {int8_page.point(*point): one.choice.describe() for point, one in tuned.items()}
        said = {
            int8_page.point(*point): {each.name: each.reason for each in one.judgement.candidates}
            for point, one in tuned.items()
        }
        row = Row(tool=KIT, seconds=auto.seconds, peak_mb=auto.peak_mb, choices=told, candidates=said)
        row = dataclasses.replace(row, remark=f"auto: {auto.problem}" if auto.problem else "")
        ways = ((one.choice.variant, one.choice.runtime, one.choice.options.bf16) for one in tuned.values())
        for variant, runtime, bf16 in dict.fromkeys(ways):
            held = next(one for one in bundle.variants if one.id == variant)
            with registry.open_runner(runtime, bundle, held, RunnerOptions(bf16=bf16)) as runner:
                answered = test.of(runner.run)
            loss = test.scored(answered).loss
            if worst is None or loss > worst[0]:
                scored = _scored(dataclasses.replace(row, size_mb=round(held.size_bytes / 1e6, 2)), test, answered)
                worst = loss, answered, scored
        assert worst is not None  # there is a choice at each point
        self.rows[KIT] = worst[2]
        for tool, answered in answers.items():
            paired = test.scored(worst[1], answered)
            low, high = paired.loss_interval or (paired.loss, paired.loss)
            self.rows[tool] = dataclasses.replace(self.rows[tool], kit_loses=(paired.loss, low, high))

    def _calls(
        self, work: Work, models: Sequence[Made], given: dict[str, Any], threads: int, choice: Choice | None
    ) -> Iterator[tuple[str, Call, dict[str, Any]]]:
        for one in models:
            if not self.rows[one.tool].problem:
                try:
                    call = int8_peers.opened(work, one, given, threads=threads, compiles=True)
                    call(given)
                except Exception as error:  # noqa: BLE001 - as above
                    self.rows[one.tool] = dataclasses.replace(self.rows[one.tool], remark=_said(error))
                    continue
                yield one.tool, call, given
        if choice is not None:
            bundle = kit.find(self.path)
            held = next(one for one in bundle.variants if one.id == choice.variant)
            runner = registry.open_runner(choice.runtime, bundle, held, choice.options)
            runner.run(given)
            yield KIT, runner.run, given

    def _measured(
        self, calls: Iterator[tuple[str, Call, dict[str, Any]]], point: str, rounds: int, threads: int
    ) -> None:
        opened = list(calls)
        contestants = [functools.partial(call, given) for _, call, given in opened]
        timings = measure(contestants, Plan(rounds=rounds), lead_ms=LEAD_MS if threads > 1 else 0.0)
        medians = {name: one.medians_us() for (name, _, _), one in zip(opened, timings, strict=True)}
        base = medians[int8_peers.BASELINE]
        for name, own in medians.items():
            low, middle, high = np.percentile(base / own, (25, 50, 75)).tolist()
            against = compare(own, medians[KIT]) if KIT in medians and name != KIT else None
            times = Times(
                us=float(np.median(own)),
                ratio=(middle, low, high),
                kit=(against.speedup, against.low, against.high) if against else None,
            )
            self.rows[name] = dataclasses.replace(self.rows[name], times={**self.rows[name].times, point: times})

    def _say(self, what: str) -> None:
        print(f"{self.network.name}: {what}", flush=True)


def _scored(row: Row, test: Test, answered: Answered) -> Row:
    found = test.scored(answered)
    low, high = found.loss_interval or (found.loss, found.loss)
    return dataclasses.replace(
        row,
        value=found.value,
        loss=(found.loss, low, high),
        is_right=found.loss <= bar(test.metric),
        more=dict(answered.more),
    )


def _drawn(bundle: Bundle, groups: Sequence[Samples]) -> Iterator[dict[str, Any]]:
    """Give the inputs of MOST_SAMPLES of the samples at most, in groups of one size."""
    signature = bundle.signature
    for group in groups:
        total = signature.rows(group.inputs)
        rows = drawn_rows(total, MOST_SAMPLES // len(groups), seed=0)
        yield signature.take(group.inputs, rows)


def _size(path: Path) -> int:
    weights = path.with_suffix(".bin")
    return path.stat().st_size + (weights.stat().st_size if path.suffix == ".xml" and weights.is_file() else 0)


def _said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:200]


if __name__ == "__main__":
    main()
