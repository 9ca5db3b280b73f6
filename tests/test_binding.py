"""Bound buffers: the same outputs as an ordinary call, valid until the next one, bounded, and never another thread's."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

import kit
from kit.bundle import Bundle
from kit.choices import Provider
from kit.errors import Unavailable, UsageError
from kit.runtime import io_binding, registry
from kit.runtime.base import BaseRunner, Binding, OneToOne, Placement, RecentBindings, RunnerOptions
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.tensors import Signature, Tensors, TensorSpec
from tests import graphs

RUNTIMES = ("onnxruntime", "onnxruntime-plain", "openvino", "mnn", "onnx-reference")
SHARED = ("onnxruntime", "onnxruntime-plain", "openvino", "mnn")
THOUSAND_ENGINES = """
import gc, sys
import psutil
import kit

process = psutil.Process()

def open_and_close(count):
    for _ in range(count):
        with kit.load(sys.argv[1]) as engine:
            engine.run(pixels)
            bound = engine.bind()
            bound.compute()
    gc.collect()

pixels = {"pixels": kit.find(sys.argv[1]).golden()[0].inputs["pixels"][:1]}
open_and_close(100)
before = process.memory_info().rss, process.num_threads(), process.num_fds()
open_and_close(1000)
after = process.memory_info().rss, process.num_threads(), process.num_fds()
print(after[0] - before[0], after[1] - before[1], after[2] - before[2])
"""
THOUSAND_LENGTHS = """
import sys
import numpy as np
import psutil
from pathlib import Path
from kit.bundle import open_folder
from kit.runtime import registry
from kit.runtime.base import RunnerOptions

def run(lengths):
    for length in lengths:
        found = runner.run({"ids": np.ones((1, length), np.int64), "mask": np.ones((1, length), bool)})
        assert found["tokens"].shape == (1, length, 4)

bundle = open_folder(Path(sys.argv[1]))
with registry.open_runner(sys.argv[2], bundle, bundle.variant(), RunnerOptions()) as runner:
    first, most = int(sys.argv[3]), int(sys.argv[4])
    run(range(1, first))
    before = psutil.Process().memory_info().rss
    run(range(1, most + 1))
    print(psutil.Process().memory_info().rss - before)
"""


@pytest.fixture
def small(tmp_path: Path) -> Bundle:
    """uint8 [batch, 4, 4] in, three numbers out."""
    return graphs.bundle(graphs.pixels(), tmp_path / "small")


def pixels_of(bundle: Bundle) -> NDArray[np.uint8]:
    """The golden samples' inputs, 64 pictures."""
    return bundle.golden()[0].inputs["pixels"]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_bound_buffers_give_the_outputs_of_an_ordinary_call(small: Bundle, runtime: str) -> None:
    pixels = pixels_of(small)[:3]
    with registry.open_runner(runtime, small, small.variant(), RunnerOptions()) as runner:
        bound = runner.bind({"batch": 3})
        expected = runner.run({"pixels": pixels})["logits"]
        assert np.allclose(bound.run(pixels), expected, atol=1e-6)
        bound.copy_in(pixels[::-1])
        bound.compute()
        assert np.allclose(bound.outputs["logits"], expected[::-1], atol=1e-6)
        assert np.allclose(bound.copy_out(), expected[::-1], atol=1e-6)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_two_inputs_and_two_outputs_are_bound_in_their_order(tmp_path: Path, runtime: str) -> None:
    bundle = graphs.bundle(graphs.two_by_two(), tmp_path / "two")
    a, b = np.random.default_rng(0).normal(0, 1, (2, 5, 3)).astype(np.float32)
    with registry.open_runner(runtime, bundle, bundle.variant(), RunnerOptions()) as runner:
        bound = runner.bind({"batch": 5})
        found = bound.run(a, b)
        assert isinstance(found, tuple)
        assert [np.allclose(one, wanted) for one, wanted in zip(found, (a + b, a - b), strict=True)] == [True, True]
        np.copyto(bound.inputs["b"], 2 * b)
        bound.compute()
        assert np.allclose(bound.outputs["difference"], a - 2 * b)
        with pytest.raises(UsageError, match="bound for 2 inputs, found 1"):
            bound.run(a)
        with pytest.raises(UsageError, match="b is bound as float32"):
            bound.run(a, b[:2])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_inputs_of_every_kind_are_bound(tmp_path: Path, runtime: str) -> None:
    bundle = graphs.bundle(graphs.mixed(), tmp_path / "mixed")
    with registry.open_runner(runtime, bundle, bundle.variant(), RunnerOptions()) as runner:
        bound = runner.bind({"batch": 2})
        half, flags = np.array([[1, 2], [3, 4]], np.float16), np.array([True, False])
        found = bound.run(half, np.array(0.5, np.float32), flags, np.array([3, -4]))
        assert [one.tolist() for one in found] == [[[0.5, 1], [1.5, 2]], [False, True], [6, -8], half.tolist()]
        assert [str(one.dtype) for one in found] == ["float32", "bool", "int64", "float16"]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_run_gives_is_the_callers_and_what_a_binding_gives_is_not(small: Bundle, runtime: str) -> None:
    first, second = pixels_of(small)[:1], pixels_of(small)[1:2]
    with registry.open_runner(runtime, small, small.variant(), RunnerOptions()) as runner:
        for _ in range(3):  # the later ones are bound
            kept = runner.run({"pixels": first})["logits"]
            copy = kept.copy()
            other = runner.run({"pixels": second})["logits"]
            assert np.array_equal(kept, copy)
            assert not np.array_equal(kept, other)
        bound = runner.bind({})
        held = bound.run(first)
        bound.run(second)
        assert np.array_equal(held, bound.outputs["logits"])


