"""The workshop: what is published was checked, and what fails a check leaves no trace."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import exporters
import kit
from exporters import ExportOptions
from exporters.sources import open_source
from kit.bundle import Bundle, find, open_folder
from kit.choices import Precision, QuantizationScheme
from kit.errors import GateFailed, UsageError
from kit.lab import models
from kit.samples import SEEDED, Samples, Splits
from kit.tasks.image import ImageClassification
from kit.tensors import Signature, TensorSpec
from kit.verify import verify
from tests.helpers.modules import Conv, Duo, RowsDepend, duo_signature
from tests.helpers.originals import noise

INT8 = (Precision.FP32, Precision.INT8)


def small() -> nn.Module:
    return models.build("mlp-8", shape=(16,), outputs=3).eval()


def pictures(count: int, *, seed: int = 0, brightest: int = 255) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, brightest + 1, (count, 4, 4), dtype=np.uint8)


def labelled(module: nn.Module, task: ImageClassification, *, train: np.ndarray | None = None) -> Splits:
    """Random pictures labelled by the module itself: fp32 is right on all of them."""
    original = open_source(module, name="tiny", task=task, signature=task.signature((4, 4)))
    every = pictures(600)
    labels = original.answer({"pixels": every})["logits"].argmax(axis=1)
    original.close()

    def group(pixels: np.ndarray, right: np.ndarray) -> tuple[Samples, ...]:
        return (Samples(inputs={"pixels": pixels}, targets={"labels": right}, source="noise"),)

    train = every[:200] if train is None else train
    return Splits(
        dataset="noise",
        train=group(train, np.zeros(len(train), np.int64)),
        validation=group(every[200:400], labels[200:400]),
        test=group(every[400:], labels[400:]),
    )


def export(module: nn.Module, task: ImageClassification, out: Path, **about: object) -> exporters.ExportReport:
    return exporters.export(module, task=task, signature=task.signature((4, 4)), out=out, **about)


def graph_of(bundle: Bundle, variant: str) -> onnx.ModelProto:
    return onnx.load_from_string(bundle.read(bundle.variant(variant).graph))


def test_a_convolution_on_pictures_is_exported_quantized_and_proved(
    tiny_task: ImageClassification, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = Conv().eval()
    options = ExportOptions(precisions=INT8, max_loss=0.2)
    report = export(module, tiny_task, tmp_path / "conv", options=options, data=labelled(module, tiny_task))
    _, quantized = report.passed
    record = quantized.variant.quantization
    assert record is not None
    assert (record.layers_quantized, record.layers_total) == (2, 2)
    assert record.weights_quantized >= 4 * 9 + 4 * 3
    assert record.macs_quantized == record.macs_total > 0
    assert verify(report.bundle).ok


def test_inputs_and_outputs_of_any_kind_are_exported_and_quantized(tmp_path: Path) -> None:
    torch.manual_seed(2)
    signature = duo_signature()
    data = Splits(
        dataset="made up",
        train=(noise(signature, 40, sequence=5), noise(signature, 30, sequence=9)),
        validation=(noise(signature, 40, seed=1, sequence=5),),
        test=(noise(signature, 40, seed=2, sequence=16),),
    )
    options = ExportOptions(precisions=("fp16", "int8", "int4"), max_loss=0.3)
    report = exporters.export(Duo(), name="duo", signature=signature, out=tmp_path / "duo", options=options, data=data)
    assert [variant.id for variant in report.bundle.variants] == ["fp32", "fp16", "int8-qdq", "int4"]
    assert {one.output for one in report.bundle.variant("int8-qdq").fidelity} == {"scores", "vectors"}
    record = report.bundle.variant("int8-qdq").quantization
    assert record is not None
    assert record.layers_quantized == record.layers_total == 2
    assert record.weights_total - record.weights_quantized >= 11 * 6  # the embedding table stays in float
    assert verify(report.bundle).ok


def test_samples_that_are_drawn_are_called_so_and_have_every_typical_size(duo: Bundle) -> None:
    assert duo.manifest.golden.source == SEEDED
    assert [duo.signature.check(group.inputs)["sequence"] for group in duo.golden()] == [5, 16]


def test_variants_are_added_to_a_bundle_that_holds_nothing_but_its_graph(duo: Bundle) -> None:
    """Its baseline answers for the original: no module, no architecture, no training record."""
    before = duo.variant("fp32")
    options = ExportOptions(precisions=("int8",), max_loss=0.3)
    data = Splits(
        dataset="mine",
        train=(noise(duo.signature, 50),),
        validation=(noise(duo.signature, 50, seed=1),),
        test=(noise(duo.signature, 50, seed=2),),
    )
    with pytest.raises(UsageError, match="calibration") as caught:
        exporters.export_bundle(duo, options)
    assert "--data" in caught.value.hint
    report = exporters.export_bundle(duo, options, data=data)
    assert [variant.id for variant in report.bundle.variants] == ["fp32", "int8-qdq"]
    after = open_folder(duo.folder).variant("fp32")
    assert (after.graph, after.fidelity) == (before.graph, before.fidelity)
    calibration = report.bundle.variant("int8-qdq").quantization
    assert calibration is not None
    assert calibration.calibration is not None
    assert calibration.calibration.dataset == "mine"
    assert verify(report.bundle).ok


def test_static_int8_reads_pixels_as_they_are_and_gives_float_logits(digits: Bundle) -> None:
    model = graph_of(digits, "int8-qdq")
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
        model = graph_of(digits, variant)
        weights = [numpy_helper.to_array(t) for t in model.graph.initializer if len(t.dims) == 2]
        assert len(weights) == 4
        assert max(int(np.abs(weight.astype(int)).max()) for weight in weights) <= 64
        record = digits.variant(variant).quantization
        assert record is not None
        assert (record.layers_quantized, record.layers_total, record.weight_bits) == (4, 4, 7)


def test_int8_that_is_wrong_is_not_published(tiny_task: ImageClassification, tmp_path: Path) -> None:
    """Calibrated on nearly black pictures, every activation of a real one is clipped."""
    torch.manual_seed(2)
    module = small()
    data = labelled(module, tiny_task, train=np.zeros((100, 4, 4), np.uint8))
    with pytest.raises(GateFailed, match="points of"):
        export(module, tiny_task, tmp_path / "b", options=ExportOptions(precisions=INT8), data=data)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_gate_leaves_an_existing_bundle_as_it_was(tiny_task: ImageClassification, tmp_path: Path) -> None:
    """Calibrated on black pictures, int8 cuts off what real ones give."""
    torch.manual_seed(3)
    module = small()
    folder = tmp_path / "tiny"
    export(module, tiny_task, folder, data=labelled(module, tiny_task))
    before = {item.name: item.read_bytes() for item in folder.iterdir()}
    black = labelled(module, tiny_task, train=np.zeros((200, 4, 4), np.uint8))
    with pytest.raises(GateFailed, match="points of"):
        export(module, tiny_task, folder, options=ExportOptions(precisions=INT8), data=black)
    assert {item.name: item.read_bytes() for item in folder.iterdir()} == before
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith(".partial")] == []


def test_static_int8_is_right_whatever_range_calibration_shows(tiny_task: ImageClassification, tmp_path: Path) -> None:
    """Raw pixels are quantized with scale 1; biases must fit that scale and not the samples' own."""
    torch.manual_seed(3)
    module = small()
    with torch.no_grad():
        module.layers[1].bias.uniform_(-3, 3)
    dim = pictures(200, seed=1, brightest=99)
    golden = (Samples(inputs={"pixels": dim}, source="noise"),)
    data = dataclasses.replace(labelled(module, tiny_task, train=dim), validation=golden, test=golden)
    report = export(module, tiny_task, tmp_path / "b", options=ExportOptions(precisions=INT8), data=data, golden=golden)
    (fidelity,) = report.bundle.variant("int8-qdq").fidelity
    assert fidelity.max_rel_error is not None
    assert fidelity.max_rel_error < 0.05


