"""The workshop: what is published was checked, and what fails a check leaves no trace."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from torch import nn

import exporters
import kit
from exporters import ExportOptions, LabelledData
from exporters.formats import int8
from exporters.gate import check_accuracy, check_batches, check_file
from exporters.options import OPSETS
from exporters.sources import module as onnx_graph
from kit.bundle import Bundle, find
from kit.bundle.records import Calibration, ModelSpec, TensorSpec
from kit.choices import Precision, QuantizationScheme
from kit.errors import GateFailed, UsageError
from kit.lab import models
from kit.lab.data import Split
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.runtime.pytorch import reference_logits
from kit.verify import verify

INT8 = (Precision.FP32, Precision.INT8)


class Conv(nn.Module):
    """A small network whose first layer is not dense."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits [N, 3]."""
        features = torch.relu(self.conv(x.unsqueeze(1)))
        logits: torch.Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


class RowsDepend(nn.Module):
    """A module whose rows depend on their neighbours, as batch statistics in training mode do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits [N, 3]."""
        rows = x.flatten(1)[:, :3]
        return rows - rows.mean(dim=0, keepdim=True)


def labelled(module: nn.Module, spec: ModelSpec, *, calibration: np.ndarray | None = None) -> LabelledData:
    """Random pixels labelled by the module itself: fp32 is right on all of them."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (600, *spec.input.shape), dtype=np.uint8)
    labels = reference_logits(module, spec, pixels).argmax(axis=1).astype(np.int64)
    train = pixels[:200] if calibration is None else calibration
    return LabelledData(
        dataset="noise",
        train=Split(train, np.zeros(len(train), np.int64)),
        validation=Split(pixels[200:400], labels[200:400]),
        test=Split(pixels[400:], labels[400:]),
    )


def test_the_graph_takes_raw_pixels_and_normalises_in_its_first_layer(tiny_spec: ModelSpec) -> None:
    module = models.build("mlp-8", shape=(16,), outputs=3)
    graph = onnx_graph.to_onnx(module, tiny_spec)
    assert graph.normalization_folded
    assert [node.op_type for node in graph.model.graph.node] == ["Cast", "Flatten", "Gemm", "Relu", "Gemm"]
    pixels = np.random.default_rng(0).integers(0, 256, (50, 4, 4), dtype=np.uint8)
    expected = module((torch.tensor(pixels) / 255 - 0.4) / 0.2).detach().numpy()
    with OnnxRuntimeRunner(graph.model.SerializeToString()) as runner:
        assert np.allclose(runner.run(pixels), expected, atol=1e-5)


def test_no_trace_of_this_machine_is_left_in_the_graph(tiny_spec: ModelSpec) -> None:
    encoded = onnx_graph.to_onnx(models.build("mlp-8", shape=(16,), outputs=3), tiny_spec).model.SerializeToString()
    assert str(Path(__file__).parent.parent).encode() not in encoded
    assert b".py" not in encoded


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_offered_is_written(tiny_spec: ModelSpec, opset: int, tmp_path: Path) -> None:
    module = models.build("mlp-8", shape=(16,), outputs=3)
    report = exporters.export(module, tiny_spec, out=tmp_path / "b", options=ExportOptions(opset=opset))
    assert report.bundle.variant("fp32").opset == opset


def test_a_convolution_keeps_its_normalisation_as_nodes_and_is_exported_and_quantized(
    tiny_spec: ModelSpec, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = Conv().eval()
    spec = dataclasses.replace(tiny_spec, architecture="Conv")
    options = ExportOptions(precisions=INT8, max_drop_points=20)
    report = exporters.export(module, spec, out=tmp_path / "conv", options=options, data=labelled(module, spec))
    fp32, quantized = report.passed
    assert not fp32.variant.normalization_folded
    assert quantized.variant.quantization is not None
    assert quantized.variant.quantization.layers_quantized == 2
    checked = verify(report.bundle)
    assert checked.ok
    assert checked.reference == "stored logits"


def test_static_int8_reads_pixels_as_they_are_and_gives_float_logits(digits: Bundle) -> None:
    model = onnx.load_from_string(digits.read(digits.variant("int8-qdq").artifact))
    kinds = [node.op_type for node in model.graph.node]
    assert "Cast" not in kinds
    first = next(node for node in model.graph.node if "pixels" in node.input)
    follower = next(node for node in model.graph.node if node.input[0] == first.output[0])
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert follower.op_type == "DequantizeLinear"
    assert (scales[follower.input[1]], scales[follower.input[2]]) == (1.0, 0)
    last = next(node for node in model.graph.node if "logits" in node.output)
    assert last.op_type == "Add"  # of the bias: the layer's product is its input, and no quantized tensor is
    assert next(node for node in model.graph.node if last.input[0] in node.output).op_type == "Gemm"


def test_int8_weights_use_seven_bits_so_that_no_cpu_saturates(digits: Bundle) -> None:
    for variant in ("int8-qdq", "int8-dynamic"):
        model = onnx.load_from_string(digits.read(digits.variant(variant).artifact))
        weights = [numpy_helper.to_array(t) for t in model.graph.initializer if len(t.dims) == 2]
        assert len(weights) == 4
        assert max(int(np.abs(weight.astype(int)).max()) for weight in weights) <= 64
        record = digits.variant(variant).quantization
        assert record is not None
        assert (record.layers_quantized, record.layers_total, record.weight_bits) == (4, 4, 7)


def test_a_skipped_layer_is_noticed(tiny_spec: ModelSpec) -> None:
    model = onnx_graph.to_onnx(models.build("mlp-8", shape=(16,), outputs=3), tiny_spec).model
    with pytest.raises(GateFailed, match="skipped"):
        int8.count(model, model, ())


def test_int8_that_is_wrong_is_not_published(tiny_spec: ModelSpec, tmp_path: Path) -> None:
    """Calibrated on nearly black pictures, every activation of a real one is clipped."""
    torch.manual_seed(2)
    module = models.build("mlp-8", shape=(16,), outputs=3).eval()
    black = np.zeros((100, 4, 4), np.uint8)
    data = labelled(module, tiny_spec, calibration=black)
    with pytest.raises(GateFailed, match="points of top-1"):
        exporters.export(module, tiny_spec, out=tmp_path / "b", options=ExportOptions(precisions=INT8), data=data)
    assert not (tmp_path / "b").exists()


def test_one_image_is_the_least_that_a_gate_can_see(tiny_spec: ModelSpec) -> None:
    """Of 144 images one is 0.7 points, more than a limit of 0.3: whose luck that is depends on the machine."""
    labels = np.arange(144) % 10
    logits = np.eye(10, dtype=np.float32)[labels]
    split = Split(images=np.zeros((144, *tiny_spec.input.shape), np.uint8), labels=labels)
    data = LabelledData(dataset="d", validation=split, test=split)
    for wrong, limit, passes in ((1, 0.3, True), (2, 0.3, False), (1, 0.0, False), (2, 1.4, True)):
        found = logits.copy()
        found[:wrong] = np.roll(found[:wrong], 1, axis=1)
        if passes:
            check_accuracy("int8", data, (found, None), (logits, None), limit)
        else:
            with pytest.raises(GateFailed, match="points of top-1"):
                check_accuracy("int8", data, (found, None), (logits, None), limit)


def test_a_failed_gate_leaves_an_existing_bundle_as_it_was(tiny_spec: ModelSpec, tmp_path: Path) -> None:
    """Calibrated on black pictures, int8 cuts off what real ones give."""
    torch.manual_seed(3)
    module = models.build("mlp-8", shape=(16,), outputs=3).eval()
    folder = tmp_path / "tiny"
    exporters.export(module, tiny_spec, out=folder, data=labelled(module, tiny_spec))
    before = {item.name: item.read_bytes() for item in folder.iterdir()}
    black = labelled(module, tiny_spec, calibration=np.zeros((200, 4, 4), np.uint8))
    with pytest.raises(GateFailed, match="points of top-1"):
        exporters.export(module, tiny_spec, out=folder, options=ExportOptions(precisions=INT8), data=black)
    assert {item.name: item.read_bytes() for item in folder.iterdir()} == before


def test_static_int8_is_right_whatever_range_calibration_shows(tiny_spec: ModelSpec) -> None:
    """Raw pixels are quantized with scale 1; biases must fit that scale and not the samples' own."""
    torch.manual_seed(3)
    module = models.build("mlp-8", shape=(16,), outputs=3).eval()
    with torch.no_grad():
        module.layers[1].bias.uniform_(-3, 3)
    dim = np.random.default_rng(1).integers(0, 100, (200, 4, 4), dtype=np.uint8)
    graph = onnx_graph.to_onnx(module, tiny_spec)
    record = Calibration(method="minmax", dataset="d", split="train", samples=200, indices_sha256="0" * 64, seed=0)
    quantized = int8.quantize_static(graph.model, tiny_spec, dim, record)
    expected = reference_logits(module, tiny_spec, dim)
    with OnnxRuntimeRunner(quantized.model.SerializeToString()) as runner:
        error = np.abs(runner.run(dim) - expected).max() / np.abs(expected).max()
    assert error < 0.05