def test_inputs_may_be_written_in_place(small: Bundle) -> None:
    golden = pixels_of(small)
    with kit.load(small.folder) as engine:
        bound = engine.bind(batch=2)
        bound.inputs["pixels"][:] = golden[:2]
        bound.compute()
        assert np.array_equal(bound.outputs["logits"], engine.run({"pixels": golden[:2]})["logits"])


def test_a_binding_outlives_the_runner_it_came_from(small: Bundle) -> None:
    """The call alone is kept: buffers and session must live as long as it does."""
    pixels = pixels_of(small)[:1]
    computes = []
    for _ in range(50):
        runner = registry.open_runner("onnxruntime", small, small.variant(), RunnerOptions())
        bound = runner.bind({})
        expected = bound.run(pixels).copy()
        computes.append(bound.compute)
        runner.close()
    del runner, bound
    gc.collect()
    scratch = [np.full((1, 3), -1, np.float32) for _ in range(1000)]  # would lie in the buffers' place
    for compute in computes:
        compute()
        assert np.array_equal(compute.__self__.outputs["logits"], expected)
    assert all((one == -1).all() for one in scratch)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 4, 4), np.uint8),
        np.zeros((4, 4), np.uint8),
        np.zeros((1, 4, 4), np.int16),
        np.zeros((1, 4, 4), np.float32),
    ],
)
def test_another_shape_or_dtype_than_was_bound_is_refused(small: Bundle, wrong: NDArray[np.generic]) -> None:
    with (
        OnnxRuntimeRunner(small.model(small.variant())) as runner,
        pytest.raises(UsageError, match=r"pixels is bound as uint8 \(1, 4, 4\)"),
    ):
        runner.bind({"batch": 1}).run(wrong)


def test_batches_of_many_sizes_are_all_answered_right(small: Bundle) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5000, 4, 4), dtype=np.uint8)
    with OnnxRuntimeRunner(small.model(small.variant())) as runner:
        expected = runner.run({"pixels": pixels})["logits"]
        for size in [*range(1, 80), *range(80, 0, -1), 4200, 1, 5000]:
            assert np.allclose(runner.run({"pixels": pixels[:size]})["logits"], expected[:size], atol=1e-5), size
        strided = np.repeat(pixels[:6], 2, axis=0)[::2]
        for _ in range(2):
            assert np.allclose(runner.run({"pixels": strided})["logits"], expected[:6], atol=1e-5)


def test_bindings_used_last_are_kept_and_the_others_go() -> None:
    held = RecentBindings(3)
    x = {"x": np.zeros(1)}
    for size in (1, 2, 3):
        held.keep(((size,),), Binding(x, x, list))
    assert held.get(((1,),)) is not None
    held.keep(((4,),), Binding(x, x, list))
    assert [held.get(((size,),)) is not None for size in (1, 2, 3, 4)] == [True, False, True, True]
    assert len(held) == 3


@pytest.mark.parametrize(
    ("runtime", "first", "most"),
    [("onnxruntime", 200, 1000), ("openvino", 20, 60), ("mnn", 20, 60)],
)
def test_sequences_of_many_lengths_leave_memory_bounded(tmp_path: Path, runtime: str, first: int, most: int) -> None:
    bundle = graphs.bundle(graphs.sentences(), tmp_path / "sentences", sizes={"sequence": 4})
    line = [sys.executable, "-c", THOUSAND_LENGTHS, str(bundle.folder), runtime, str(first), str(most)]
    grown_bytes = int(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
    assert grown_bytes < 30e6


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "mnn", "onnx-reference"])
def test_sequences_of_every_length_are_answered_right(tmp_path: Path, runtime: str) -> None:
    bundle = graphs.bundle(graphs.sentences(), tmp_path / "sentences", sizes={"sequence": 4})
    table = onnx.numpy_helper.to_array(graphs.sentences().graph.initializer[0])
    with registry.open_runner(runtime, bundle, bundle.variant(), RunnerOptions()) as runner:
        for length in (3, 1, 12, 3, 5, 6, 7, 8, 9, 10, 11, 3):
            ids = np.arange(2 * length).reshape(2, length) % 10
            mask = ids % 3 > 0
            found = runner.run({"ids": ids, "mask": mask})
            assert np.allclose(found["tokens"], table[ids] * mask[..., np.newaxis], atol=1e-6)
            assert np.allclose(found["sentence"], found["tokens"].sum(axis=1), atol=1e-5)