def test_dynamic_int8_without_data_is_held_to_the_golden_samples(
    tiny_task: ImageClassification, tmp_path: Path
) -> None:
    """One hidden unit far out takes all the steps of its tensor and leaves none for the units that decide."""
    torch.manual_seed(4)
    module = small()
    with torch.no_grad():
        module.layers[1].bias[0] = 1e5
        module.layers[3].weight[:, 0] = 0.0
    dynamic = ExportOptions(precisions=INT8, quantization=QuantizationScheme.DYNAMIC)
    with pytest.raises(GateFailed, match="golden samples"):
        export(module, tiny_task, tmp_path / "b", options=dynamic)
    assert not (tmp_path / "b").exists()


def test_a_layer_used_twice_is_quantized(tiny_task: ImageClassification, tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.tied, self.last = nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.first(x.flatten(1)))
            return self.last(torch.relu(self.tied(torch.relu(self.tied(x)))))

    torch.manual_seed(0)
    module = Tied().eval()
    options = ExportOptions(precisions=INT8, max_loss=0.2)
    report = export(module, tiny_task, tmp_path / "b", options=options, data=labelled(module, tiny_task))
    record = report.bundle.variant("int8-qdq").quantization
    assert record is not None
    assert record.layers_total == 4


def test_rows_that_depend_on_their_neighbours_fail_the_gate(tiny_task: ImageClassification, tmp_path: Path) -> None:
    with pytest.raises(GateFailed, match="neighbours"):
        export(RowsDepend(), tiny_task, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_static_int8_without_calibration_says_what_to_give(tiny_task: ImageClassification, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="calibration"):
        export(small(), tiny_task, tmp_path / "b", options=ExportOptions(precisions=INT8))
    dynamic = ExportOptions(precisions=INT8, quantization=QuantizationScheme.DYNAMIC)
    report = export(small(), tiny_task, tmp_path / "b", options=dynamic)
    assert [variant.id for variant in report.bundle.variants] == ["fp32", "int8-dynamic"]
    assert report.bundle.variant("int8-dynamic").score("top-1") is None


def test_a_score_is_written_with_its_loss_and_a_small_split_says_what_it_cannot_see(
    tiny_task: ImageClassification, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = small()
    options = ExportOptions(precisions=INT8, max_loss=0.02)
    report = export(module, tiny_task, tmp_path / "b", options=options, data=labelled(module, tiny_task))
    fp32, int8 = report.bundle.variants
    for split in ("validation", "test"):
        assert (base := fp32.score("top-1", split=split)) is not None
        assert base.value == 1.0
        assert (score := int8.score("top-1", split=split)) is not None
        assert score.worse == round((1 - score.value) * 200)
    assert any("200 samples of noise test cannot exclude" in remark for remark in report.passed[1].remarks)


def test_the_manifest_says_how_int8_was_made(digits: Bundle) -> None:
    record = find(digits.folder).variant("int8-qdq").quantization
    assert record is not None
    assert record.calibration is not None
    assert record.calibration.split == "train"
    assert record.calibration.samples == 1024
    assert len(record.calibration.indices_sha256) == 64


def test_data_that_do_not_fit_are_refused_before_anything_is_made(
    tiny_task: ImageClassification, tmp_path: Path
) -> None:
    module = small()
    good = labelled(module, tiny_task)
    for changes, words in (
        (
            {"inputs": {"pixels": good.test[0].inputs["pixels"].astype(np.float32)}},
            "test samples: pixels must be uint8",
        ),
        ({"inputs": {"pixels": good.test[0].inputs["pixels"][:, :3]}}, "test samples: pixels must be uint8"),
        ({"inputs": {"images": good.test[0].inputs["pixels"]}}, "'pixels' is missing"),
        ({"targets": {"labels": good.test[0].targets["labels"][:3]}}, "3 rows for 200 samples"),
    ):
        wrong = dataclasses.replace(good, test=(dataclasses.replace(good.test[0], **changes),))
        with pytest.raises(UsageError, match=words):
            export(module, tiny_task, tmp_path / "b", data=wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_the_model_does_not_fit_is_refused(tmp_path: Path) -> None:
    task = ImageClassification(labels=("a", "b"), pipeline="resize@1")
    with pytest.raises(UsageError):
        exporters.export(Duo(), name="duo", signature=duo_signature(), task=task, out=tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_raw_items_travel_with_the_tensors_they_must_become(tiny_task: ImageClassification, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "pictures"
    for place, label in enumerate(tiny_task.labels):
        (folder / label).mkdir(parents=True)
        Image.fromarray(pictures(1, seed=place)[0].repeat(3, 0).repeat(3, 1)).save(folder / label / "one.png")
    raw = tiny_task.raw(folder, 3)
    report = export(small(), tiny_task, tmp_path / "b", raw=raw)
    items = report.bundle.items()
    assert items is not None
    assert len(items.raw) == 3
    assert items.tensors[0]["pixels"].shape == (1, 4, 4)
    assert verify(report.bundle).ok


def test_a_model_of_plain_tensors_runs_without_a_task(tmp_path: Path) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 8)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 1)),),
    )
    torch.manual_seed(0)
    report = exporters.export(nn.Linear(8, 1), signature=signature, out=tmp_path / "linear")
    with kit.load(report.bundle.folder) as engine:
        assert engine.run({"x": np.zeros((2, 8), np.float32)})["y"].shape == (2, 1)
