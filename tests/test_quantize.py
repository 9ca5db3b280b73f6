"""Quantizing: every format computes what it says, layers and weights are counted, and what would change nothing is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import exporters
from exporters import ExportOptions, candidates, staging
from exporters.candidates import Candidate
from exporters.formats import int8, pixel
from exporters.formats.base import Source, quantized_as
from exporters.formats.calibration import batch_rows, draw
from exporters.formats.equalize import equalize
from exporters.formats.float16 import halved
from exporters.graph.rules import layers
from kit.bundle import Bundle, find
from kit.bundle.manifest import Calibration
from kit.choices import CalibrationMethod, Precision, Provider, QuantizationScheme, VariantFormat
from kit.errors import GateFailed, UsageError
from kit.lab import data as datasets
from kit.lab.data import draws
from kit.metrics.fidelity import FLOAT_RTOL, HALF_RTOL, compare, compare_tensors, judge_float
from kit.runtime import registry
from kit.runtime.base import RunnerOptions, run_in_batches
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.runtime.openvino import OpenVinoRunner
from kit.samples import Samples
from kit.tensors import Signature, TensorSpec
from kit.verify import verify
from tests import graphs
from tests.helpers.originals import convolution, dense, graph, noise, rms, run, source_of, vectors

CALIBRATION = Calibration(
    method=CalibrationMethod.MINMAX, dataset="noise", split="train", samples=200, indices_sha256="", seed=0
)
ON_CUDA = {"DequantizeLinear", "QuantizeLinear", "Flatten", "Gemm", "Add", "Slice"}


def graph_of(bundle: Bundle, variant: str) -> onnx.ModelProto:
    return staging.read(bundle.check(bundle.variant(variant).graph))


def made(candidate: Candidate) -> onnx.ModelProto:
    return staging.read(candidate.files.path)


def agreement(exact: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    return float((exact.argmax(axis=1) == found.argmax(axis=1)).mean())


def test_every_precision_and_format_stands_side_by_side_and_holds_on_the_golden_samples(quantized: Bundle) -> None:
    ids = [variant.id for variant in quantized.variants]
    assert ids == [
        *("fp32", "int8-qdq", "int8-dynamic", "fp16", "int8-qoperator", "int8-pixel", "int4", "int8-qdq-per-tensor")
    ]
    assert verify(quantized).ok
    for variant in quantized.variants:
        record = variant.quantization
        assert (record is None) == (variant.precision in {Precision.FP32, Precision.FP16})
        if record is not None:
            assert (record.layers_quantized, record.layers_total, record.layers_excluded) == (4, 4, ())
            assert 0.97 < record.weights_quantized / record.weights_total <= 1
            assert record.macs_quantized == record.macs_total > 0
        assert variant.score("top-1") is not None
        assert all((one.agreement or 0) >= 0.95 for one in variant.fidelity)


def test_the_manifest_says_what_is_portable(quantized: Bundle) -> None:
    portable = {variant.id for variant in quantized.variants if not variant.needs.domains}
    assert portable == {"fp32", "fp16", "int8-qdq", "int8-qdq-per-tensor", "int8-dynamic"}
    assert all(variant.needs.domains in {(), ("com.microsoft",)} for variant in quantized.variants)


def test_the_pixel_format_is_a_chain_of_integer_layers_and_nothing_else(quantized: Bundle) -> None:
    model = graph_of(quantized, "int8-pixel")
    assert [node.op_type for node in model.graph.node] == ["Flatten", "QGemm", "QGemm", "QGemm", "QGemm"]
    first = model.graph.node[1]
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert (constants[first.input[1]], constants[first.input[2]]) == (1.0, 0)
    record = quantized.variant("int8-pixel").quantization
    assert record is not None
    assert (record.per_channel, record.equalized) == (False, True)
    floats = [name for name, value in constants.items() if value.dtype == np.float32 and value.size > 1]
    assert floats == []


def test_the_pixel_format_gives_what_qdq_with_one_scale_for_a_layer_gives(quantized: Bundle) -> None:
    golden = quantized.golden()[0]
    chain, qdq = (run(graph_of(quantized, name), golden) for name in ("int8-pixel", "int8-qdq-per-tensor"))
    assert np.abs(chain - qdq).max() < 1e-3
    assert np.array_equal(chain.argmax(axis=1), qdq.argmax(axis=1))


def test_the_pixel_format_refuses_what_is_no_chain_of_dense_layers_on_raw_values_and_says_why(tmp_path: Path) -> None:
    (recipe,) = candidates.recipes(ExportOptions(precisions=("int8",), formats=("pixel",)))
    model, signature = convolution()
    with pytest.raises(UsageError, match="int8-pixel cannot be made of this model: its input is not raw uint8"):
        recipe.make(source_of(tmp_path, model, signature))
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    assert "convolution" in pixel.refusal(model)
    model, _ = dense((16, 8, 3), raw=True)
    assert pixel.refusal(model) == ""
    model.graph.node[3].op_type = "Tanh"
    assert "Tanh" in pixel.refusal(model)
    assert "2 inputs" in pixel.refusal(_two_raw_inputs()[0])
    assert list(tmp_path.glob("int8-pixel*")) == []


def test_qdq_has_nothing_that_the_cuda_provider_lacks(quantized: Bundle) -> None:
    """It dequantizes 8 bits and no int32: biases stay float, and the last one is added by itself."""
    for variant in ("int8-qdq", "int8-qdq-per-tensor"):
        model = graph_of(quantized, variant)
        assert {node.op_type for node in model.graph.node} <= ON_CUDA
        constants = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        dequantized = [node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"]
        assert onnx.TensorProto.INT32 not in {constants[name] for name in dequantized if name in constants}


@pytest.mark.gpu
def test_qdq_and_fp16_run_on_cuda_alone(quantized: Bundle) -> None:
    golden = quantized.golden()
    for variant in ("int8-qdq", "int8-qdq-per-tensor", "fp16"):
        options = RunnerOptions(provider=Provider.CUDA)
        with OnnxRuntimeRunner(quantized.model(quantized.variant(variant)), options) as runner:
            assert runner.placement.is_all_on(Provider.CUDA)
            found = compare(golden, [run_in_batches(runner, group.inputs) for group in golden])
        assert all((one.agreement or 0) > 0.98 for one in found)


def test_on_the_cpu_every_layer_of_qdq_becomes_one_integer_kernel(quantized: Bundle, tmp_path: Path) -> None:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    settings.log_severity_level = 3
    model = quantized.model(quantized.variant("int8-qdq"))
    onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds == ["Flatten", "QGemm", "QGemm", "QGemm", "QGemm", "Add"]


def test_portable_int8_agrees_with_itself_in_openvino(quantized: Bundle) -> None:
    inputs = {"pixels": datasets.load("digits").train.images}
    for variant in ("int8-qdq", "int8-qdq-per-tensor"):
        answers = []
        for runtime in ("onnxruntime", "openvino"):
            with registry.open_runner(runtime, quantized, quantized.variant(variant), RunnerOptions()) as runner:
                answers.append(run_in_batches(runner, inputs)["logits"].argmax(axis=1))
        assert (answers[0] == answers[1]).mean() >= 0.999


@pytest.mark.mnist
@pytest.mark.slow
def test_the_published_int8_agrees_with_itself_in_openvino_on_mnist() -> None:
    bundle, inputs = find("mnist-mlp"), {"pixels": datasets.load("mnist").test.images}
    answers = []
    for runtime in ("onnxruntime", "openvino"):
        with registry.open_runner(runtime, bundle, bundle.variant("int8-qdq"), RunnerOptions()) as runner:
            answers.append(run_in_batches(runner, inputs)["logits"].argmax(axis=1))
    assert (answers[0] == answers[1]).mean() >= 0.999


@pytest.mark.mnist
def test_the_published_files_come_out_byte_for_byte_the_same(tmp_path: Path) -> None:
    bundle, train = find("mnist-mlp"), datasets.load("mnist").train
    # Of all images that it was trained on a tenth stood in for a validation split, drawn with the seed of the training.
    fitted, _ = draws.validation_indices(len(train), fraction=0.1, seed=1)
    source = Source(
        path=bundle.path(bundle.variant("fp32").graph),
        folder=tmp_path,
        signature=bundle.signature,
        train=(Samples(inputs={"pixels": train.images[fitted]}),),
        dataset="mnist",
    )
    for recipe in candidates.recipes(ExportOptions(precisions=("fp16", "int8"), formats=("qdq", "pixel"))):
        assert recipe.make(source).files.graph == bundle.variant(recipe.id).graph


def test_runtimes_are_not_asked_for_operators_they_do_not_have(quantized: Bundle) -> None:
    inputs = {"pixels": quantized.golden()[0].inputs["pixels"][:3]}
    for runtime in ("pytorch", "pytorch-compile"):
        assert "int8-qdq" not in [one.id for one in quantized.variants if registry.can_run(runtime, one)]
    for runtime, blocks in (("openvino", {"int4"}), ("onnx-reference", set[str]())):
        able = {variant.id for variant in quantized.variants if registry.can_run(runtime, variant)}
        assert able == {"fp32", "fp16", "int8-qdq", "int8-qdq-per-tensor", "int8-dynamic"} | blocks
        for variant in able:
            with registry.open_runner(runtime, quantized, quantized.variant(variant), RunnerOptions()) as runner:
                assert runner.run(inputs)["logits"].shape == (3, 10)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(quantized: Bundle) -> None:
    options = ExportOptions(precisions=("int8",), formats=("qdq", "pixel"), max_loss=0.01)
    again = exporters.export_bundle(quantized, options)
    for passed in again.passed:
        assert passed.variant.graph == quantized.variant(passed.variant.id).graph
    other = ExportOptions(precisions=("int8",), calibration_samples=50, seed=1, max_loss=0.02)
    assert exporters.export_bundle(quantized, other).bundle.variant("int8-qdq") != quantized.variant("int8-qdq")


def test_calibration_draws_from_all_groups_by_seed_and_its_record_names_the_draw(tmp_path: Path) -> None:
    model, signature = dense((8, 3))
    groups = (noise(signature, 30, seed=1), noise(signature, 70, seed=2))
    source = source_of(tmp_path, model, signature, train=groups)
    drawn = draw(source, method=CalibrationMethod.MINMAX, samples=20, seed=3)
    rows = draws.calibration_indices(np.arange(100), samples=20, seed=3)
    everything = np.concatenate([group.inputs["x"] for group in groups])
    assert np.array_equal(np.concatenate([one.inputs["x"] for one in drawn.samples]), everything[rows])
    assert drawn.record.indices_sha256 == draws.indices_sha256(rows)
    assert (drawn.record.samples, drawn.record.dataset, drawn.record.split) == (20, "noise", "train")


def test_calibration_runs_so_many_samples_at_a_time_as_fit_into_memory() -> None:
    """What lies between input and output counts, not the input alone."""
    model, signature = convolution()
    wide = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 1, 2048, 2048)),), outputs=signature.outputs
    )
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], (2048, 2048), strict=True):
        dim.dim_value = size
    rows, one = batch_rows(model, wide, noise(wide, 2))
    assert one >= 2 * 4 * 2048 * 2048 * 4
    assert rows == 1
    assert batch_rows(*convolution(), noise(signature, 2))[0] == 128


@pytest.mark.parametrize("method", list(CalibrationMethod))
def test_every_calibration_method_works_and_is_recorded_and_prints_nothing(
    method: CalibrationMethod, capsys: pytest.CaptureFixture[str]
) -> None:
    model, signature = dense((16, 8, 3))
    samples = noise(signature, 200)
    found = int8.quantize_static(model, signature, (samples,), dataclasses.replace(CALIBRATION, method=method))
    assert found.record.calibration is not None
    assert found.record.calibration.method is method
    assert capsys.readouterr().out == ""
    assert agreement(run(model, samples), run(found.model, samples)) > 0.9


@pytest.mark.parametrize("method", list(CalibrationMethod))
@pytest.mark.parametrize("count", [1, 61])
def test_calibration_on_next_to_nothing_makes_a_model_or_one_clear_error(method: CalibrationMethod, count: int) -> None:
    model, signature = dense((16, 8, 3))
    model.graph.initializer[1].CopyFrom(  # a layer that never fires
        numpy_helper.from_array(np.full(8, -1000, np.float32), model.graph.initializer[1].name)
    )
    record = dataclasses.replace(CALIBRATION, method=method)
    for samples in (noise(signature, count), Samples(inputs={"x": np.zeros((count, 16), np.float32)})):
        try:
            found = int8.quantize_static(model, signature, (samples,), record)
        except GateFailed as error:
            assert "the quantizer failed" in str(error)  # noqa: PT017 - either way is right
        else:
            assert run(found.model, samples).shape == (count, 3)


@pytest.mark.parametrize("method", list(CalibrationMethod))
def test_calibration_takes_several_inputs_and_groups_of_other_sizes(method: CalibrationMethod) -> None:
    signature = Signature(
        inputs=(
            TensorSpec(name="ids", dtype="int64", shape=("batch", "sequence"), below=11),
            TensorSpec(name="numbers", dtype="float32", shape=("batch", 6)),
        ),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", "sequence", 4)),),
    )
    rng = np.random.default_rng(0)
    weights = {
        "table": rng.standard_normal((11, 6)).astype(np.float32),
        "last.weight": rng.standard_normal((6, 4)).astype(np.float32),
        "axes": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["words"], name="words"),
        helper.make_node("Unsqueeze", ["numbers", "axes"], ["wide"], name="wide"),
        helper.make_node("Add", ["words", "wide"], ["both"], name="both"),
        helper.make_node("MatMul", ["both", "last.weight"], ["y"], name="last"),
    ]
    model = graph(nodes, weights, signature)
    groups = (noise(signature, 12, sequence=5), noise(signature, 7, sequence=9))
    found = int8.quantize_static(model, signature, groups, dataclasses.replace(CALIBRATION, method=method))
    for group in groups:
        exact = run(model, group)
        assert rms(exact, run(found.model, group)) < 0.1 * float(exact.std())
    # The embedding table is no layer, and it is a weight that stays in float; so do the factors that the inputs are divided by.
    assert (found.record.layers_quantized, found.record.layers_total) == (1, 1)
    assert (found.record.weights_quantized, found.record.weights_total) == (24, 24 + 66 + 6)


def _words(vocabulary: int = 50, width: int = 6, *, opset: int = 20) -> tuple[onnx.ModelProto, Signature]:
    """Ids in, a table, a layer behind it."""
    signature = Signature(
        inputs=(TensorSpec(name="ids", dtype="int64", shape=("batch", "sequence"), below=vocabulary),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", "sequence", 4)),),
    )
    rng = np.random.default_rng(0)
    weights = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in (("table", (vocabulary, width)), ("w", (width, 4)))
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["words"], name="words"),
        helper.make_node("MatMul", ["words", "w"], ["y"], name="last"),
    ]
    return graph(nodes, weights, signature, opset=opset), signature


IN_BLOCKS = [{"precisions": ("int4",)}, {"precisions": ("int8",), "quantization": "weights"}]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("options", IN_BLOCKS)
def test_weights_in_blocks_take_the_tables_with_them_and_leave_no_float_of_them(
    tmp_path: Path, options: dict[str, object], large: bool
) -> None:
    model, signature = _words(500, 256)
    source = source_of(tmp_path, model, signature)
    if large:
        source = Source(path=with_weights_beside(tmp_path, model), folder=tmp_path, signature=signature)
    (recipe,) = candidates.recipes(ExportOptions(**options))
    candidate = recipe.make(source)
    record = candidate.quantization
    assert record is not None
    assert record.weights_quantized == record.weights_total == 500 * 256 + 256 * 4
    size = candidate.files.graph.size_bytes + sum(one.size_bytes for one in candidate.files.data)
    assert size < 1.3 * 500 * 256
    assert bool(candidate.files.data) == large
    if large:
        assert candidate.files.graph.size_bytes < 10_000
    group = noise(signature, 12, sequence=5)
    exact = run(source.path, group)
    limit = 0.15 if recipe.format.precision is Precision.INT4 else 0.02
    assert rms(exact, run(candidate.files.path, group)) < limit * float(exact.std())


def test_a_table_stays_in_float_where_the_operators_are_too_old_for_it(tmp_path: Path) -> None:
    (recipe,) = candidates.recipes(ExportOptions(precisions=("int4",)))
    record = recipe.make(source_of(tmp_path, *_words(500, 256, opset=12))).quantization
    assert record is not None
    assert (record.weights_quantized, record.weights_total) == (256 * 4, 500 * 256 + 256 * 4)


@pytest.mark.parametrize("sizes", [(64, 64, 8), (100, 50, 7), (20, 300, 5)])
def test_eight_bits_in_blocks_are_near_the_original_in_every_runtime_that_reads_them(
    tmp_path: Path, sizes: tuple[int, ...]
) -> None:
    model, signature = dense(sizes)
    (recipe,) = candidates.recipes(ExportOptions(precisions=("int8",), quantization="weights"))
    assert recipe.id == "int8-weights"
    candidate = recipe.make(source_of(tmp_path, model, signature))
    record = candidate.quantization
    assert record is not None
    assert (record.scheme, record.weight_bits, record.block_size) == (QuantizationScheme.WEIGHTS, 8, 128)
    assert candidate.format is VariantFormat.WEIGHT_ONLY
    samples = noise(signature, 50)
    exact = run(model, samples)
    for opened in (OnnxRuntimeRunner, OpenVinoRunner):
        with opened(candidate.files.path, RunnerOptions(), signature=signature) as runner:
            assert rms(exact, runner.run(samples.inputs)["y"]) < 0.01 * float(np.abs(exact).max())


def test_weights_in_blocks_of_a_bundle_are_published_and_verified(quantized: Bundle) -> None:
    options = ExportOptions(precisions=("int8",), quantization="weights")
    bundle = exporters.export_bundle(quantized, options).bundle
    assert bundle.variant("int8-weights").precision is Precision.INT8
    for runtime in ("onnxruntime", "openvino"):
        found = {one.variant: one for one in verify(bundle, runtimes=(runtime,)).variants}
        assert found["int8-weights"].ok
        assert found["int4"].ok


def test_auto_makes_weights_in_blocks_of_what_is_more_than_dense_layers_and_convolutions() -> None:
    for model, is_made in ((_words()[0], True), (dense((16, 8, 3))[0], False)):
        names = [recipe.id for recipe in exporters.AutoOptions().recipes(model)]
        assert ("int8-weights" in names) == is_made
        assert not is_made or "int8-weights" in names


def test_an_embedding_table_becomes_integers_without_calibration() -> None:
    model, signature = _words()
    group = noise(signature, 12, sequence=5)
    found = int8.quantize_dynamic(model)
    assert (found.record.layers_quantized, found.record.layers_total) == (1, 1)
    assert found.record.weights_quantized == found.record.weights_total == 50 * 6 + 6 * 4
    exact = run(model, group)
    assert rms(exact, run(found.model, group)) < 0.05 * float(exact.std())


def test_more_calibration_samples_than_there_are_is_refused(tmp_path: Path) -> None:
    source = source_of(tmp_path, *dense((8, 3)))
    (recipe,) = candidates.recipes(ExportOptions(precisions=("int8",), calibration_samples=201))
    with pytest.raises(UsageError, match="201 calibration samples") as caught:
        recipe.make(source)
    assert "--calibration-size 200" in caught.value.hint


def test_static_int8_without_data_says_what_to_give(tmp_path: Path) -> None:
    source = source_of(tmp_path, *dense((8, 3)), train=())
    (recipe,) = candidates.recipes(ExportOptions(precisions=("int8",)))
    with pytest.raises(UsageError, match="calibration") as caught:
        recipe.make(source)
    assert "--data" in caught.value.hint


def test_evening_out_changes_no_answer_and_lowers_the_error_of_uneven_layers() -> None:
    model, signature = dense((16, 32, 16, 3))
    first = numpy_helper.to_array(model.graph.initializer[0]) * np.logspace(-2, 1, 32, dtype=np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(first, model.graph.initializer[0].name))
    samples = noise(signature, 200)
    even = onnx.ModelProto()
    even.CopyFrom(model)
    assert equalize(even)
    exact = run(model, samples)
    assert np.allclose(run(even, samples), exact, atol=1e-3 * np.abs(exact).max())
    found = int8.quantize_static(model, signature, (samples,), CALIBRATION, per_channel=False)
    assert found.record.equalized
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8, "equalize", lambda _: False)
        plain = int8.quantize_static(model, signature, (samples,), CALIBRATION, per_channel=False)
    errors = [rms(exact, run(one.model, samples)) for one in (found, plain)]
    assert errors[0] < 0.7 * errors[1]


def test_evening_out_leaves_layers_alone_that_have_no_dense_neighbour() -> None:
    model, _ = convolution()
    before = model.SerializeToString()
    assert not equalize(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    "options",
    [
        {"precisions": ("int8",)},
        {"precisions": ("int8",), "formats": ("qoperator",)},
        {"precisions": ("int8",), "quantization": "dynamic"},
        {"precisions": ("int8",), "quantization": "weights"},
        {"precisions": ("int4",)},
    ],
)
@pytest.mark.parametrize("name", ["layers.1", "layers.5"])
def test_a_layer_excluded_by_name_stays_in_float_and_is_recorded(
    tmp_path: Path, options: dict[str, object], name: str
) -> None:
    source = source_of(tmp_path, *dense((16, 32, 16, 3), raw=True))
    assert [layer.name for layer in layers(source.model)] == ["layers.1", "layers.3", "layers.5"]
    (recipe,) = candidates.recipes(ExportOptions(**options, exclude_layers=(name,)))
    candidate = recipe.make(source)
    record = candidate.quantization
    assert record is not None
    assert (record.layers_quantized, record.layers_total) == (2, 3)
    assert record.layers_excluded == (name,)
    model = made(candidate)
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 2]
    original = {layer.name: layer.weight for layer in layers(source.model)}[name]
    kept = next(numpy_helper.to_array(t) for t in source.model.graph.initializer if t.name == original)
    assert any(np.array_equal(numpy_helper.to_array(tensor), kept) for tensor in floats)
    biases = sum(t.dims[0] for t in source.model.graph.initializer if len(t.dims) == 1)
    assert 0 <= record.weights_total - record.weights_quantized - kept.size <= biases
    samples = noise(source.signature, 200)
    exact = run(source.path, samples)
    limit = 0.2 if recipe.format.precision is Precision.INT4 else 0.05
    assert rms(exact, run(candidate.files.path, samples)) < limit * float(np.abs(exact).max())


def test_exclusions_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    source = source_of(tmp_path, *dense((16, 8, 3)))
    for wrong, words in (("layers.9",), "no layer"), (("layers.1", "layers.3"), "every layer excluded"):
        (recipe,) = candidates.recipes(ExportOptions(precisions=("int8",), exclude_layers=wrong))
        with pytest.raises(UsageError, match=words) as caught:
            recipe.make(source)
        assert caught.value.hint
    assert [item.name for item in tmp_path.iterdir()] == ["fp32.onnx"]


def test_a_convolution_that_int4_skips_is_an_error_that_names_it(tmp_path: Path) -> None:
    source = source_of(tmp_path, *convolution())
    (recipe,) = candidates.recipes(ExportOptions(precisions=("int4",)))
    with pytest.raises(GateFailed, match="skipped 1 of 2 layers: conv") as caught:
        recipe.make(source)
    assert "--exclude-layer conv" in caught.value.hint
    (excluding,) = candidates.recipes(ExportOptions(precisions=("int4",), exclude_layers=("conv",)))
    assert excluding.make(source).quantization is not None


def test_a_model_that_is_quantized_already_is_refused_in_a_sentence(tmp_path: Path) -> None:
    model, signature = dense((16, 8, 3))
    samples = noise(signature, 50)
    for form, quantized in (
        (VariantFormat.QDQ, int8.quantize_static(model, signature, (samples,), CALIBRATION).model),
        (VariantFormat.DYNAMIC, int8.quantize_dynamic(model).model),
    ):
        found = quantized_as(quantized)
        assert found is not None
        assert found[1] is form
        source = source_of(tmp_path, quantized, signature)
        for recipe in candidates.recipes(ExportOptions(precisions=("fp16", "int8", "int4"))):
            with pytest.raises(UsageError, match="it is quantized already") as caught:
                recipe.make(source)
            assert "left as it is" in caught.value.hint


def test_a_model_without_layers_is_refused_in_a_sentence(tmp_path: Path) -> None:
    signature = vectors(3, 3)
    source = source_of(tmp_path, graph([helper.make_node("Relu", ["x"], ["y"])], {}, signature), signature)
    for recipe in candidates.recipes(ExportOptions(precisions=("fp16", "int8", "int4"))):
        with pytest.raises(UsageError, match="it has no"):
            recipe.make(source)


def _two_raw_inputs() -> tuple[onnx.ModelProto, Signature]:
    """Two uint8 inputs with a layer each, one of them transposed first, and two outputs."""
    signature = Signature(
        inputs=(
            TensorSpec(name="a", dtype="uint8", shape=("batch", 4, 2)),
            TensorSpec(name="b", dtype="uint8", shape=("batch", 6)),
        ),
        outputs=tuple(TensorSpec(name=name, dtype="float32", shape=("batch", 3)) for name in ("first", "second")),
    )
    rng = np.random.default_rng(0)
    weights = {
        name: (rng.standard_normal(shape) / 100).astype(np.float32)
        for name, shape in (("a.weight", (8, 5)), ("b.weight", (6, 5)), ("c.weight", (5, 3)), ("d.weight", (5, 3)))
    }
    weights |= {name: np.ones(3, np.float32) for name in ("c.bias", "d.bias")}
    nodes = [
        helper.make_node("Cast", ["a"], ["a.float"], to=onnx.TensorProto.FLOAT, name="a.cast"),
        helper.make_node("Transpose", ["a.float"], ["a.turned"], perm=[0, 2, 1], name="a.turn"),
        helper.make_node("Flatten", ["a.turned"], ["a.flat"], axis=1, name="a.flatten"),
        helper.make_node("MatMul", ["a.flat", "a.weight"], ["a.out"], name="a.layer"),
        helper.make_node("Cast", ["b"], ["b.float"], to=onnx.TensorProto.FLOAT, name="b.cast"),
        helper.make_node("MatMul", ["b.float", "b.weight"], ["b.out"], name="b.layer"),
        helper.make_node("Add", ["a.out", "b.out"], ["sum"], name="sum"),
        helper.make_node("Relu", ["sum"], ["relu"], name="relu"),
        helper.make_node("Gemm", ["relu", "c.weight", "c.bias"], ["first"], name="c.layer"),
        helper.make_node("Gemm", ["relu", "d.weight", "d.bias"], ["second"], name="d.layer"),
    ]
    return graph(nodes, weights, signature), signature


def test_every_raw_input_is_read_as_it_is_and_every_float_output_stays_float() -> None:
    model, signature = _two_raw_inputs()
    samples = noise(signature, 100)
    found = int8.quantize_static(model, signature, (samples,), CALIBRATION).model
    assert "Cast" not in [node.op_type for node in found.graph.node]
    makers = {name: node.op_type for node in found.graph.node for name in node.output}
    assert (makers["first"], makers["second"]) == ("Add", "Add")
    with OnnxRuntimeRunner(model.SerializeToString()) as before, OnnxRuntimeRunner(found.SerializeToString()) as after:
        exact, answers = before.run(samples.inputs), after.run(samples.inputs)
    for name in ("first", "second"):
        assert rms(exact[name], answers[name]) < 0.05 * float(np.abs(exact[name]).max())


def with_weights_beside(folder: Path, model: onnx.ModelProto) -> Path:
    """Save a graph as large ones are: its weights in `model.data`."""
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=256)
    return folder / "model.onnx"


@pytest.mark.parametrize(
    "options",
    [
        {"precisions": ("fp16",)},
        {"precisions": ("int4",)},
        {"precisions": ("int8",)},
        {"precisions": ("int8",), "calibration": "mse"},
        {"precisions": ("int8",), "quantization": "dynamic"},
        {"precisions": ("int8",), "quantization": "weights"},
    ],
)
def test_weights_beside_the_graph_stay_beside_it_and_give_the_same_answers(
    tmp_path: Path, options: dict[str, object]
) -> None:
    model, signature = dense((64, 64, 32, 8))
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir()
    large.mkdir()
    (recipe,) = candidates.recipes(ExportOptions(**options))
    one = recipe.make(source_of(small, model, signature))
    first = candidates.baseline(with_weights_beside(large, model))
    assert [ref.file.split("-")[0] for ref in first.files.data] == ["fp32"]
    source = Source(
        path=first.files.path, folder=large, signature=signature, train=(noise(signature, 200),), dataset="noise"
    )
    other = recipe.make(source)
    assert other.files.data
    for ref in (*first.files.data, *other.files.data):
        folder = first.files.folder if ref in first.files.data else other.files.folder
        assert hashlib.sha256((folder / ref.file).read_bytes()).hexdigest() == ref.sha256
    assert {item.name for item in other.files.folder.iterdir()} == {
        other.files.graph.file,
        *(ref.file for ref in other.files.data),
    }
    assert other.quantization == one.quantization
    samples = noise(signature, 30, seed=5)
    assert np.allclose(run(one.files.path, samples), run(other.files.path, samples), atol=1e-5)


def test_the_pixel_format_is_for_small_models(tmp_path: Path) -> None:
    model, _ = dense((16, 32, 8), raw=True)
    assert "too large" in pixel.refusal(staging.read(with_weights_beside(tmp_path, model)))


def test_int8_of_more_than_two_gigabytes_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    model, signature = dense((16, 8, 3))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    del tensor.dims[:]
    tensor.dims.extend([30_000, 30_000])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    (recipe,) = candidates.recipes(ExportOptions(precisions=("int8",)))
    with pytest.raises(UsageError, match=r"weights take 3\.6 GB.*int4 and fp16 work"):
        recipe.make(source_of(tmp_path, model, signature))


def test_fp16_is_held_to_its_own_bar() -> None:
    exact = np.eye(3, dtype=np.float32)
    near = compare_tensors({"y": exact}, {"y": exact + np.float32(0.003)})
    assert not judge_float(near, FLOAT_RTOL).passed
    assert judge_float(near, HALF_RTOL).passed
    assert not judge_float(compare_tensors({"y": exact}, {"y": exact + np.float32(0.1)}), HALF_RTOL).passed


def test_options_that_make_nothing_are_refused() -> None:
    for wrong in (
        {"precisions": ()},
        {"precisions": ("int2",)},
        {"precisions": ("int4",), "formats": ("qdq",)},
        {"precisions": ("fp16",), "per_channel": True},
        {"precisions": ("fp32",), "max_loss": 0.01},
        {"precisions": ("fp16",), "exclude_layers": ("layers.1",)},
        {"precisions": ("int8",), "formats": ("float",)},
        {"precisions": ("int8",), "formats": ("pixel",), "exclude_layers": ("layers.1",)},
        {"precisions": ("int8",), "exclude_layers": ("auto", "layers.1")},
        {"precisions": ("int8",), "quantization": "dynamic", "calibration": "entropy"},
        {"precisions": ("int8",), "quantization": "dynamic", "formats": ("qdq",)},
        {"precisions": ("int8",), "quantization": "weights", "formats": ("qdq",)},
        {"precisions": ("int8",), "quantization": "weights", "calibration": "entropy"},
        {"precisions": ("int8",), "quantization": "weights", "calibration_samples": 8},
        {"precisions": ("int8",), "quantization": "weights", "per_channel": False},
        {"precisions": ("int8",), "quantization": "weights", "weight_bits": 8},
        {"precisions": ("int4",), "quantization": "weights"},
        {"precisions": "int8"},
        {"opset": 3},
        {"calibration_samples": 0},
        {"max_loss": -0.01},
    ):
        with pytest.raises(UsageError):
            ExportOptions(**wrong)


def test_large_weights_become_fp16_in_pieces(tmp_path: Path) -> None:
    model, signature = dense((2048, 4096, 1))
    weight = numpy_helper.to_array(model.graph.initializer[0])
    path = graphs.save_beside(model, tmp_path / "fp32.onnx")
    source = Source(path=path, folder=tmp_path, signature=signature)
    (recipe,) = candidates.recipes(ExportOptions(precisions=("fp16",)))
    recipe.make(source).discard()  # imports the converter
    tracemalloc.start()
    made = recipe.make(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < weight.nbytes / 2
    loaded = {one.name: numpy_helper.to_array(one) for one in onnx.load(made.files.path).graph.initializer}
    assert np.array_equal(loaded["layers.1.weight"], halved(weight))