def test_sizes_that_the_model_cannot_have_are_not_bound(small: Bundle) -> None:
    with OnnxRuntimeRunner(small.model(small.variant())) as runner:
        with pytest.raises(UsageError, match="no axis 'sequence'"):
            runner.bind({"sequence": 2})
        with pytest.raises(UsageError, match="0 is less than 1"):
            runner.bind({"batch": 0})


@pytest.mark.parametrize("runtime", SHARED)
def test_threads_that_share_a_model_never_see_each_others_results(small: Bundle, runtime: str) -> None:
    pixels = pixels_of(small)
    with registry.open_runner(runtime, small, small.variant(), RunnerOptions()) as runner:
        expected = runner.run({"pixels": pixels})["logits"]
        runners = [runner, *(runner.share() for _ in range(3))]
        mixed: list[int] = []
        together = threading.Barrier(len(runners))

        def work(number: int) -> None:
            own = runners[number]
            bound = own.bind({})
            together.wait()
            for index in range(number, 64, 2):  # neighbours have other samples at the same moment
                one = slice(index, index + 1)
                both = (own.run({"pixels": pixels[one]})["logits"], bound.run(pixels[one]))
                mixed.extend(index for found in both if not np.allclose(found, expected[one], atol=1e-5))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(runners))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not mixed


def test_engines_that_share_are_closed_one_by_one(small: Bundle) -> None:
    inputs = {"pixels": pixels_of(small)[:4]}
    engine = kit.load(small.folder)
    other = engine.share()
    expected = engine.run(inputs)["logits"]
    engine.close()
    with pytest.raises(UsageError, match="closed"):
        engine.bind()
    with pytest.raises(UsageError, match="closed"):
        engine.share()
    assert np.array_equal(other.run(inputs)["logits"], expected)
    assert (other.variant, other.provider, other.runtime) == (engine.variant, engine.provider, engine.runtime)
    other.close()


def test_a_runtime_that_cannot_share_says_so_and_binds_all_the_same() -> None:
    class Sums(BaseRunner):
        runtime, provider, placement = "sums", Provider.CPU, Placement({})
        signature = Signature(
            inputs=(TensorSpec(name="x", dtype="uint8", shape=("batch", 2, 2)),),
            outputs=(TensorSpec(name="sum", dtype="float32", shape=("batch", 1)),),
        )

        def run(self, tensors: Tensors) -> dict[str, NDArray[np.float32]]:
            x = tensors["x"]
            return {"sum": x.reshape(len(x), -1).sum(axis=1, keepdims=True).astype(np.float32)}

        def close(self) -> None:
            pass

    with Sums() as runner:
        assert runner.bind({"batch": 2}).run(np.full((2, 2, 2), 3, np.uint8)).tolist() == [[12.0], [12.0]]
        with pytest.raises(Unavailable, match="one thread"):
            runner.share()


def test_memory_of_a_device_is_bound_as_memory_of_the_host_is() -> None:
    """The device here is the CPU: the same calls, whose copies are real."""
    a, b = np.random.default_rng(0).normal(0, 1, (2, 5, 3)).astype(np.float32)
    session = onnxruntime.InferenceSession(graphs.two_by_two().SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = {"sum": np.zeros_like(a), "difference": np.zeros_like(a)}
    inputs = {"a": a.copy(), "b": b.copy()}
    bound = io_binding.bind_device(session, onnxruntime, inputs, outputs, lambda error: error, device=("cpu", 0))
    assert all(np.allclose(one, wanted) for one, wanted in zip(bound.run(a, b), (a + b, a - b), strict=True))
    assert all(
        np.allclose(one, wanted) for one, wanted in zip(bound.run(b[::-1], a), (b[::-1] + a, b[::-1] - a), strict=True)
    )
    bound.inputs["a"][:] = 0
    bound.compute()  # what was copied in counts
    assert np.allclose(bound.copy_out()[0], b[::-1] + a)


def test_a_session_without_the_inner_method_is_called_through_the_public_one(small: Bundle) -> None:
    pixels = pixels_of(small)[:1]
    session = onnxruntime.InferenceSession(small.model(small.variant()), providers=["CPUExecutionProvider"])
    public = SimpleNamespace(**{name: getattr(session, name) for name in ("run_with_iobinding", "io_binding")})
    expected = session.run(None, {"pixels": pixels})[0]
    bound = io_binding.bind_host(
        public, onnxruntime, {"pixels": pixels.copy()}, {"logits": np.zeros_like(expected)}, lambda error: error
    )
    assert isinstance(bound, OneToOne)
    assert np.allclose(bound.run(pixels), expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows counts handles, not file descriptors")
def test_a_thousand_engines_leave_nothing_behind(small: Bundle) -> None:
    line = [sys.executable, "-c", THOUSAND_ENGINES, str(small.folder)]
    answer = subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()
    grown_bytes, threads, files = map(int, answer)
    assert (threads, files) == (0, 0)
    assert grown_bytes < 4e6  # 4 kB an engine; one model is 10 kB and its session some 100 kB
