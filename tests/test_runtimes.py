"""Runtimes are plugs: each answers as the original did, one that is missing is a row that says why, and anyone can add one."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

from kit import ready
from kit.bench.measure import Plan
from kit.bench.results import Status
from kit.bench.run import Request, bench
from kit.bundle import Bundle, FileRef
from kit.bundle.manifest import Provenance
from kit.choices import Provider
from kit.errors import BundleInvalid, Unavailable, UsageError
from kit.runtime import providers, registry
from kit.runtime.base import RunnerOptions
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.runtime.openvino import OpenVinoRunner
from kit.runtime.pytorch import PyTorchRunner, answers
from kit.runtime.reference import ReferenceRunner
from kit.tensors import Axis, Signature, TensorSpec
from kit.verify import verify
from tests import graphs
from tests.conftest import Kit
from tests.helpers.blocked import BLOCK

QUICK = Plan(rounds=10, turn_ms=0.5, warmup_ms=1.0)
HAS_COMPILER = shutil.which("g++") is not None
SIMPLE = ("onnxruntime", "openvino", "mnn", "pytorch", "onnx-reference")


@pytest.mark.parametrize("runtime", SIMPLE)
@pytest.mark.parametrize("variant", ["fp32", "int8-qdq", "int8-dynamic"])
def test_every_runtime_answers_as_the_original_did(digits: Bundle, runtime: str, variant: str) -> None:
    chosen = digits.variant(variant)
    if not registry.can_run(runtime, chosen):
        pytest.skip(f"{runtime} has no {variant}")
    (golden,) = digits.golden()
    assert golden.expected is not None
    with registry.open_runner(runtime, digits, chosen, RunnerOptions()) as runner:
        logits = runner.run(digits.signature.take(golden.inputs, slice(32)))["logits"]
        one = runner.run(digits.signature.take(golden.inputs, slice(1)))["logits"]
    assert runner.runtime == runtime
    assert logits.dtype == np.float32
    assert (logits.argmax(axis=1) == golden.expected["logits"][:32].argmax(axis=1)).mean() > 0.95
    assert one.shape == (1, 10)
    if variant == "fp32":
        assert np.allclose(logits, golden.expected["logits"][:32], atol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
@pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile needs a C++ compiler")
def test_compiled_pytorch_answers_as_eager_does(tiny: Bundle) -> None:
    (golden,) = tiny.golden()
    assert golden.expected is not None
    with registry.open_runner("pytorch-compile", tiny, tiny.variant(), RunnerOptions()) as runner:
        assert np.allclose(runner.run(golden.inputs)["logits"], golden.expected["logits"], atol=1e-4)


@dataclasses.dataclass
class Answer:
    """What a module may return."""

    difference: torch.Tensor
    sum: torch.Tensor
    more: torch.Tensor


RETURNS = {
    "a tuple": lambda a, b: (a + b, a - b),
    "a list": lambda a, b: [a + b, a - b],
    "a dict in another order": lambda a, b: {"more": a, "difference": a - b, "sum": a + b},
    "a dict of other names": lambda a, b: {"x": a + b, "y": a - b},
    "a dataclass": lambda a, b: Answer(difference=a - b, sum=a + b, more=a),
}


class Returns(nn.Module):
    """Returns what a function does."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.function(*tensors)


def two_by_two() -> Signature:
    shape = ("batch", 3)
    return Signature(
        inputs=tuple(TensorSpec(name=name, dtype="float32", shape=shape) for name in ("a", "b")),
        outputs=tuple(TensorSpec(name=name, dtype="float32", shape=shape) for name in ("sum", "difference")),
    )


@pytest.mark.parametrize("how", RETURNS)
def test_a_module_may_return_its_outputs_in_any_way(how: str) -> None:
    a, b = np.random.default_rng(0).normal(0, 1, (2, 5, 3)).astype(np.float32)
    with PyTorchRunner(Returns(RETURNS[how]), two_by_two()) as runner:
        found = runner.run({"b": b, "a": a})
        bound = runner.bind({"batch": 5})
        assert [np.allclose(one, wanted) for one, wanted in zip(bound.run(a, b), (a + b, a - b), strict=True)] == [
            True,
            True,
        ]
    assert list(found) == ["sum", "difference"]
    assert np.allclose(found["difference"], a - b)
    with pytest.raises(UsageError, match="closed"):
        runner.run({"a": a, "b": b})


def test_a_module_takes_views_that_run_backwards() -> None:
    a, b = np.random.default_rng(0).normal(0, 1, (2, 5, 3)).astype(np.float32)
    with PyTorchRunner(Returns(lambda a, b: (a + b, a - b)), two_by_two()) as runner:
        assert np.array_equal(runner.run({"a": a[:, ::-1], "b": b})["sum"], a[:, ::-1] + b)
        assert np.array_equal(runner.run({"a": a[:1][::-1], "b": b[:1]})["sum"], a[:1] + b[:1])


