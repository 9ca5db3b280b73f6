"""Quantizing: every format computes what it says, every layer is counted, and what would change nothing is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import exporters
from exporters import ExportOptions, candidates
from exporters.candidates import Source
from exporters.formats import int8, pixel
from exporters.formats.equalize import equalize
from exporters.graph.rules import layers
from exporters.sources import module as onnx_graph
from kit import parity
from kit.accuracy import drop_interval
from kit.bundle import Bundle
from kit.bundle.records import Accuracy, Calibration, ModelSpec
from kit.choices import CalibrationMethod, Precision, Provider, VariantFormat
from kit.errors import GateFailed, UsageError
from kit.lab import data as datasets
from kit.lab import models
from kit.runtime import registry
from kit.runtime.base import RunnerOptions, logits_of
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.runtime.pytorch import reference_logits
from kit.verify import verify
from tests.test_export import Conv, labelled

CALIBRATION = Calibration(
    method=CalibrationMethod.MINMAX, dataset="noise", split="train", samples=200, indices_sha256="", seed=0
)
ON_CUDA = {"DequantizeLinear", "QuantizeLinear", "Flatten", "Gemm", "Add", "Slice"}


def graph(bundle: Bundle, variant: str) -> onnx.ModelProto:
    return onnx.load_from_string(bundle.read(bundle.variant(variant).artifact))


def noise(spec: ModelSpec, count: int = 200) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *spec.input.shape), dtype=np.uint8)


def run(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    with OnnxRuntimeRunner(model.SerializeToString()) as runner:
        return runner.run(pixels)


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
        assert variant.accuracy is not None
        assert variant.accuracy.agreeing is not None
        assert variant.accuracy.agreeing >= 0.98 * variant.accuracy.images


def test_the_manifest_says_what_is_portable(quantized: Bundle) -> None:
    portable = {variant.id for variant in quantized.variants if not variant.domains}
    assert portable == {"fp32", "fp16", "int8-qdq", "int8-qdq-per-tensor", "int8-dynamic"}
    assert all(variant.domains in {(), ("com.microsoft",)} for variant in quantized.variants)


def test_the_pixel_format_is_a_chain_of_integer_layers_and_nothing_else(quantized: Bundle) -> None:
    model = graph(quantized, "int8-pixel")
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
    pixels = quantized.golden().pixels
    chain, qdq = run(graph(quantized, "int8-pixel"), pixels), run(graph(quantized, "int8-qdq-per-tensor"), pixels)
    assert np.abs(chain - qdq).max() < 1e-3
    assert np.array_equal(chain.argmax(axis=1), qdq.argmax(axis=1))


def test_the_pixel_format_refuses_what_is_no_chain_of_dense_layers_and_says_why(
    tiny_spec: ModelSpec, tmp_path: Path
) -> None:
    module = Conv().eval()
    spec = dataclasses.replace(tiny_spec, architecture="Conv")
    options = ExportOptions(precisions=("int8",), formats=("pixel",))
    with pytest.raises(UsageError, match="convolution"):
        exporters.export(module, spec, out=tmp_path / "b", options=options, data=labelled(module, spec))
    assert not (tmp_path / "b").exists()
    with_tanh = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    model = onnx_graph.to_onnx(with_tanh.eval(), tiny_spec).model
    assert "Tanh" in pixel.refusal(model)


def test_qdq_has_nothing_that_the_cuda_provider_lacks(quantized: Bundle) -> None:
    """It dequantizes 8 bits and no int32: biases stay float, and the last one is added by itself."""
    for variant in ("int8-qdq", "int8-qdq-per-tensor"):
        model = graph(quantized, variant)
        assert {node.op_type for node in model.graph.node} <= ON_CUDA
        constants = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        dequantized = [node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"]
        assert onnx.TensorProto.INT32 not in {constants[name] for name in dequantized if name in constants}


@pytest.mark.gpu
def test_qdq_and_fp16_run_on_cuda_alone(quantized: Bundle) -> None:
    golden = quantized.golden()
    for variant in ("int8-qdq", "int8-qdq-per-tensor", "fp16"):
        options = RunnerOptions(provider=Provider.CUDA)
        with OnnxRuntimeRunner(quantized.read(quantized.variant(variant).artifact), options) as runner:
            assert runner.placement.is_all_on(Provider.CUDA)
            found = parity.compare(golden.logits, logits_of(runner, golden.pixels))
        assert found.top1_agreement > 0.98


def test_on_the_cpu_every_layer_of_qdq_becomes_one_integer_kernel(quantized: Bundle, tmp_path: Path) -> None:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    settings.log_severity_level = 3
    model = quantized.read(quantized.variant("int8-qdq").artifact)
    onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds == ["Flatten", "QGemm", "QGemm", "QGemm", "QGemm", "Add"]


def test_portable_int8_agrees_with_itself_in_openvino(quantized: Bundle) -> None:
    pixels = datasets.load("digits").train.images
    for variant in ("int8-qdq", "int8-qdq-per-tensor"):
        answers = []
        for runtime in ("onnxruntime", "openvino"):
            with registry.open_runner(runtime, quantized, quantized.variant(variant), RunnerOptions()) as runner:
                answers.append(logits_of(runner, pixels).argmax(axis=1))
        assert (answers[0] == answers[1]).mean() >= 0.999


@pytest.mark.mnist
@pytest.mark.slow
def test_the_published_int8_agrees_with_itself_in_openvino_on_mnist() -> None:
    from kit.bundle import find

    bundle, pixels = find("mnist-mlp"), datasets.load("mnist").test.images
    answers = []
    for runtime in ("onnxruntime", "openvino"):
        with registry.open_runner(runtime, bundle, bundle.variant("int8-qdq"), RunnerOptions()) as runner:
            answers.append(logits_of(runner, pixels).argmax(axis=1))
    assert (answers[0] == answers[1]).mean() >= 0.999


def test_runtimes_are_not_asked_for_operators_they_do_not_have(quantized: Bundle) -> None:
    for runtime in ("pytorch", "pytorch-compile"):
        assert [variant.id for variant in quantized.variants if registry.can_run(runtime, variant)] == ["fp32"]
    for runtime in ("openvino", "onnx-reference"):
        able = {variant.id for variant in quantized.variants if registry.can_run(runtime, variant)}
        assert able == {"fp32", "fp16", "int8-qdq", "int8-qdq-per-tensor", "int8-dynamic"}
        for variant in able:
            with registry.open_runner(runtime, quantized, quantized.variant(variant), RunnerOptions()) as runner:
                assert runner.run(quantized.golden().pixels[:3]).shape == (3, 10)


def test_the_same_seed_gives_the_same_bytes_and_calibration_is_drawn_from_what_was_trained_on(
    quantized: Bundle,
) -> None:
    training = quantized.manifest.training
    assert training is not None
    again = exporters.export_bundle(
        quantized, ExportOptions(precisions=("int8",), formats=("qdq", "pixel"), max_drop_points=1.0)
    )
    for variant in again.passed:
        assert variant.variant.artifact == quantized.variant(variant.variant.id).artifact
    record = again.bundle.variant("int8-pixel").quantization
    assert record is not None
    assert record.calibration is not None
    fitted, _ = datasets.validation_indices(
        len(datasets.load("digits").train), fraction=training.validation_fraction, seed=training.seed
    )
    drawn = datasets.calibration_indices(np.arange(len(fitted)), samples=1024, seed=0)
    assert record.calibration.samples == len(drawn)
    assert record.calibration.indices_sha256 == datasets.indices_sha256(drawn)
    other = ExportOptions(precisions=("int8",), calibration_samples=50, seed=1, max_drop_points=2.0)
    assert exporters.export_bundle(quantized, other).bundle.variant("int8-qdq") != quantized.variant("int8-qdq")


def test_calibration_sees_training_images_and_no_others(tiny_spec: ModelSpec, tmp_path: Path) -> None:
    """The other splits are as bright as can be: had they been looked at, the ranges would not be those of dark images."""
    torch.manual_seed(0)
    module = models.build("mlp-8", shape=(16,), outputs=3).eval()
    dark = noise(tiny_spec) // 64
    bright = exporters.Split(np.full((50, 4, 4), 255, np.uint8), np.zeros(50, np.int64))
    scales = []
    for rest in (exporters.Split(dark[:50], np.zeros(50, np.int64)), bright):
        data = exporters.LabelledData(
            dataset="d", train=exporters.Split(dark, np.zeros(200, np.int64)), validation=rest, test=rest
        )
        options = ExportOptions(precisions=("int8",), max_drop_points=100.0)
        report = exporters.export(module, tiny_spec, out=tmp_path / "b", options=options, data=data)
        scales.append(report.bundle.variant("int8-qdq").artifact.sha256)
    assert scales[0] == scales[1]


@pytest.mark.parametrize("method", list(CalibrationMethod))
def test_every_calibration_method_works_and_is_recorded_and_prints_nothing(
    method: CalibrationMethod, tiny_spec: ModelSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    module = models.build("mlp-8", shape=(16,), outputs=3).eval()
    model, pixels = onnx_graph.to_onnx(module, tiny_spec).model, noise(tiny_spec)
    made = int8.quantize_static(model, tiny_spec, pixels, dataclasses.replace(CALIBRATION, method=method))
    assert made.record.calibration is not None
    assert made.record.calibration.method is method
    assert capsys.readouterr().out == ""
    assert parity.compare(reference_logits(module, tiny_spec, pixels), run(made.model, pixels)).top1_agreement > 0.9


def test_more_calibration_images_than_there_are_is_refused(tiny_spec: ModelSpec) -> None:
    module = models.build("mlp-8", shape=(16,), outputs=3).eval()
    source = source_of(module, tiny_spec)
    (plan,) = candidates.plans(ExportOptions(precisions=("int8",), calibration_samples=201))
    with pytest.raises(UsageError, match="201 calibration images") as caught:
        plan.make(source)
    assert "--calibration-size 200" in caught.value.hint


def source_of(module: torch.nn.Module, spec: ModelSpec) -> Source:
    graph = onnx_graph.to_onnx(module, spec)
    train = datasets.Split(noise(spec), np.zeros(200, np.int64))
    return Source(
        model=graph.model,
        spec=spec,
        normalization_folded=graph.normalization_folded,
        train=train,
        dataset="noise",
    )


def test_evening_out_changes_no_answer_and_lowers_the_error_of_uneven_layers(tiny_spec: ModelSpec) -> None:
    torch.manual_seed(0)
    module = models.build("mlp-32-16", shape=(16,), outputs=3).eval()
    first = next(layer for layer in module.layers if isinstance(layer, torch.nn.Linear))
    with torch.no_grad():
        first.weight *= torch.logspace(-2, 1, 32).unsqueeze(1)
    model, pixels = onnx_graph.to_onnx(module, tiny_spec).model, noise(tiny_spec)
    even = onnx.ModelProto()
    even.CopyFrom(model)
    assert equalize(even)
    exact = run(model, pixels)
    assert np.allclose(run(even, pixels), exact, atol=1e-3 * np.abs(exact).max())
    made = int8.quantize_static(model, tiny_spec, pixels, CALIBRATION, per_channel=False)
    assert made.record.equalized
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8, "equalize", lambda _: False)
        plain = int8.quantize_static(model, tiny_spec, pixels, CALIBRATION, per_channel=False)
    errors = [parity.compare(exact, run(one.model, pixels)).rms_error for one in (made, plain)]
    assert errors[0] < 0.7 * errors[1]


def test_evening_out_leaves_layers_alone_that_have_no_dense_neighbour(tiny_spec: ModelSpec) -> None:
    model = onnx_graph.to_onnx(Conv().eval(), dataclasses.replace(tiny_spec, architecture="Conv")).model
    before = model.SerializeToString()
    assert not equalize(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    "options",
    [
        {"precisions": ("int8",)},
        {"precisions": ("int8",), "formats": ("qoperator",)},
        {"precisions": ("int8",), "quantization": "dynamic"},
        {"precisions": ("int4",)},
    ],
)
@pytest.mark.parametrize("name", ["layers.1", "layers.5"])
def test_a_layer_excluded_by_name_stays_in_float_and_is_recorded(
    tiny_spec: ModelSpec, options: dict[str, object], name: str
) -> None:
    module = models.build("mlp-32-16", shape=(16,), outputs=3).eval()
    source = source_of(module, tiny_spec)
    assert [layer.name for layer in layers(source.model)] == ["layers.1", "layers.3", "layers.5"]
    (plan,) = candidates.plans(ExportOptions(**options, exclude_layers=(name,)))
    made = plan.make(source)
    assert made.quantization is not None
    assert (made.quantization.layers_quantized, made.quantization.layers_total) == (2, 3)
    assert made.quantization.layers_excluded == (name,)
    floats = [t for t in made.model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 2]
    weight = numpy_helper.to_array(floats[0])
    original = {layer.name: layer.weight for layer in layers(source.model)}[name]
    assert np.array_equal(
        weight, next(numpy_helper.to_array(t) for t in source.model.graph.initializer if t.name == original)
    )
    pixels = noise(tiny_spec)
    assert parity.compare(reference_logits(module, tiny_spec, pixels), run(made.model, pixels)).top1_agreement > 0.9


def test_exclusions_that_make_no_sense_are_refused(tiny_spec: ModelSpec) -> None:
    source = source_of(models.build("mlp-8", shape=(16,), outputs=3).eval(), tiny_spec)
    for wrong, words in (("layers.9",), "no layer"), (("layers.1", "layers.3"), "every layer excluded"):
        (plan,) = candidates.plans(ExportOptions(precisions=("int8",), exclude_layers=wrong))
        with pytest.raises(UsageError, match=words) as caught:
            plan.make(source)
        assert caught.value.hint


def test_a_convolution_that_int4_skips_is_an_error_that_names_it(tiny_spec: ModelSpec) -> None:
    source = source_of(Conv().eval(), dataclasses.replace(tiny_spec, architecture="Conv"))
    (plan,) = candidates.plans(ExportOptions(precisions=("int4",)))
    with pytest.raises(GateFailed, match="skipped 1 of 2 layers: conv") as caught:
        plan.make(source)
    assert "--exclude-layer conv" in caught.value.hint
    (excluding,) = candidates.plans(ExportOptions(precisions=("int4",), exclude_layers=("conv",)))
    assert excluding.make(source).quantization is not None


def test_a_crop_is_cut_from_raw_pixels_and_every_format_takes_it(tiny_spec: ModelSpec) -> None:
    spec = dataclasses.replace(
        tiny_spec, architecture="mlp-32-16-crop-1", input=dataclasses.replace(tiny_spec.input, shape=(8, 6))
    )
    module = models.build(spec.architecture, shape=(8, 6), outputs=3).eval()
    source = source_of(module, spec)
    assert [node.op_type for node in source.model.graph.node][:3] == ["Slice", "Cast", "Flatten"]
    assert source.normalization_folded
    pixels = noise(spec)
    exact = reference_logits(module, spec, pixels)
    assert np.allclose(run(source.model, pixels), exact, atol=1e-4)
    options = ExportOptions(precisions=("fp16", "int8", "int4"), formats=("qdq", "qoperator", "pixel"))
    for plan in candidates.plans(options):
        made = plan.make(source).model
        assert parity.compare(exact, run(made, pixels)).top1_agreement > 0.9, plan.id
        if plan.format in {VariantFormat.PIXEL, VariantFormat.QDQ}:
            assert "Cast" not in [node.op_type for node in made.graph.node]


def test_the_exact_interval_of_a_drop_is_clopper_and_pearsons() -> None:
    found = Accuracy(dataset="d", split="test", images=100, correct=90)
    low, high = drop_interval(found)
    # 1 - 0.0125 ** (1 / 100): none of 100, each end missed by both kinds of flips together in one of 40.
    assert high == pytest.approx(100 * (1 - 0.0125**0.01), abs=1e-6)
    assert low == pytest.approx(-high, abs=1e-9)
    lost = dataclasses.replace(found, flips_to_wrong=30)
    low, high = drop_interval(lost)
    assert low > 10
    assert low < lost.drop_points < high
    every = dataclasses.replace(found, correct=0, flips_to_wrong=100)
    assert drop_interval(every)[1] == pytest.approx(100.0)


def test_fp16_is_held_to_its_own_bar() -> None:
    exact = np.eye(3, dtype=np.float32)
    near = parity.compare(exact, exact + np.float32(0.003))
    assert not parity.judge_float(near).passed
    assert parity.judge_half(near).passed
    assert not parity.judge_half(parity.compare(exact, exact + np.float32(0.1))).passed