def test_dynamic_int8_without_data_is_held_to_the_golden_samples(tiny_spec: ModelSpec, tmp_path: Path) -> None:
    """One hidden unit far out takes all the steps of its tensor and leaves none for the units that decide."""
    torch.manual_seed(4)
    module = models.build("mlp-8", shape=(16,), outputs=3).eval()
    with torch.no_grad():
        module.layers[1].bias[0] = 1e5
        module.layers[3].weight[:, 0] = 0.0
    dynamic = ExportOptions(precisions=INT8, quantization=QuantizationScheme.DYNAMIC)
    with pytest.raises(GateFailed, match="golden samples"):
        exporters.export(module, tiny_spec, out=tmp_path / "b", options=dynamic)
    assert not (tmp_path / "b").exists()


def test_a_layer_used_twice_is_quantized(tiny_spec: ModelSpec, tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.tied, self.last = nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.first(x.flatten(1)))
            return self.last(torch.relu(self.tied(torch.relu(self.tied(x)))))

    torch.manual_seed(0)
    module = Tied().eval()
    options = ExportOptions(precisions=INT8, max_drop_points=20)
    data = labelled(module, tiny_spec)
    report = exporters.export(module, tiny_spec, out=tmp_path / "b", options=options, data=data)
    record = report.bundle.variant("int8-qdq").quantization
    assert record is not None
    assert record.layers_total == 4


