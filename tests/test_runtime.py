"""Runners: strict about where they run, and clear about why not."""

from __future__ import annotations

import dataclasses
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kit.bundle import Bundle
from kit.choices import Provider
from kit.errors import BundleInvalid, MemoryShort, ProviderUnavailable, Unavailable, UsageError
from kit.metrics import fidelity
from kit.runtime import libraries, onnxruntime, ort_errors, providers, registry
from kit.runtime.base import Placement, RunnerOptions, run_in_batches
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.runtime.profiler import profile
from kit.tensors import Signature, TensorSpec
from tests import graphs

PIXELS = graphs.pixels().SerializeToString()
ONE = {"pixels": np.arange(16, dtype=np.uint8).reshape(1, 4, 4)}


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


def test_the_stored_products_are_the_model_they_say_they_are() -> None:
    weight = numpy_helper.from_array(np.full((64, 8), 127, np.int8), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "products",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 8])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8, producer_name="kit")
    assert onnx.load_from_string(onnxruntime.PRODUCTS.read_bytes()) == model


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not Path("/proc/cpuinfo").is_file(), reason="the CPU's flags are not known here"
)
def test_products_saturate_on_x86_without_vnni_alone() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    is_exact = bool({"avx512_vnni", "avx_vnni"} & flags)
    assert onnxruntime.saturates() is not is_exact


@pytest.mark.parametrize(
    ("saturates", "may_saturate", "is_told"), [(True, False, "1"), (True, True, ""), (False, False, "")]
)
def test_where_products_saturate_onnx_runtime_is_told_to_be_exact_if_it_matters(
    saturates: bool, may_saturate: bool, is_told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "saturates", lambda: saturates)  # as on another CPU
    with OnnxRuntimeRunner(PIXELS, may_saturate=may_saturate) as runner:
        settings = runner._session.get_session_options()
        try:
            found = settings.get_session_config_entry("session.x64quantprecision")
        except RuntimeError:  # it has no such entry
            found = ""
        assert found == is_told


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(
    ("megabytes", "asked", "keeps"), [(1, None, False), (5, None, True), (5, False, False), (1, True, True)]
)
def test_freed_memory_is_kept_for_large_models_unless_somebody_says(
    megabytes: int, asked: bool | None, keeps: bool, beside: bool, tmp_path: Path
) -> None:
    weight = numpy_helper.from_array(np.zeros((256, megabytes * 1024), np.float32), "w")
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])]
        for name, size in (("x", 256), ("y", megabytes * 1024))
    ]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "large", *ends, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=beside, location="model.data")
    with OnnxRuntimeRunner(path if beside else path.read_bytes(), RunnerOptions(arena=asked)) as runner:
        assert runner._session.get_session_options().enable_cpu_mem_arena is keeps


def test_every_node_is_accounted_for() -> None:
    with OnnxRuntimeRunner(PIXELS) as runner:
        assert runner.placement.is_all_on(Provider.CPU)
        assert runner.placement.describe() == f"cpu {runner.placement.total}/{runner.placement.total}"


def test_placement_is_described_most_first() -> None:
    assert Placement({"cpu": 2, "cuda": 4}).describe() == "cuda 4/6, cpu 2/6"
    assert not Placement({"cpu": 2, "cuda": 4}).is_all_on(Provider.CUDA)


@pytest.mark.usefixtures("no_cuda")
def test_cuda_that_cannot_run_is_an_error_with_reason_and_fix() -> None:
    with pytest.raises(ProviderUnavailable, match="CUDA cannot run here") as caught:
        OnnxRuntimeRunner(PIXELS, RunnerOptions(provider=Provider.CUDA))
    assert caught.value.hint
    assert caught.value.exit_code == 3


@pytest.mark.usefixtures("no_cuda")
def test_an_allowed_fallback_runs_on_the_cpu_and_says_so() -> None:
    options = RunnerOptions(provider=Provider.CUDA, allow_fallback=True)
    with OnnxRuntimeRunner(PIXELS, options) as runner:
        assert runner.provider is Provider.CPU
        assert runner.fallback_reason
        assert runner.run(ONE)["logits"].shape == (1, 3)


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
    with pytest.raises(BundleInvalid, match=r"does not accept|no ONNX file"):
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


