"""Bound buffers: the same logits as an ordinary call, valid until the next one, and never another thread's."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

import kit
from kit.accuracy import probabilities
from kit.bundle import Bundle
from kit.errors import Unavailable, UsageError
from kit.runtime import io_binding, registry
from kit.runtime.base import BaseRunner, RunnerOptions
from kit.runtime.onnxruntime import OnnxRuntimeRunner

RUNTIMES = ("onnxruntime", "onnxruntime-plain", "openvino", "pytorch", "onnx-reference")
SHARED = ("onnxruntime", "onnxruntime-plain", "openvino", "pytorch")
THOUSAND_ENGINES = """
import gc, sys
import psutil
import kit

process = psutil.Process()

def open_and_close(count):
    for _ in range(count):
        with kit.load(sys.argv[1]) as engine:
            engine.predict(pixels)
            bound = engine.bind()
            bound.compute()
    gc.collect()

pixels = kit.find(sys.argv[1]).golden().pixels[:1]
open_and_close(100)
before = process.memory_info().rss, process.num_threads(), process.num_fds()
open_and_close(1000)
after = process.memory_info().rss, process.num_threads(), process.num_fds()
print(after[0] - before[0], after[1] - before[1], after[2] - before[2])
"""


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_bound_buffers_give_the_logits_of_an_ordinary_call(tiny: Bundle, runtime: str) -> None:
    pixels = tiny.golden().pixels[:3]
    with registry.open_runner(runtime, tiny, tiny.variant(), RunnerOptions()) as runner:
        bound = runner.bind(pixels.shape)
        expected = runner.run(pixels)
        assert np.allclose(bound.run(pixels), expected, atol=1e-6)
        bound.copy_in(pixels[::-1])
        bound.compute()
        assert np.allclose(bound.logits, expected[::-1], atol=1e-6)
        assert np.allclose(bound.copy_out(), expected[::-1], atol=1e-6)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_run_gives_is_the_callers_and_what_a_binding_gives_is_not(tiny: Bundle, runtime: str) -> None:
    first, second = tiny.golden().pixels[:1], tiny.golden().pixels[1:2]
    with registry.open_runner(runtime, tiny, tiny.variant(), RunnerOptions()) as runner:
        for _ in range(3):  # the later ones are bound
            kept = runner.run(first)
            copy = kept.copy()
            other = runner.run(second)
            assert np.array_equal(kept, copy)
            assert not np.array_equal(kept, other)
        bound = runner.bind(first.shape)
        held = bound.run(first)
        bound.run(second)
        assert np.array_equal(held, bound.logits)


def test_pixels_may_be_written_in_place(tiny: Bundle) -> None:
    golden = tiny.golden().pixels
    with kit.load(tiny.folder) as engine:
        bound = engine.bind(2)
        bound.pixels[:] = golden[:2]
        bound.compute()
        assert np.array_equal(bound.logits, engine.predict(golden[:2]).logits)


def test_a_binding_outlives_the_engine_it_came_from(tiny: Bundle) -> None:
    """The call alone is kept: buffers and session must live as long as it does."""
    pixels = tiny.golden().pixels[:1]
    computes = []
    for _ in range(50):
        engine = kit.load(tiny.folder)
        bound = engine.bind()
        bound.copy_in(pixels)
        expected = bound.run(pixels).copy()
        computes.append(bound.compute)
        engine.close()
    del engine, bound
    gc.collect()
    scratch = [np.full((1, 3), -1, np.float32) for _ in range(1000)]  # would lie in the buffers' place
    for compute in computes:
        compute()
        assert np.array_equal(compute.__self__.logits, expected)
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
def test_another_shape_or_dtype_than_was_bound_is_refused(tiny: Bundle, wrong: np.ndarray) -> None:
    with kit.load(tiny.folder) as engine, pytest.raises(UsageError, match=r"bound for uint8 \(1, 4, 4\)"):
        engine.bind().run(wrong)


def test_batches_of_many_sizes_are_all_answered_right(tiny: Bundle) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5000, 4, 4), dtype=np.uint8)
    with OnnxRuntimeRunner(tiny.read(tiny.variant().artifact)) as runner:
        expected = runner.run(pixels)
        for size in [*range(1, 80), *range(80, 0, -1), 4200, 1, 5000]:
            assert np.allclose(runner.run(pixels[:size]), expected[:size], atol=1e-5), size
        strided = np.repeat(pixels[:6], 2, axis=0)[::2]
        for _ in range(2):
            assert np.allclose(runner.run(strided), expected[:6], atol=1e-5)


def test_no_size_and_a_closed_engine_cannot_be_bound(tiny: Bundle) -> None:
    engine = kit.load(tiny.folder)
    with pytest.raises(UsageError, match="1 sample or more"):
        engine.bind(0)
    engine.close()
    with pytest.raises(UsageError, match="closed"):
        engine.bind()
    with pytest.raises(UsageError, match="closed"):
        engine.share()


@pytest.mark.parametrize("runtime", SHARED)
def test_threads_that_share_a_model_never_see_each_others_results(tiny: Bundle, runtime: str) -> None:
    pixels = tiny.golden().pixels
    with registry.open_runner(runtime, tiny, tiny.variant(), RunnerOptions()) as runner:
        expected = runner.run(pixels)
        runners = [runner, *(runner.share() for _ in range(3))]
        mixed: list[int] = []
        together = threading.Barrier(len(runners))

        def work(number: int) -> None:
            own = runners[number]
            bound = own.bind((1, 4, 4))
            together.wait()
            for index in range(number, 256, 2):  # neighbours have other samples at the same moment
                one = slice(index, index + 1)
                both = (own.run(pixels[one]), bound.run(pixels[one]))
                mixed.extend(index for found in both if not np.allclose(found, expected[one], atol=1e-5))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(runners))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not mixed


def test_engines_that_share_are_closed_one_by_one(tiny: Bundle) -> None:
    pixels = tiny.golden().pixels[:4]
    engine = kit.load(tiny.folder)
    other = engine.share()
    expected = engine.predict(pixels).logits
    engine.close()
    assert np.array_equal(other.predict(pixels).logits, expected)
    assert (other.variant, other.provider, other.runtime) == (engine.variant, engine.provider, engine.runtime)
    other.close()


def test_a_runtime_that_cannot_share_says_so_and_binds_all_the_same() -> None:
    class Sums(BaseRunner):
        def run(self, pixels: np.ndarray) -> np.ndarray:
            return pixels.reshape(len(pixels), -1).sum(axis=1, keepdims=True).astype(np.float32)

        def close(self) -> None:
            pass

    with Sums() as runner:
        assert runner.bind((2, 2, 2)).run(np.full((2, 2, 2), 3, np.uint8)).tolist() == [[12.0], [12.0]]
        with pytest.raises(Unavailable, match="one thread"):
            runner.share()


def test_memory_of_a_device_is_bound_as_memory_of_the_host_is(tiny: Bundle) -> None:
    """The device here is the CPU: the same calls, whose copies are real."""
    pixels = tiny.golden().pixels[:2]
    session = onnxruntime.InferenceSession(tiny.read(tiny.variant().artifact), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"pixels": pixels})
    bound = io_binding.bind_device(
        session, onnxruntime, pixels.copy(), np.zeros_like(logits), lambda _: None, device=("cpu", 0)
    )
    assert np.allclose(bound.run(pixels), logits, atol=1e-6)
    assert np.allclose(bound.run(pixels[::-1].copy()), logits[::-1], atol=1e-6)
    bound.pixels[:] = 0
    bound.compute()  # what was copied in counts
    assert np.allclose(bound.copy_out(), logits[::-1], atol=1e-6)


def test_a_session_without_the_inner_method_is_called_through_the_public_one(tiny: Bundle) -> None:
    pixels = tiny.golden().pixels[:1]
    session = onnxruntime.InferenceSession(tiny.read(tiny.variant().artifact), providers=["CPUExecutionProvider"])
    public = SimpleNamespace(
        **{name: getattr(session, name) for name in ("run_with_iobinding", "io_binding", "get_inputs", "get_outputs")}
    )
    expected = session.run(None, {"pixels": pixels})[0]
    bound = io_binding.bind_host(public, onnxruntime, pixels.copy(), np.zeros_like(expected), lambda _: None)
    assert np.allclose(bound.run(pixels), expected, atol=1e-6)


def test_predictions_keep_their_arrays(tiny: Bundle) -> None:
    pixels = tiny.golden().pixels
    with kit.load(tiny.folder) as engine:
        found = [engine.predict(pixels[index]) for index in range(20)]
        together = engine.predict(pixels[:20])
    assert np.allclose(np.concatenate([one.logits for one in found]), together.logits, atol=1e-5)
    assert np.allclose(np.concatenate([one.probabilities for one in found]), together.probabilities, atol=1e-6)
    assert [one.names[0] for one in found] == list(together.names)


def test_the_softmax_of_one_sample_is_that_of_many() -> None:
    logits = np.random.default_rng(0).normal(0, 30, (200, 10)).astype(np.float32)
    for temperature in (0.5, 1.0, 2.5):
        together = probabilities(logits, temperature)
        alone = np.concatenate([probabilities(one[np.newaxis], temperature) for one in logits])
        assert alone.dtype == together.dtype == np.float32
        assert np.allclose(alone, together, atol=1e-6)
    assert probabilities(np.zeros((0, 10), np.float32), 1.0).shape == (0, 10)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows counts handles, not file descriptors")
def test_a_thousand_engines_leave_nothing_behind(tiny: Bundle) -> None:
    line = [sys.executable, "-c", THOUSAND_ENGINES, str(tiny.folder)]
    answer = subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()
    grown_bytes, threads, files = map(int, answer)
    assert (threads, files) == (0, 0)
    assert grown_bytes < 4e6  # 4 kB an engine; one model is 10 kB and its session some 100 kB
