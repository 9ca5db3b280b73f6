"""Runtimes are plugs: each answers as PyTorch does, one that is missing is a row that says why, and anyone can add one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from kit.bench.measure import Plan
from kit.bench.results import Status
from kit.bench.run import Request, bench
from kit.bundle import Bundle
from kit.choices import Provider
from kit.errors import Unavailable, UsageError
from kit.runtime import providers, registry
from kit.runtime.base import RunnerOptions
from kit.verify import verify
from tests.conftest import Kit
from tests.helpers.blocked import BLOCK

QUICK = Plan(rounds=10, turn_ms=0.5, warmup_ms=1.0)
HAS_COMPILER = shutil.which("g++") is not None
SIMPLE = ("onnxruntime", "openvino", "pytorch", "onnx-reference")


@pytest.mark.parametrize("runtime", SIMPLE)
@pytest.mark.parametrize("variant", ["fp32", "int8-qdq", "int8-dynamic"])
def test_every_runtime_answers_as_pytorch_does(digits: Bundle, runtime: str, variant: str) -> None:
    chosen = digits.variant(variant)
    if not registry.can_run(runtime, chosen):
        pytest.skip(f"{runtime} has no {variant}")
    golden = digits.golden()
    with registry.open_runner(runtime, digits, chosen, RunnerOptions()) as runner:
        logits = runner.run(golden.pixels[:32])
        one = runner.run(golden.pixels[:1])
    assert runner.runtime == runtime
    assert logits.dtype == np.float32
    assert (logits.argmax(axis=1) == golden.logits[:32].argmax(axis=1)).mean() > 0.95
    assert one.shape == (1, 10)
    if variant == "fp32":
        assert np.allclose(logits, golden.logits[:32], atol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
@pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile needs a C++ compiler")
def test_compiled_pytorch_answers_as_eager_does(tiny: Bundle) -> None:
    with registry.open_runner("pytorch-compile", tiny, tiny.variant(), RunnerOptions()) as runner:
        assert np.allclose(runner.run(tiny.golden().pixels), tiny.golden().logits, atol=1e-4)


def test_the_bench_puts_runtimes_in_one_table(digits: Bundle) -> None:
    wanted = ("onnxruntime", "openvino", "pytorch")
    found = bench(digits, Request(providers=(Provider.CPU,), runtimes=wanted, batch_sizes=(1,), plan=QUICK))
    pairs = [(row.runtime, row.variant) for row in found.rows]
    assert pairs.count(("pytorch", "fp32")) == 1
    assert ("pytorch", "int8-qdq") not in pairs
    assert ("openvino", "int8-qdq") in pairs
    for row in found.rows:
        assert row.status is Status.OK, row.reason
        assert row.verdict is not None
        assert row.verdict.baseline == "fp32 onnxruntime cpu"
        assert row.accuracy_source == "live"


def test_verify_holds_every_runtime_against_pytorch(digits: Bundle) -> None:
    result = verify(digits, runtimes=("onnxruntime", "openvino", "onnx-reference"))
    assert {check.runtime for check in result.variants} == {"onnxruntime", "openvino", "onnx-reference"}
    for check in result.variants:
        if check.variant == "fp32":
            assert check.ok, check.problem


def test_a_missing_runtime_is_a_row_with_the_line_that_installs_it(tiny: Bundle, python: Kit) -> None:
    line = [
        "bench",
        str(tiny.folder),
        "--runtime",
        "onnxruntime",
        "--runtime",
        "openvino",
        "--batch-size",
        "1",
        "--json",
        "-",
    ]
    found = python(BLOCK.format(blocked=("openvino",)) + f"from apps.cli import run; raise SystemExit(run({line!r}))")
    assert found.returncode == 3, found.stderr
    rows = {row["runtime"]: row for row in json.loads(found.stdout)["rows"]}
    assert rows["onnxruntime"]["status"] == "ok"
    assert rows["openvino"]["status"] == "unavailable"
    assert "pip install" in rows["openvino"]["fix"]


def test_a_runtime_for_the_cpu_is_not_measured_under_cudas_name(tiny: Bundle) -> None:
    for runtime in ("openvino", "onnx-reference"):
        with pytest.raises(Unavailable, match="CPU only"):
            registry.open_runner(runtime, tiny, tiny.variant(), RunnerOptions(provider=Provider.CUDA))


@pytest.mark.usefixtures("no_cuda")
def test_pytorch_on_cuda_is_strict_and_falls_back_only_when_allowed(tiny: Bundle) -> None:
    with pytest.raises(Unavailable, match="sees no GPU"):
        registry.open_runner("pytorch", tiny, tiny.variant(), RunnerOptions(provider=Provider.CUDA))
    allowed = RunnerOptions(provider=Provider.CUDA, allow_fallback=True)
    with registry.open_runner("pytorch", tiny, tiny.variant(), allowed) as runner:
        assert runner.provider is Provider.CPU
        assert "sees no GPU" in runner.fallback_reason


@pytest.mark.usefixtures("no_cuda")
def test_tensorrt_that_cannot_run_is_a_row_that_says_why(tiny: Bundle) -> None:
    found = bench(tiny, Request(providers=(Provider.TENSORRT,), runtimes=("onnxruntime", "pytorch"), plan=QUICK))
    assert {row.status for row in found.rows} == {Status.UNAVAILABLE}
    assert all(row.reason and row.fix for row in found.rows)


@pytest.mark.gpu
def test_pytorch_on_cuda_answers_as_on_the_cpu(tiny: Bundle) -> None:
    golden = tiny.golden()
    with registry.open_runner("pytorch", tiny, tiny.variant(), RunnerOptions(provider=Provider.CUDA)) as runner:
        assert runner.provider is Provider.CUDA
        assert np.allclose(runner.run(golden.pixels), golden.logits, atol=1e-3)


@pytest.mark.gpu
def test_tensorrt_answers_as_the_cpu_does_where_it_works(tiny: Bundle) -> None:
    report = providers.prove(Provider.TENSORRT)
    if not report.works:
        pytest.skip(report.reason)
    golden = tiny.golden()
    with registry.open_runner("onnxruntime", tiny, tiny.variant(), RunnerOptions(provider=Provider.TENSORRT)) as runner:
        assert runner.placement.nodes.get("tensorrt", 0) > 0
        assert np.allclose(runner.run(golden.pixels), golden.logits, atol=1e-2)


def test_the_reference_evaluator_keeps_to_its_threads_and_gives_them_back(tiny: Bundle) -> None:
    """It computes with numpy, whose matrix library takes all CPUs unless told."""

    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    with threadpool_limits(limits=2, user_api="blas"):
        with registry.open_runner("onnx-reference", tiny, tiny.variant(), RunnerOptions(threads=1)):
            assert threads() == {1}
        assert threads() == {2}


def test_an_unknown_runtime_lists_those_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        registry.chosen(("tflite",))
    assert "openvino" in caught.value.hint
    assert registry.chosen(("all",)) == registry.names()


def test_another_package_adds_a_runtime_by_an_entry_point(tiny: Bundle, tmp_path: Path) -> None:
    """What pip would write, written by hand: a module and its metadata."""
    site = tmp_path / "site"
    metadata = site / "zeros-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: zeros\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[kit.runtimes]\nzeros = zeros:open_zeros\n")
    (site / "zeros.py").write_text(
        """
import numpy as np
from kit.runtime.base import BaseRunner, Placement
from kit.choices import Provider

class Zeros(BaseRunner):
    runtime, provider, fallback_reason, placement = "zeros", Provider.CPU, "", Placement({"cpu": 1})

    def __init__(self, classes):
        self.classes = classes

    def run(self, pixels):
        return np.zeros((len(pixels), self.classes), np.float32)

    def close(self):
        pass

def open_zeros(bundle, variant, options):
    return Zeros(len(bundle.spec.labels))
"""
    )
    line = [str(Path(sys.executable).with_name("kit")), "bench", str(tiny.folder), "--runtime", "zeros", "--json", "-"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    found = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert {row["runtime"] for row in json.loads(found.stdout)["rows"]} == {"zeros"}