def test_bfloat16_is_openvinos_and_close_to_float32(duo: Bundle) -> None:
    pytest.importorskip("openvino")
    with pytest.raises(UsageError, match="bf16 changes nothing in onnxruntime"):
        registry.open_runner("onnxruntime", duo, duo.variant("fp32"), RunnerOptions(bf16=True))
    with pytest.raises(UsageError, match="bf16 changes nothing on cuda"):
        RunnerOptions(provider=Provider.CUDA, bf16=True)
    golden = duo.golden()
    try:
        with registry.open_runner("openvino", duo, duo.variant("fp32"), RunnerOptions(bf16=True)) as runner:
            found = fidelity.compare(golden, [run_in_batches(runner, group.inputs) for group in golden])
    except Unavailable as error:
        assert "does not compute in bfloat16" in str(error)  # noqa: PT017 - so it is on most CPUs
        return
    assert fidelity.judge_bfloat(found).passed
    worse = tuple(dataclasses.replace(one, cosine=0.99) for one in found)
    assert "cosine 0.9900" in fidelity.judge_bfloat(worse).reason
    fewer = tuple(dataclasses.replace(one, cosine=None, agreement=0.5) for one in found)
    assert "agreement 50.00 %" in fidelity.judge_bfloat(fewer).reason


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)


def test_the_signature_of_a_graph_is_read_from_it() -> None:
    with OnnxRuntimeRunner(graphs.sentences().SerializeToString()) as runner:
        signature = runner.signature
    assert signature.described() == {"ids": "int64 [batch, sequence]", "mask": "bool [batch, sequence]"}
    assert signature.output("sentence") == TensorSpec(name="sentence", dtype="float32", shape=("batch", 4))
    assert (signature.batch, signature.dynamic) == ("batch", ("batch", "sequence"))


def test_sizes_without_a_name_get_one_and_fixed_ones_are_no_batch() -> None:
    nodes = [graphs.node("Identity", "x", "y")]
    free = graphs.make(nodes, [("x", "float32", [None, 3, None])], [("y", "float32", [None, 3, None])])
    with OnnxRuntimeRunner(free.SerializeToString()) as runner:
        assert runner.signature.described() == {"x": "float32 [batch, 3, x_2]"}
        assert runner.signature.batch == "batch"
    fixed = graphs.make(nodes, [("x", "float32", [1, 3])], [("y", "float32", [1, 3])])
    with OnnxRuntimeRunner(fixed.SerializeToString()) as runner:
        assert runner.signature.batch is None
        assert runner.signature.axes == {}


def test_text_at_the_border_is_refused_in_words() -> None:
    text = graphs.make([graphs.node("Identity", "x", "y")], [("x", "str", [2])], [("y", "str", [2])])
    with pytest.raises(BundleInvalid, match="x is a tensor of string, which kit does not run"):
        OnnxRuntimeRunner(text.SerializeToString())


def test_sequences_and_optional_inputs_are_refused_in_words() -> None:
    model = graphs.make([graphs.node("SequenceConstruct", "x x", "y")], [("x", "float32", [2])], [])
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    model.graph.output.append(helper.make_value_info("y", helper.make_sequence_type_proto(kind)))
    with pytest.raises(BundleInvalid, match="y is a sequence, which kit does not run"):
        OnnxRuntimeRunner(model.SerializeToString())
    model = graphs.make([graphs.node("OptionalGetElement", "x", "y")], [], [("y", "float32", [2])])
    model.graph.input.append(helper.make_value_info("x", helper.make_optional_type_proto(kind)))
    with pytest.raises(BundleInvalid, match="x is optional, which kit does not run"):
        OnnxRuntimeRunner(model.SerializeToString())


def test_two_inputs_give_two_outputs_by_name() -> None:
    a, b = floats(5, 3), floats(5, 3) * 2
    with OnnxRuntimeRunner(graphs.two_by_two().SerializeToString()) as runner:
        for size in (5, 2, 5, 2, 1):  # bound when they come again
            found = runner.run({"b": b[:size], "a": a[:size]})
            assert list(found) == ["sum", "difference"]
            assert np.allclose(found["sum"], a[:size] + b[:size])
            assert np.allclose(found["difference"], a[:size] - b[:size])


def test_scalars_truth_values_half_floats_and_integers_are_run() -> None:
    inputs = {
        "half": np.array([[1, 2], [3, 4]], np.float16),
        "factor": np.array(0.5, np.float32),
        "flags": np.array([True, False]),
        "count": np.array([7, 2**40]),
    }
    with OnnxRuntimeRunner(graphs.mixed().SerializeToString()) as runner:
        assert runner.signature.batch == "batch"
        for factor in (0.5, 2.0, 0.25):
            inputs["factor"][...] = factor
            found = runner.run(inputs)
            assert found["product"].tolist() == (inputs["half"].astype(np.float32) * factor).tolist()
        assert found["others"].tolist() == [False, True]
        assert found["twice"].tolist() == [14, 2**41]
        assert found["same"].dtype == np.float16
        bound = runner.bind({"batch": 2})
        assert [one.tolist() for one in bound.run(*inputs.values())] == [one.tolist() for one in found.values()]