def test_a_module_that_returns_something_else_is_refused_in_words() -> None:
    x = {"a": np.zeros((1, 3), np.float32), "b": np.zeros((1, 3), np.float32)}
    for wrong in (lambda a, b: a + b, lambda a, b: "text", lambda a, b: (a, b, a), lambda a, b: (a, None)):  # noqa: ARG005
        with (
            PyTorchRunner(Returns(wrong), two_by_two()) as runner,
            pytest.raises(BundleInvalid, match="expected tensors for sum, difference"),
        ):
            runner.run(x)
    with (
        PyTorchRunner(Returns(lambda a, b: a @ b), two_by_two()) as runner,
        pytest.raises(BundleInvalid, match="PyTorch could not run on cpu"),
    ):
        runner.run(x)


def test_a_module_answers_in_pieces_and_in_half_precision() -> None:
    signature = Signature(
        inputs=(TensorSpec(name="pixels", dtype="uint8", shape=("batch", 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 2)),),
    )
    layer = nn.Linear(4, 2)
    module = nn.Sequential(Returns(lambda x: x.float() / 255), layer)
    pixels = np.random.default_rng(0).integers(0, 256, (300, 4), dtype=np.uint8)
    with torch.inference_mode():
        expected = module(torch.from_numpy(pixels)).numpy()
    assert np.allclose(answers(module, signature, {"pixels": pixels})["y"], expected, atol=1e-6)
    with PyTorchRunner(module, signature, half=True) as runner:
        found = runner.run({"pixels": pixels})["y"]
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() < 1e-2
    assert layer.weight.dtype == torch.float32


def test_an_output_that_varies_is_run_by_other_runtimes_too() -> None:
    model = graphs.nonzero().SerializeToString()
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("n", 3)),),
        outputs=(TensorSpec(name="places", dtype="int64", shape=(2, "found"), varies=True),),
        batch=None,
    )
    for runner in (
        OpenVinoRunner(model, RunnerOptions(), signature=signature),
        ReferenceRunner(model, RunnerOptions(), signature=signature),
        PyTorchRunner(Returns(lambda x: x.nonzero().T), signature),
    ):
        with runner:
            for values in ([[1, 0, 2]], [[1, 1, 2]], [[0, 0, 0]]):
                x = np.array(values, np.float32)
                assert np.array_equal(runner.run({"x": x})["places"], np.nonzero(x)), runner.runtime
            with pytest.raises(Unavailable, match="depends on the values"):
                runner.bind({"n": 1})


@pytest.mark.parametrize("runtime", ["openvino", "onnx-reference"])
def test_weights_beside_the_graph_are_read_by_other_runtimes_too(tmp_path: Path, runtime: str) -> None:
    path = graphs.save_beside(graphs.pixels(), tmp_path / "model.onnx")
    ready_model = ready.find(path)
    (golden,) = ready_model.golden()
    assert golden.expected is not None
    assert isinstance(ready_model.model(ready_model.variant()), Path)
    with registry.open_runner(runtime, ready_model, ready_model.variant(), RunnerOptions()) as runner:
        assert np.allclose(runner.run(golden.inputs)["logits"], golden.expected["logits"], atol=1e-4)


def test_what_no_runtime_accepts_is_refused_by_each(tmp_path: Path) -> None:
    signature = two_by_two()
    for opened in (OpenVinoRunner, ReferenceRunner):
        with pytest.raises(BundleInvalid):
            opened(b"not a model", RunnerOptions(), signature=signature)
    with pytest.raises(BundleInvalid):
        ReferenceRunner(tmp_path / "missing.onnx", RunnerOptions(), signature=signature)


def test_a_bundle_without_its_original_cannot_run_in_pytorch(tmp_path: Path) -> None:
    bundle = graphs.bundle(graphs.two_by_two(), tmp_path / "two")
    with pytest.raises(Unavailable, match="kit cannot rebuild the original for PyTorch"):
        registry.open_runner("pytorch", bundle, bundle.variant(), RunnerOptions())


def test_another_package_rebuilds_its_own_architectures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pip would write, written by hand: a module and its metadata."""
    site = tmp_path / "site"
    metadata = site / "adder-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: adder\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[kit.architectures]\nadder = adder_module:rebuild\n")
    (site / "adder_module.py").write_text(
        """
from torch import nn

class Adder(nn.Module):
    def forward(self, a, b):
        return a + b, a - b

def rebuild(bundle):
    return Adder() if bundle.manifest.original.name == "adder" else None
