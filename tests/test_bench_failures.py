"""What fails in a bench costs its own row and nothing else; what cannot be measured is refused before the work."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from kit.bench import cases
from kit.bench.measure import LEAST_ROUNDS, Plan
from kit.bench.meters import PeakMemory, physical_gpu
from kit.bench.request import Request
from kit.bench.results import Results, Status, load
from kit.bench.run import bench
from kit.bench.scenarios import Load, Scenario
from kit.bench.stats import Outcome
from kit.bundle import Bundle
from kit.bundle.manifest import TaskRef
from kit.choices import Provider
from kit.errors import BadInput, StorageUnavailable, UsageError
from kit.runtime.base import RunnerOptions
from kit.system import files
from tests.conftest import Kit
from tests.helpers.points import batch

QUICK = Plan(rounds=10, turn_ms=0.5, warmup_ms=1.0)
CPU = (Provider.CPU,)

FUSSY = """
import numpy as np
from kit.errors import BundleInvalid
from kit.runtime.base import BaseRunner, Placement
from kit.choices import Provider

largest = 1_000_000
calls_left = 1_000_000_000
last_fed = 0

class Fussy(BaseRunner):
    runtime, provider, fallback_reason, placement = "fussy", Provider.CPU, "", Placement({"cpu": 1})

    def __init__(self, signature):
        self.signature = signature

    def run(self, tensors):
        global calls_left
        calls_left -= 1
        rows = self.signature.rows(tensors)
        if rows > largest or calls_left < 0:
            raise BundleInvalid(f"no appetite for {rows}")
        return {"logits": np.zeros((rows, 10), np.float32)}

    def close(self):
        pass

def open_fussy(bundle, variant, options):
    return Fussy(bundle.signature)
"""


@pytest.fixture
def fussy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An installed runtime that refuses large batches, or all calls from some moment on."""
    site = tmp_path / "site"
    metadata = site / "fussy-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: fussy\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[kit.runtimes]\nfussy = fussy:open_fussy\n")
    (site / "fussy.py").write_text(FUSSY)
    monkeypatch.syspath_prepend(site)
    importlib.invalidate_caches()
    yield importlib.import_module("fussy")
    del sys.modules["fussy"]


def rows_of(results: Results, runtime: str) -> list[tuple[int, Status]]:
    return [(row.sizes["batch"], row.status) for row in results.rows if row.runtime == runtime]


def test_a_batch_size_that_fails_takes_only_its_own_row(tiny: Bundle, fussy) -> None:
    fussy.largest = 4
    asked = Request(providers=CPU, runtimes=("onnxruntime", "fussy"), points=batch(1, 8, 2), plan=QUICK)
    found = bench(tiny, asked)
    assert rows_of(found, "fussy") == [(1, Status.OK), (8, Status.FAILED), (2, Status.OK)]
    assert all(status is Status.OK for _, status in rows_of(found, "onnxruntime"))
    (lost,) = [row for row in found.rows if row.status is Status.FAILED]
    assert "no appetite for 8" in lost.reason
    assert lost.fix
    assert lost.latency is None


def test_one_that_fails_in_the_middle_of_the_rounds_leaves_the_others_their_figures(tiny: Bundle, fussy) -> None:
    fussy.calls_left = 20
    plan = dataclasses.replace(QUICK, warmup_ms=0.001, warmup_limit_ms=0.001, turn_ms=0.001)
    found = bench(tiny, Request(providers=CPU, runtimes=("onnxruntime", "fussy"), points=batch(1), plan=plan))
    assert rows_of(found, "fussy") == [(1, Status.FAILED)]
    (row,) = [row for row in found.rows if row.runtime == "onnxruntime"]
    assert row.latency is not None
    assert row.latency.rounds == QUICK.rounds


@pytest.mark.slow
def test_a_sweep_goes_on_without_the_one_that_failed(tiny: Bundle, fussy) -> None:
    fussy.largest = 2
    asked = Request(providers=CPU, runtimes=("onnxruntime", "fussy"), sweep="batch", plan=Plan(budget_seconds=2))
    found = bench(tiny, asked)
    assert rows_of(found, "fussy") == [(1, Status.OK), (2, Status.OK), (4, Status.FAILED)]
    assert len(rows_of(found, "onnxruntime")) > 3


def test_a_baseline_that_fails_leaves_its_place_to_the_next(tiny: Bundle, fussy) -> None:
    fussy.largest = 1
    asked = Request(providers=CPU, runtimes=("fussy", "onnx-reference"), points=batch(1, 2), plan=QUICK)
    baselines = [row.verdict.baseline for row in bench(tiny, asked).rows if row.verdict]
    assert baselines == ["fp32 fussy cpu"] * 2 + ["fp32 onnx-reference cpu"]