def test_an_output_that_varies_is_run_right_each_time_and_never_bound() -> None:
    model = graphs.nonzero().SerializeToString()
    with OnnxRuntimeRunner(model) as runner:  # nobody said that it varies
        for values in ([[1, 0, 2]], [[1, 0, 2]], [[1, 1, 2]], [[0, 0, 0]], [[1, 0, 2]]):
            x = np.array(values, np.float32)
            assert np.array_equal(runner.run({"x": x})["places"], np.nonzero(x))
        bound = runner.bind({"n": 1})
        with pytest.raises(Unavailable, match="depends on the values"):
            bound.run(np.ones((1, 3), np.float32))
    said = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("n", 3)),),
        outputs=(TensorSpec(name="places", dtype="int64", shape=(2, "found"), varies=True),),
        batch=None,
    )
    with OnnxRuntimeRunner(model, signature=said) as runner:
        assert runner.run({"x": np.ones((2, 3), np.float32)})["places"].shape == (2, 6)
        with pytest.raises(Unavailable, match="'places' depends on the values"):
            runner.bind({"n": 1})


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({}, "the input 'pixels' is missing"),
        ({**ONE, "other": np.zeros(1)}, "there is no input 'other'"),
        ({"other": ONE["pixels"]}, "the input 'pixels' is missing"),
        ({"pixels": np.zeros((1, 4, 4), np.float32)}, r"must be uint8 \[batch, 4, 4\], found float32"),
        ({"pixels": np.zeros((3, 5, 4), np.uint8)}, "5 for 4"),
        ({"pixels": np.zeros(16, np.uint8)}, "must be uint8"),
        ({"pixels": np.zeros((0, 4, 4), np.uint8)}, "0 is less than 1"),
    ],
)
@pytest.mark.parametrize("binds", [True, False])
def test_other_inputs_are_refused_with_what_was_expected(
    wrong: dict[str, np.ndarray], problem: str, binds: bool
) -> None:
    with OnnxRuntimeRunner(PIXELS, binds=binds) as runner:
        for _ in range(2):  # bound in between
            if binds or "less than" not in problem:
                with pytest.raises(UsageError, match=problem):
                    runner.run(wrong)
            runner.run(ONE)


def test_a_graph_that_is_not_what_the_signature_says_is_refused() -> None:
    def said(name: str = "logits", dtype: str = "float32", shape: tuple[int | str, ...] = ("batch", 3)) -> Signature:
        return Signature(
            inputs=(TensorSpec(name="pixels", dtype="uint8", shape=("batch", 4, 4)),),
            outputs=(TensorSpec(name=name, dtype=dtype, shape=shape),),
        )

    with OnnxRuntimeRunner(PIXELS, signature=said()) as runner:
        assert runner.run(ONE)["logits"].shape == (1, 3)
    with pytest.raises(BundleInvalid, match=r"has the outputs \['logits'\], expected \['scores'\]"):
        OnnxRuntimeRunner(PIXELS, signature=said(name="scores"))
    with pytest.raises(BundleInvalid, match="the output logits of the graph is float32"):
        OnnxRuntimeRunner(PIXELS, signature=said(dtype="int64"))
    with pytest.raises(BundleInvalid, match=r"expected float32 \[batch, 4\]"):
        OnnxRuntimeRunner(PIXELS, signature=said(shape=("batch", 4)))


def test_an_output_of_another_size_than_was_said_is_found_by_the_first_call() -> None:
    model = graphs.make(
        [graphs.node("Concat", "x x", "y", axis=0)], [("x", "float32", ["n", 2])], [("y", "float32", [None, 2])]
    )
    said = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("n", 2)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("n", 2)),),
        batch="n",
    )
    with (
        OnnxRuntimeRunner(model.SerializeToString(), signature=said) as runner,
        pytest.raises(
            BundleInvalid, match=r"the output y must be float32 \[n, 2\], and the model gave float32 \[6, 2\]"
        ),
    ):
        runner.run({"x": floats(3, 2)})


def test_weights_beside_the_graph_are_opened_by_path_and_nothing_else_is(tmp_path: Path) -> None:
    path = graphs.save_beside(graphs.pixels(), tmp_path / "model.onnx")
    with OnnxRuntimeRunner(PIXELS) as runner:
        expected = runner.run(ONE)["logits"]
    with OnnxRuntimeRunner(path) as runner:
        assert np.array_equal(runner.run(ONE)["logits"], expected)
    with pytest.raises(BundleInvalid, match="nothing says where"):
        OnnxRuntimeRunner(path.read_bytes())
    data = tmp_path / "model.data"
    data.rename(tmp_path / "elsewhere")
    with pytest.raises(BundleInvalid, match=r"weights in model\.data, which is not beside it"):
        OnnxRuntimeRunner(path)
    if sys.platform != "win32":
        data.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(BundleInvalid, match="no ordinary file"):
            OnnxRuntimeRunner(path)


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "", "folder/weights", ".."])
def test_weights_that_lie_elsewhere_are_refused(tmp_path: Path, location: str) -> None:
    path = graphs.save_beside(graphs.pixels(), tmp_path / "model.onnx")
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleInvalid, match="not a plain file name"):
        OnnxRuntimeRunner(path)