"""
    )
    monkeypatch.syspath_prepend(str(site))
    bundle = graphs.bundle(graphs.two_by_two(), tmp_path / "two")
    for name in ("adder", "other"):
        weights = FileRef(file="weights-00000000.safetensors", sha256="0" * 64, size_bytes=0)
        original = Provenance(kind="architecture", name=name, weights=weights)
        known = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, original=original))
        if name == "adder":
            with registry.open_runner("pytorch", known, known.variant(), RunnerOptions()) as runner:
                (golden,) = bundle.golden()
                assert golden.expected is not None
                assert np.allclose(runner.run(golden.inputs)["sum"], golden.expected["sum"])
        else:
            with pytest.raises(Unavailable, match="cannot rebuild architecture 'other'"):
                registry.open_runner("pytorch", known, known.variant(), RunnerOptions())


def test_the_bench_puts_runtimes_in_one_table(digits: Bundle) -> None:
    wanted = ("onnxruntime", "openvino", "pytorch")
    found = bench(digits, Request(providers=(Provider.CPU,), runtimes=wanted, points=({"batch": 1},), plan=QUICK))
    pairs = [(row.runtime, row.variant) for row in found.rows]
    assert pairs.count(("pytorch", "fp32")) == 1
    assert ("pytorch", "int8-qdq") not in pairs
    assert ("openvino", "int8-qdq") in pairs
    for row in found.rows:
        assert row.status is Status.OK, row.reason
        assert row.verdict is not None
        assert row.verdict.baseline == "fp32 onnxruntime cpu"
        assert row.score_source == "live"


def test_verify_holds_every_runtime_against_the_original(digits: Bundle) -> None:
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
        "--axis",
        "batch=1",
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
    (golden,) = tiny.golden()
    assert golden.expected is not None
    with registry.open_runner("pytorch", tiny, tiny.variant(), RunnerOptions(provider=Provider.CUDA)) as runner:
        assert runner.provider is Provider.CUDA
        assert np.allclose(runner.run(golden.inputs)["logits"], golden.expected["logits"], atol=1e-3)


@pytest.mark.gpu
def test_tensorrt_answers_as_the_cpu_does_where_it_works(tiny: Bundle) -> None:
    report = providers.prove(Provider.TENSORRT)
    if not report.works:
        pytest.skip(report.reason)
    (golden,) = tiny.golden()
    assert golden.expected is not None
    with registry.open_runner("onnxruntime", tiny, tiny.variant(), RunnerOptions(provider=Provider.TENSORRT)) as runner:
        assert runner.placement.nodes.get("tensorrt", 0) > 0
        assert np.allclose(runner.run(golden.inputs)["logits"], golden.expected["logits"], atol=1e-2)


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
    assert set(registry.names()) - set(registry.chosen(("all",))) <= {registry.BROWSER, *registry.GUESTS}


@pytest.mark.slow
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
    runtime, provider, placement = "zeros", Provider.CPU, Placement({"cpu": 1})

    def __init__(self, signature):
        self.signature = signature

    def run(self, tensors):
        sizes = self.signature.check(tensors)
        return {spec.name: np.zeros(spec.sized(sizes), spec.dtype) for spec in self.signature.outputs}

    def close(self):
        pass

def open_zeros(bundle, variant, options):
    return Zeros(bundle.signature)
"""
    )
    line = [str(Path(sys.executable).with_name("kit")), "bench", str(tiny.folder), "--runtime", "zeros", "--json", "-"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    found = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert {row["runtime"] for row in json.loads(found.stdout)["rows"]} == {"zeros"}


def _raises(error: Exception) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(_: torch.Tensor) -> torch.Tensor:
        raise error

    return forward


@pytest.mark.parametrize(
    "error",
    [
        AssertionError("x is wrong"),
        AttributeError("no attribute 'x is wrong'"),
        NotImplementedError("x is wrong"),
        ZeroDivisionError("x is wrong"),
        LookupError("x is wrong"),
    ],
)
def test_whatever_a_module_raises_is_told_as_the_models_defect(error: Exception) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch",)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch",)),),
    )
    with (
        PyTorchRunner(Returns(_raises(error)), signature) as runner,
        pytest.raises(BundleInvalid, match="x is wrong"),
    ):
        runner.run({"x": np.zeros(1, np.float32)})


@pytest.mark.parametrize("binds", [True, False])
def test_every_call_is_held_to_the_signature_if_nothing_is_bound(binds: bool) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("n", 3)),),
        outputs=(TensorSpec(name="places", dtype="int64", shape=(2, "found"), varies=True),),
        axes={"n": Axis(most=2)},
        batch=None,
    )
    with OnnxRuntimeRunner(graphs.nonzero().SerializeToString(), signature=signature, binds=binds) as runner:
        for _ in range(3):
            assert runner.run({"x": np.ones((1, 3), np.float32)})["places"].shape == (2, 3)
            with pytest.raises(UsageError, match="3 is more than 2"):
                runner.run({"x": np.ones((3, 3), np.float32)})
            with pytest.raises(UsageError, match="no input"):
                runner.run({"x": np.ones((1, 3), np.float32), "more": np.ones(1, np.float32)})