def test_the_baseline_is_the_bundles_own_in_onnxruntime_on_the_cpu(digits: Bundle) -> None:
    manifest = dataclasses.replace(digits.manifest, baseline="int8-qdq")
    own = dataclasses.replace(digits, manifest=manifest)
    asked = Request(providers=CPU, runtimes=("openvino", "onnxruntime"), points=batch(1), plan=QUICK)
    assert {row.verdict.baseline for row in bench(own, asked).rows if row.verdict} == {"int8-qdq onnxruntime cpu"}


def test_the_verdicts_name_their_baseline(digits: Bundle, kit_inside: Kit) -> None:
    here = ("bench", str(digits.folder), "--provider", "cpu", "--batch-size", "1", "--budget", "500ms")
    assert "against fp32" in kit_inside(*here).stdout
    alone = kit_inside(*here, "--variant", "int8-qdq").stdout
    assert "against int8-qdq" in alone
    elsewhere = kit_inside(*here, "--variant", "fp32", "--runtime", "openvino").stdout
    assert "against the baseline" in elsewhere
    assert "Baseline: fp32 openvino cpu." in elsewhere


def test_few_rounds_have_no_interval_and_no_verdict(tiny: Bundle) -> None:
    found = bench(tiny, Request(providers=CPU, points=batch(1), plan=Plan(budget_seconds=0.001)))
    (row,) = found.rows
    assert row.latency is not None
    assert row.latency.rounds < LEAST_ROUNDS
    assert (row.latency.low_us, row.latency.high_us) == (None, None)
    assert any("too few" in remark for remark in found.remarks())
    assert found.controls[0].outcome is Outcome.INCONCLUSIVE


def test_what_is_not_opened_when_the_time_is_up_says_so(tiny: Bundle) -> None:
    asked = Request(providers=CPU, runtimes=("onnxruntime", "onnx-reference"), plan=Plan(budget_seconds=1e-6))
    found = bench(tiny, asked)
    assert [row.status for row in found.rows if row.runtime == "onnxruntime"] == [Status.OK] * 2
    assert all("the time was up" in row.reason for row in found.rows if row.runtime == "onnx-reference")