def test_a_batch_of_one_is_not_told_to_be_smaller() -> None:
    model = graphs.make(
        [graphs.node("Reshape", "x shape", "y")],
        [("x", "float32", ["batch", 3])],
        [("y", "float32", [3, 2])],
        {"shape": np.array([3, 2])},
    )
    with OnnxRuntimeRunner(model.SerializeToString()) as runner:
        assert runner.run({"x": floats(2, 3)})["y"].shape == (3, 2)
        with pytest.raises(BundleInvalid, match="could not run 1 sample on cpu") as caught:
            runner.run({"x": floats(1, 3)})
        assert "smaller" not in caught.value.hint
        with pytest.raises(BundleInvalid, match="could not run 3 samples on cpu") as caught:
            runner.run({"x": floats(3, 3)})
        assert "smaller batch" in caught.value.hint


def test_memory_that_is_short_is_an_error_of_its_own() -> None:
    model = graphs.make(
        [graphs.node("ConstantOfShape", "shape", "y")], [("shape", "int64", [2])], [("y", "float32", [None, None])]
    )
    with (
        OnnxRuntimeRunner(model.SerializeToString()) as runner,
        pytest.raises(MemoryShort, match="could not run 1 sample on cpu") as caught,
    ):
        runner.run({"shape": np.array([2**30, 2**20])})
    assert "smaller inputs" in caught.value.hint
    assert isinstance(ort_errors.of_running(MemoryError(), provider=Provider.CPU, rows=2), MemoryShort)
    assert isinstance(ort_errors.of_opening(MemoryError()), MemoryShort)


@pytest.mark.parametrize("binds", [True, False])
def test_a_closed_runner_says_so(binds: bool) -> None:
    runner = OnnxRuntimeRunner(PIXELS, binds=binds)
    runner.run(ONE)
    runner.close()
    with pytest.raises(UsageError, match="closed"):
        runner.run(ONE)
    with pytest.raises(UsageError, match="closed"):
        runner.bind({})


def test_large_inputs_are_run_in_pieces_bounded_by_bytes() -> None:
    ids = np.random.default_rng(0).integers(0, 10, (50, 7))
    inputs = {"ids": ids, "mask": np.ones((50, 7), bool)}
    with OnnxRuntimeRunner(graphs.sentences().SerializeToString()) as runner:
        expected = runner.run(inputs)
        found = run_in_batches(runner, inputs, most_bytes=1000)
    assert all(np.allclose(found[name], expected[name]) for name in expected)


def test_the_profiler_sees_every_node() -> None:
    found = profile(
        graphs.two_by_two().SerializeToString(), RunnerOptions(), {"a": floats(2, 3), "b": floats(2, 3)}, calls=5
    )
    assert {node.operator for node in found.nodes} == {"Add", "Sub"}
    assert found.kernels.is_all_on(Provider.CPU)


@pytest.mark.slow
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
def test_cuda_runs_every_node_of_the_float_graph() -> None:
    with OnnxRuntimeRunner(PIXELS, RunnerOptions(provider=Provider.CUDA)) as runner:
        assert runner.provider is Provider.CUDA
        assert runner.placement.is_all_on(Provider.CUDA)
        found = runner.run(ONE)["logits"]
    with OnnxRuntimeRunner(PIXELS) as runner:
        assert np.allclose(found, runner.run(ONE)["logits"], atol=1e-4)


@pytest.mark.gpu
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(ProviderUnavailable, match="no GPU 99"):
        OnnxRuntimeRunner(PIXELS, RunnerOptions(provider=Provider.CUDA, device_id=99))


@pytest.mark.gpu
def test_nodes_without_a_cuda_kernel_are_named(digits: Bundle) -> None:
    try:
        with OnnxRuntimeRunner(
            digits.model(digits.variant("int8-dynamic")), RunnerOptions(provider=Provider.CUDA)
        ) as runner:
            assert runner.placement.is_all_on(Provider.CUDA)
    except ProviderUnavailable as error:
        assert "no kernel for" in str(error)  # noqa: PT017 - either outcome is honest; silence is not