def test_a_scaled_first_layer_takes_its_scale_into_its_weights_and_is_folded(
    tiny_spec: ModelSpec, tmp_path: Path
) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16, 3))
            self.bias = nn.Parameter(torch.randn(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.addmm(self.bias, x.flatten(1), self.weight, alpha=2.0, beta=0.5)

    report = exporters.export(Scaled().eval(), tiny_spec, out=tmp_path / "b")
    assert report.bundle.variant("fp32").normalization_folded  # and it agrees with PyTorch, or it were not published


def test_a_module_that_cannot_run_a_batch_is_one_clear_error(tiny_spec: ModelSpec, tmp_path: Path) -> None:
    class Pairs(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, 16)[:, :3]

    with pytest.raises(GateFailed, match="PyTorch cannot run"):
        exporters.export(Pairs(), tiny_spec, out=tmp_path / "b")


def test_rows_that_depend_a_little_fail_the_gate_too(tiny_spec: ModelSpec, tmp_path: Path) -> None:
    class Slightly(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = x.flatten(1)[:, :3]
            return rows + 0.03 * (rows - rows.mean(dim=0, keepdim=True))

    with pytest.raises(GateFailed, match="neighbours"):
        exporters.export(Slightly(), tiny_spec, out=tmp_path / "b")


def test_rows_that_depend_on_their_neighbours_fail_the_gate(tiny_spec: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(GateFailed, match="neighbours"):
        exporters.export(RowsDepend(), tiny_spec, out=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_specialised_batch_fails_the_gate(tiny: Bundle) -> None:
    model = onnx.load_from_string(tiny.read(tiny.variant().artifact))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(GateFailed, match="where the spec says"):
        check_file(model, tiny.spec)


def test_a_wrong_output_shape_fails_the_gate(tiny: Bundle) -> None:
    narrower = dataclasses.replace(
        tiny.spec, labels=("a", "b"), output=TensorSpec(name="logits", dtype="float32", shape=(2,))
    )
    with OnnxRuntimeRunner(tiny.read(tiny.variant().artifact)) as runner, pytest.raises(GateFailed, match="batch of 1"):
        check_batches(runner, narrower, tiny.golden().pixels, rtol=1e-4)


def test_a_module_torch_cannot_export_is_one_clear_error(tiny_spec: ModelSpec, tmp_path: Path) -> None:
    class Looks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :3] * float(x.sum().item() > 0 and x.max().item())

    with pytest.raises(GateFailed, match="could not export"):
        exporters.export(Looks(), tiny_spec, out=tmp_path / "b")


def test_static_int8_without_calibration_says_what_to_pass(tiny_spec: ModelSpec, tmp_path: Path) -> None:
    module = models.build("mlp-8", shape=(16,), outputs=3)
    with pytest.raises(UsageError, match="calibration"):
        exporters.export(module, tiny_spec, out=tmp_path / "b", options=ExportOptions(precisions=INT8))
    dynamic = ExportOptions(precisions=INT8, quantization=QuantizationScheme.DYNAMIC)
    report = exporters.export(module, tiny_spec, out=tmp_path / "b", options=dynamic)
    assert [variant.id for variant in report.bundle.variants] == ["fp32", "int8-dynamic"]
    assert report.bundle.variant("int8-dynamic").accuracy is None


def test_the_manifest_says_how_int8_was_made(digits: Bundle) -> None:
    record = find(digits.folder).variant("int8-qdq").quantization
    assert record is not None
    assert record.calibration is not None
    assert record.calibration.split == "train"
    assert record.calibration.samples == 1024
    assert len(record.calibration.indices_sha256) == 64


def test_options_that_make_nothing_are_refused() -> None:
    for wrong in (
        {"precisions": ()},
        {"precisions": ("int2",)},
        {"precisions": ("int4",), "formats": ("qdq",)},
        {"precisions": ("fp16",), "per_channel": True},
        {"precisions": ("fp32",), "max_drop_points": 1.0},
        {"precisions": ("fp16",), "exclude_layers": ("layers.1",)},
        {"precisions": ("int8",), "formats": ("float",)},
        {"precisions": ("int8",), "formats": ("pixel",), "exclude_layers": ("layers.1",)},
        {"precisions": ("int8",), "exclude_layers": ("auto", "layers.1")},
        {"precisions": ("int8",), "quantization": "dynamic", "calibration": "entropy"},
        {"precisions": ("int8",), "quantization": "dynamic", "formats": ("qdq",)},
        {"precisions": "int8"},
        {"opset": 3},
        {"calibration_samples": 0},
        {"max_drop_points": -1.0},
    ):
        with pytest.raises(UsageError):
            ExportOptions(**wrong)


def test_labels_and_images_that_do_not_fit_are_refused_before_anything_is_made(
    tiny_spec: ModelSpec, tmp_path: Path
) -> None:
    module = models.build("mlp-8", shape=(16,), outputs=3)
    good = labelled(module, tiny_spec)
    for split, words in (
        (Split(good.test.images, good.test.labels + 3), r"labels must lie in 0\.\.2"),
        (Split(good.test.images.astype(np.float32), good.test.labels), "must be uint8"),
        (Split(good.test.images[:, :3], good.test.labels), "must be uint8"),
    ):
        with pytest.raises(UsageError, match=words):
            exporters.export(module, tiny_spec, out=tmp_path / "b", data=dataclasses.replace(good, test=split))
    with pytest.raises(UsageError, match="Split takes"):
        Split(good.test.images, good.test.labels[:3])


def test_a_pipeline_that_cannot_serve_the_model_is_refused_at_export(tiny_spec: ModelSpec, tmp_path: Path) -> None:
    module = models.build("mlp-8", shape=(16,), outputs=3)
    for changes in (
        {"pipeline": "imagenet"},
        {"input": TensorSpec(name="pixels", dtype="uint8", shape=(4, 2, 2))},
    ):
        with pytest.raises(UsageError, match="pipeline"):
            exporters.export(module, dataclasses.replace(tiny_spec, **changes), out=tmp_path / "b")


def test_a_model_with_a_channel_axis_reads_pictures(tiny_spec: ModelSpec, tmp_path: Path) -> None:
    spec = dataclasses.replace(tiny_spec, input=TensorSpec(name="pixels", dtype="uint8", shape=(1, 4, 4)))
    report = exporters.export(models.build("mlp-8", shape=(16,), outputs=3), spec, out=tmp_path / "b")
    with kit.load(report.bundle.folder) as engine:
        assert engine.predict(Image.new("L", (9, 9), 80)).pixels.shape == (1, 1, 4, 4)


def test_a_model_without_a_pipeline_takes_pixels_only(tiny_spec: ModelSpec, tmp_path: Path) -> None:
    spec = dataclasses.replace(tiny_spec, pipeline="")
    report = exporters.export(models.build("mlp-8", shape=(16,), outputs=3), spec, out=tmp_path / "b")
    with kit.load(report.bundle.folder) as engine:
        assert len(engine.predict(np.zeros((2, 4, 4), np.uint8))) == 2
        with pytest.raises(UsageError, match="pixels, not pictures"):
            engine.predict(Image.new("L", (9, 9), 80))