def test_a_size_that_nobody_named_is_left_out_and_said_if_a_call_would_take_very_long(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kit.bench.sweep.SLOWEST_CALL_US", 0.0)
    found = bench(tiny, Request(providers=CPU, plan=QUICK))
    assert [row.sizes for row in found.rows] == [{"batch": 1}]
    assert any("batch 64 was left out" in remark for remark in found.remarks())
    named = bench(tiny, Request(providers=CPU, points=batch(1, 64), plan=QUICK))
    assert [row.sizes["batch"] for row in named.rows] == [1, 64]
    assert named.left_out == ()


def test_a_budget_in_which_hardly_a_query_arrives_is_refused(tiny: Bundle) -> None:
    slow = Load(scenario=Scenario.SERVER, rate=0.5)
    with pytest.raises(UsageError, match="one round takes 80 s"):
        bench(tiny, Request(providers=CPU, load=slow, plan=Plan(budget_seconds=1)))


def test_chance_in_the_arrivals_is_no_saturation(tiny: Bundle) -> None:
    calm = Load(scenario=Scenario.SERVER, rate=400.0)
    for seed in range(5):
        found = bench(tiny, Request(providers=CPU, load=calm, plan=Plan(budget_seconds=0.15, seed=seed)))
        assert not found.rows[0].saturated


def test_memory_is_that_of_the_batch_beside_it(tiny: Bundle) -> None:
    found = bench(tiny, Request(providers=CPU, points=batch(65_536, 1), plan=Plan(budget_seconds=0.2)))
    large, small = (row.memory_bytes or 0 for row in found.rows)
    assert large - small > 4_000_000, "65,536 samples of 64 bytes are that many"


def test_a_high_water_mark_that_cannot_be_reset_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    waste = bytearray(200_000_000)
    del waste
    monkeypatch.setattr("kit.bench.meters._CLEAR_REFS", tmp_path / "not" / "there")
    with PeakMemory() as memory:
        pass
    assert memory.added_bytes < 100_000_000


def test_impossible_sizes_are_refused_or_a_row_that_says_why(tiny: Bundle) -> None:
    offline = Load(scenario=Scenario.OFFLINE, samples=100)
    with pytest.raises(UsageError, match="100 samples"):
        bench(tiny, Request(providers=CPU, load=offline, points=batch(101), plan=QUICK))
    found = bench(tiny, Request(providers=CPU, load=offline, sweep="batch", plan=Plan(budget_seconds=0.5)))
    assert max(row.samples for row in found.rows) == 64
    huge = bench(tiny, Request(providers=CPU, points=batch(10**11, 1), plan=QUICK))
    assert [row.status for row in huge.rows] == [Status.UNAVAILABLE, Status.OK]
    assert "GB are free" in huge.rows[0].reason
    with pytest.raises(UsageError, match="wait for each other"):
        RunnerOptions(threads=3000)


@pytest.mark.usefixtures("no_cuda")
def test_a_profile_that_fell_back_says_so_and_keeps_its_own_trace(tiny: Bundle, tmp_path: Path) -> None:
    options = RunnerOptions(allow_fallback=True)
    asked = Request(providers=(Provider.CUDA, Provider.CPU), points=batch(1), profile=tmp_path, runner=options)
    fallback, cpu = bench(tiny, asked).rows
    assert (fallback.status, cpu.status) == (Status.FALLBACK, Status.OK)
    assert fallback.reason
    assert fallback.fix
    assert fallback.trace_file != cpu.trace_file
    assert sorted(path.name for path in tmp_path.glob("*.json")) == sorted([fallback.trace_file, cpu.trace_file])


def test_a_path_that_cannot_be_written_is_refused_before_the_work(
    tiny: Bundle, kit_inside: Kit, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "x.json", tmp_path):
        with pytest.raises(StorageUnavailable) as caught:
            files.check_writable(path)
        assert caught.value.hint
    said = kit_inside("bench", str(tiny.folder), "--json", str(tmp_path / "file" / "x.json"))
    assert said.returncode == 3
    assert "Measuring" not in said.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders, and links need rights")
def test_a_pipe_is_written_to_and_a_link_is_followed(tmp_path: Path) -> None:
    pipe, target, link = tmp_path / "pipe", tmp_path / "target", tmp_path / "link"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    files.write(pipe, "through")
    reader.join()
    assert got == [b"through"]
    assert pipe.is_fifo()
    target.write_text("old")
    link.symlink_to(target)
    files.write(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_output_to_a_pipe_is_utf8_whatever_the_system_prefers(tiny: Bundle, kit: Kit) -> None:
    found = kit("bench", str(tiny.folder), "--provider", "cpu", "--budget", "300ms", PYTHONIOENCODING="ascii")
    assert found.returncode == 0, found.stderr
    assert "µs" in found.stdout


def test_the_gpu_is_the_one_that_cuda_counts() -> None:
    assert physical_gpu(1, None) == 1
    assert physical_gpu(0, "3,1") == 3
    assert physical_gpu(1, "3, GPU-8f6a") == "GPU-8f6a"
    assert physical_gpu(1, "3") is None
    assert physical_gpu(0, "") is None
    assert physical_gpu(1, "-1,1") is None


def test_a_results_file_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"kind": "other"}))
    with pytest.raises(BadInput, match="no results of kit bench"):
        load(tmp_path / "x.json")
    with pytest.raises(BadInput) as caught:
        load(tmp_path / "missing.json")
    assert "kit bench" in caught.value.hint


@pytest.mark.parametrize(
    "ref", [TaskRef(name="image-classification@9"), TaskRef(name="image-classification@1", options={"magic": 1})]
)
def test_a_task_that_does_not_open_costs_the_scores_alone(digits: Bundle, ref: TaskRef) -> None:
    variants = tuple(dataclasses.replace(one, scores=()) for one in digits.variants)
    manifest = dataclasses.replace(digits.manifest, task=ref, variants=variants)
    asked = Request(providers=CPU, variants=("fp32",), points=batch(1), plan=QUICK)
    found = bench(dataclasses.replace(digits, manifest=manifest), asked)
    (row,) = found.rows
    assert (row.status, row.scores) == (Status.OK, ())
    assert row.latency is not None
    (remark,) = [one for one in found.remarks() if "no scores were counted" in one]
    assert ref.name in remark or "image-classification@9" in remark


def test_the_baseline_keeps_its_figures_if_there_is_no_room_for_its_twin(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for: list[int] = []
    last = 10**9

    def memory() -> SimpleNamespace:
        asked_for.append(1)
        return SimpleNamespace(available=0 if len(asked_for) == last else 2**40)

    monkeypatch.setattr(cases, "psutil", SimpleNamespace(virtual_memory=memory))
    request = Request(providers=CPU, variants=("fp32",), points=batch(1), plan=QUICK)
    assert bench(tiny, request).controls[0].comparison is not None
    last = len(asked_for)  # the twin is the last to ask
    asked_for.clear()
    found = bench(tiny, request)
    assert len(asked_for) == last
    assert [(row.status, row.latency is not None) for row in found.rows] == [(Status.OK, True)]
    assert [one.comparison for one in found.controls] == [None]
