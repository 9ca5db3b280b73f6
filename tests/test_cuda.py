"""What only a GPU can prove: device-resident calls, CUDA graphs, TF32, the memory limit, and the libraries' preload."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import kit
from kit.bench.measure import Plan
from kit.bench.request import Request
from kit.bench.results import Status, load
from kit.bench.run import bench
from kit.bundle import Bundle
from kit.choices import Mode, Provider
from kit.errors import ProviderUnavailable
from kit.runtime import registry
from kit.runtime.base import RunnerOptions
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from tests import graphs

pytestmark = pytest.mark.gpu

CUDA = RunnerOptions(provider=Provider.CUDA)
GRAPH = RunnerOptions(provider=Provider.CUDA, cuda_graph=True)
PREDICT = """
import sys
import kit
with kit.load(sys.argv[1], provider="cuda") as engine:
    bundle = kit.find(sys.argv[1])
    engine.run(bundle.signature.take(bundle.golden()[0].inputs, slice(1)))
    print(engine.provider)
"""


@pytest.mark.parametrize("options", [CUDA, GRAPH])
@pytest.mark.parametrize("runtime", ["onnxruntime", "pytorch"])
def test_bound_on_the_device_the_outputs_are_those_of_the_cpu(
    tiny: Bundle, runtime: str, options: RunnerOptions
) -> None:
    (golden,) = tiny.golden()
    assert golden.expected is not None
    pixels, logits = golden.inputs["pixels"], golden.expected["logits"]
    with registry.open_runner(runtime, tiny, tiny.variant(), options) as runner:
        for size in (1, 2, 64, 1, 64):  # a graph for each, replayed when its size comes again
            bound = runner.bind({"batch": size})
            for start in (0, 64, 128):
                rows = slice(start, start + size)
                assert np.allclose(bound.run(pixels[rows]), logits[rows], atol=1e-4)
                assert np.allclose(runner.run({"pixels": pixels[rows]})["logits"], logits[rows], atol=1e-4)


def test_several_inputs_and_outputs_are_bound_on_the_device(tmp_path: Path) -> None:
    bundle = graphs.bundle(graphs.sentences(), tmp_path / "sentences", sizes={"sequence": 4})
    with (
        registry.open_runner("onnxruntime", bundle, bundle.variant(), RunnerOptions()) as cpu,
        registry.open_runner("onnxruntime", bundle, bundle.variant(), CUDA) as gpu,
    ):
        for length in (3, 8, 3):
            inputs = {"ids": np.arange(length)[np.newaxis] % 10, "mask": np.ones((1, length), bool)}
            expected = cpu.run(inputs)
            bound = gpu.bind({"sequence": length})
            for found in (gpu.run(inputs), dict(zip(expected, bound.run(*inputs.values()), strict=True))):
                assert all(np.allclose(found[name], expected[name], atol=1e-4) for name in expected)


def test_fp16_of_pytorch_and_of_the_bundle_agree(digits: Bundle) -> None:
    inputs = digits.golden()[0].inputs
    with kit.load(digits.folder, provider="cuda") as engine:
        expected = engine.run(inputs)["logits"].argmax(axis=1)
    module = registry.open_runner("pytorch", digits, digits.variant("fp32"), CUDA)
    assert (module.run(inputs)["logits"].argmax(axis=1) == expected).mean() > 0.98


def test_a_limit_of_memory_is_kept(digits: Bundle) -> None:
    limited = RunnerOptions(provider=Provider.CUDA, gpu_memory_limit_bytes=64 * 2**20)
    with OnnxRuntimeRunner(digits.model(digits.variant("fp32")), limited) as runner:
        assert runner.run(digits.golden()[0].inputs)["logits"].shape[1] == 10
        shape = digits.signature.input("pixels").sized({"batch": 400_000})
        with pytest.raises(ProviderUnavailable, match="samples on cuda"):
            runner.run({"pixels": np.zeros(shape, np.uint8)})


@pytest.mark.parametrize("first", ["", "import torch\n", "import onnxruntime\n", "import onnxruntime, torch\n"])
def test_the_libraries_are_found_whoever_loads_first(tiny: Bundle, first: str) -> None:
    line = [sys.executable, "-c", first + PREDICT, str(tiny.folder)]
    found = subprocess.run(line, capture_output=True, text=True, check=False)
    assert found.stdout.strip() == "cuda", found.stderr


def test_the_bench_tells_device_and_host_apart(tiny: Bundle) -> None:
    asked = Request(
        providers=(Provider.CPU, Provider.CUDA),
        points=({"batch": 1}, {"batch": 64}),
        modes=(Mode.HOST, Mode.DEVICE),
        runner=RunnerOptions(provider=Provider.CUDA, cuda_graph=True),
        plan=Plan(rounds=10, turn_ms=1),
    )
    found = bench(tiny, asked)
    assert all(row.status is Status.OK for row in found.rows)
    on_gpu = [row for row in found.rows if row.provider is Provider.CUDA]
    assert all("CUDA graph" in row.session for row in on_gpu)
    assert {row.mode for row in on_gpu} == {Mode.HOST, Mode.DEVICE}
    assert found.machine.gpus


@pytest.mark.slow
def test_one_script_runs_it_all_and_writes_one_file(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "scripts" / "gpu.py"
    out = tmp_path / "cuda.json"
    done = subprocess.run(
        [sys.executable, script, "--json", out], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = load(out)
    assert {"matmul_fp32_tflops", "matmul_tf32_tflops", "matmul_fp16_tflops"} <= set(found.limits)
    assert any(row.cold for row in found.rows)
    assert json.loads(out.read_text())["machine"]["gpus"]
