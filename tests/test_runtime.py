"""Runners: strict about where they run, and clear about why not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kit.bundle import Bundle
from kit.choices import Provider
from kit.errors import BundleInvalid, ProviderUnavailable, UsageError
from kit.runtime import libraries, providers
from kit.runtime.base import Placement, RunnerOptions, check_pixels
from kit.runtime.onnxruntime import OnnxRuntimeRunner


def read(bundle: Bundle) -> bytes:
    return bundle.read(bundle.variant("fp32").artifact)


def test_the_cpu_runs_the_probe() -> None:
    assert providers.prove(Provider.CPU).works
    assert Provider.CPU in providers.working()


def test_the_stored_probe_is_the_model_it_says_it_is() -> None:
    weight = numpy_helper.from_array(np.array([[1, 2], [3, 4]], np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], name="gemm")],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="kit")
    assert onnx.load_from_string(providers.PROBE.read_bytes()) == model


def test_every_node_is_accounted_for(tiny: Bundle) -> None:
    with OnnxRuntimeRunner(read(tiny)) as runner:
        assert runner.placement.is_all_on(Provider.CPU)
        assert runner.placement.describe() == f"cpu {runner.placement.total}/{runner.placement.total}"


def test_placement_is_described_most_first() -> None:
    assert Placement({"cpu": 2, "cuda": 4}).describe() == "cuda 4/6, cpu 2/6"
    assert not Placement({"cpu": 2, "cuda": 4}).is_all_on(Provider.CUDA)


@pytest.mark.usefixtures("no_cuda")
def test_cuda_that_cannot_run_is_an_error_with_reason_and_fix(tiny: Bundle) -> None:
    with pytest.raises(ProviderUnavailable, match="CUDA cannot run here") as caught:
        OnnxRuntimeRunner(read(tiny), RunnerOptions(provider=Provider.CUDA))
    assert caught.value.hint
    assert caught.value.exit_code == 3


@pytest.mark.usefixtures("no_cuda")
def test_an_allowed_fallback_runs_on_the_cpu_and_says_so(tiny: Bundle) -> None:
    options = RunnerOptions(provider=Provider.CUDA, allow_fallback=True)
    with OnnxRuntimeRunner(read(tiny), options) as runner:
        assert runner.provider is Provider.CPU
        assert runner.fallback_reason
        assert runner.run(tiny.golden().pixels).shape == (256, 3)


def test_a_cpu_only_package_is_named_with_the_line_that_replaces_it() -> None:
    problem = libraries.cuda_problem(compiled_in=False, library_folder=Path())
    assert problem is not None
    assert problem.reason
    assert problem.fix


def test_a_provider_library_that_does_not_load_is_named(tmp_path: Path) -> None:
    problem = libraries._library_problem(tmp_path)
    assert problem is not None
    assert "onnxruntime_providers" in problem.reason
    assert "onnxruntime-gpu[cuda,cudnn]" in problem.fix


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x0a" * 50])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(BundleInvalid, match="does not accept"):
        OnnxRuntimeRunner(data)


def test_threads_and_device_ids_are_checked() -> None:
    with pytest.raises(UsageError):
        RunnerOptions(threads=0)
    with pytest.raises(UsageError):
        RunnerOptions(device_id=-1)


@pytest.mark.parametrize("option", [{"tf32": True}, {"cuda_graph": True}, {"gpu_memory_limit_bytes": 2**30}])
def test_what_only_a_gpu_has_is_refused_on_the_cpu(option: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(option))} changes nothing on the CPU"):
        RunnerOptions(**option)
    assert not RunnerOptions(provider=Provider.CUDA, **option).is_usual


def test_a_gpu_is_not_left_without_memory_and_graphs_are_of_cuda() -> None:
    with pytest.raises(UsageError, match="too few"):
        RunnerOptions(provider=Provider.CUDA, gpu_memory_limit_bytes=1000)
    with pytest.raises(UsageError, match="changes nothing on tensorrt"):
        RunnerOptions(provider=Provider.TENSORRT, cuda_graph=True)
    with pytest.raises(UsageError, match="all nodes or none"):
        RunnerOptions(provider=Provider.CUDA, cuda_graph=True, allow_fallback=True)


def test_one_sample_and_a_batch_are_accepted() -> None:
    assert check_pixels(np.zeros((4, 4), np.uint8), (4, 4)).shape == (1, 4, 4)
    strided = np.zeros((6, 8, 8), np.uint8)[::2, ::2, ::2]
    assert check_pixels(strided, (4, 4)).flags.c_contiguous


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((3, 5, 4), np.uint8),
        np.zeros(16, np.uint8),
        np.zeros((1, 1, 4, 4), np.uint8),
    ],
)
def test_other_arrays_are_refused_with_what_was_expected(wrong: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"expected uint8 pixels of shape \(4, 4\)"):
        check_pixels(wrong, (4, 4))


@pytest.mark.skipif(libraries.GPU_PACKAGE not in libraries.installed_packages(), reason="no GPU build is installed")
@pytest.mark.parametrize("first", ["", "import torch"])
def test_the_libraries_of_cuda_are_found_with_and_without_torch(first: str) -> None:
    """Nothing but the driver may be missing, whoever loaded which of them before."""
    code = f"""{first}
from pathlib import Path
import onnxruntime
from kit.runtime import libraries
from kit.runtime.onnxruntime import _preload
_preload()
problem = libraries._library_problem(Path(onnxruntime.__file__).parent / "capi")
print(problem.reason if problem else "")
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found in {"", "the library libcuda.so.1 is missing"}


@pytest.mark.gpu
def test_cuda_runs_every_node_of_the_float_variant(tiny: Bundle) -> None:
    with OnnxRuntimeRunner(read(tiny), RunnerOptions(provider=Provider.CUDA)) as runner:
        assert runner.provider is Provider.CUDA
        assert runner.placement.is_all_on(Provider.CUDA)
        assert np.allclose(runner.run(tiny.golden().pixels), tiny.golden().logits, atol=1e-4)


@pytest.mark.gpu
def test_a_gpu_that_is_not_there_is_named(tiny: Bundle) -> None:
    with pytest.raises(ProviderUnavailable, match="no GPU 99"):
        OnnxRuntimeRunner(read(tiny), RunnerOptions(provider=Provider.CUDA, device_id=99))


@pytest.mark.gpu
def test_nodes_without_a_cuda_kernel_are_named(digits: Bundle) -> None:
    data = digits.read(digits.variant("int8-dynamic").artifact)
    try:
        with OnnxRuntimeRunner(data, RunnerOptions(provider=Provider.CUDA)) as runner:
            assert runner.placement.is_all_on(Provider.CUDA)
    except ProviderUnavailable as error:
        assert "no kernel for" in str(error)  # noqa: PT017 - either outcome is honest; silence is not
