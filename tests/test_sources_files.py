"""Files as sources: ready .onnx, folders from Hugging Face, factories, bundles; and one sentence for what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper, parser
from PIL import Image

from exporters.graph.files import read
from exporters.sources import open_source
from kit.bundle import Bundle
from kit.errors import BadInput, BundleInvalid, GateFailed, UsageError
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.samples import seeded
from kit.tensors import Axis

ROOT = Path(__file__).parent.parent
PUBLISHED = ROOT / "artifacts" / "mnist-mlp" / "fp32-523ebd04.onnx"
RNG = np.random.default_rng(0)


def written(folder: Path, text: str, *, opset: int = 20, name: str = "model.onnx", **constants: Any) -> Path:
    """An .onnx file of a graph written as text."""
    model = parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n{text}')
    for key, values in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), key))
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def dense(folder: Path, *, batch: str = "n", **more: Any) -> Path:
    return written(
        folder,
        f"g (float[{batch}, 3] x) => (float[{batch}, 5] y) {{ y = Gemm<transB = 1>(x, w, b) }}",
        w=RNG.standard_normal((5, 3)).astype(np.float32),
        b=RNG.standard_normal(5).astype(np.float32),
        **more,
    )


def same(source: Path, out: Path, **sizes: int) -> None:
    original = open_source(source)
    out.mkdir()
    path = original.write(out, opset=20)
    inputs = seeded(original.signature, sizes=original.signature.usual_sizes(**sizes)).inputs
    with OnnxRuntimeRunner(path, signature=original.signature) as runner:
        for name, values in original.answer(inputs).items():
            assert np.allclose(runner.run(inputs)[name], values, atol=1e-5)
    original.close()


def test_a_ready_file_keeps_names_opset_and_ir_version(tmp_path: Path) -> None:
    path = dense(tmp_path, opset=17)
    original = open_source(path)
    assert (original.name, original.record.kind, original.record.name) == ("model", "onnx", "model.onnx")
    assert len(original.record.sha256) == 64
    assert original.signature.described() == {"x": "float32 [n, 3]"}
    assert original.signature.batch == "n"
    same(path, tmp_path / "out", n=4)
    model = read(tmp_path / "out" / "model.onnx").model
    assert (model.ir_version, model.opset_import[0].version) == (9, 17)


def test_a_ready_file_needs_no_torch(tmp_path: Path) -> None:
    dense(tmp_path)
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from exporters.sources import open_source\n"
        "print(open_source('model.onnx').write(Path('.'), opset=20))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "model.onnx", done.stderr


def test_ids_are_known_to_pick_from_a_table(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "g (int64[batch, t] ids) => (float[batch, t, 4] y) { a = Cast<to = 6>(ids)  y = Gather(table, a) }",
        table=np.ones((13, 4), np.float32),
    )
    assert open_source(path).signature.input("ids").below == 13


def test_axes_get_bounds_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    path = dense(tmp_path)
    assert open_source(path, axes={"n": Axis(most=8)}).signature.axes["n"].most == 8
    with pytest.raises(UsageError, match="no axis 'sequence'"):
        open_source(path, axes={"sequence": Axis()})


def test_a_fixed_batch_of_one_becomes_an_axis_if_it_is_asked_for(tmp_path: Path) -> None:
    path = dense(tmp_path, batch="1")
    assert open_source(path).signature.described() == {"x": "float32 [1, 3]"}
    original = open_source(path, axes={"batch": Axis(typical=(1, 8))})
    assert original.signature.described() == {"x": "float32 [batch, 3]"}
    assert original.answer({"x": np.ones((4, 3), np.float32)})["y"].shape == (4, 5)
    held = written(
        tmp_path,
        "g (float[1, 4] x) => (float[1, 2, 2] y) { y = Reshape(x, shape) }",
        name="held.onnx",
        shape=np.array([1, 2, 2]),
    )
    with pytest.raises(GateFailed, match="holds a batch of one size"):
        open_source(held, axes={"batch": Axis()})


def test_outputs_call_the_batch_as_the_inputs_do_if_they_follow_it(tmp_path: Path) -> None:
    weight = np.ones((3, 5), np.float32)
    follows = written(tmp_path, "g (float[n, 3] x) => (float[m, 5] y) { y = MatMul(x, w) }", w=weight)
    original = open_source(follows)
    assert original.signature.output("y").shape == ("n", 5)
    assert original.answer({"x": np.ones((4, 3), np.float32)})["y"].shape == (4, 5)
    twice = written(tmp_path, "g (float[n, 3] x) => (float[m, 3] y) { y = Concat<axis = 0>(x, x) }", name="twice.onnx")
    assert open_source(twice).signature.output("y").shape == ("m", 3)


def test_what_is_quantized_already_is_said_and_left_alone(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """g (float[n, 30] x) => (float[n, 5] y) {
            w = DequantizeLinear(q, scale)  y = Gemm<transB = 1>(x, w, b) }""",
        q=np.ones((5, 30), np.int8),
        scale=np.float32(0.1),
        b=np.zeros(5, np.float32),
    )
    original = open_source(path)
    assert original.record.name == "model.onnx (already int8, qdq)"
    same(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("g (float[n] x) => (float[n] y) { y = com.acme.Fancy(x) }", "custom operators Fancy of 'com.acme'"),
        ("g (string[n] x) => (string[n] y) { y = Identity(x) }", "x is a tensor of string"),
        ("g (seq(float[n]) x) => (float[m] y) { y = ConcatFromSequence<axis = 0>(x) }", "x is a sequence"),
        ("g (optional(float[n]) x) => (float[n] y) { y = OptionalGetElement(x) }", "x is optional"),
        ("g (bfloat16[n] x) => (bfloat16[n] y) { y = Identity(x) }", "x is a tensor of bfloat16"),
    ],
)
def test_what_kit_does_not_run_is_refused_in_one_sentence(text: str, words: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    if "acme" in text:
        model = onnx.load(str(path))
        model.opset_import.add(domain="com.acme", version=1)
        path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleInvalid) as caught:
        open_source(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def external(folder: Path, location: str) -> Path:
    path = dense(folder)
    model = onnx.load(str(path))
    tensor = model.graph.initializer[0]
    content = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(content)))):
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    (folder / "real.bin").write_bytes(content)
    return path


def test_weights_beside_a_file_are_read_where_they_lie(tmp_path: Path) -> None:
    same(external(tmp_path, "real.bin"), tmp_path / "out")


@pytest.mark.parametrize("location", ["none.bin", "../real.bin", "/etc/hostname", "link.bin"])
def test_weights_that_are_missing_or_lie_elsewhere_are_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    path = external(folder, location)
    (tmp_path / "real.bin").write_bytes((folder / "real.bin").read_bytes())
    (folder / "link.bin").symlink_to(tmp_path / "real.bin")
    with pytest.raises(BundleInvalid) as caught:
        open_source(path)
    assert caught.value.hint


def test_what_is_no_model_is_refused_with_what_would_be(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model at all")
    with pytest.raises(BundleInvalid):
        open_source(tmp_path / "model.onnx")
    with pytest.raises(BadInput, match="no file"):
        open_source(tmp_path / "none.onnx")
    with pytest.raises(UsageError, match="there is no model") as caught:
        open_source(str(tmp_path / "none"))
    assert "package.module:function" in caught.value.hint
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"no config.json"):
        open_source(tmp_path / "empty")
    with pytest.raises(UsageError, match="weights belong to a factory"):
        open_source(dense(tmp_path), weights=tmp_path / "w.safetensors")


def test_a_bundle_that_no_package_knows_answers_by_its_baseline(duo: Bundle, tmp_path: Path) -> None:
    original = open_source(duo)
    assert (original.name, original.signature) == ("duo", duo.signature)
    group = duo.golden()[0]
    assert group.expected is not None
    for name, values in original.answer(group.inputs).items():
        assert np.allclose(values, group.expected[name], atol=1e-5)
    assert duo.baseline is not None
    assert original.write(tmp_path, opset=20).read_bytes() == duo.read(duo.baseline.graph)
    original.close()


def test_a_bundle_of_the_lab_is_rebuilt_and_written_with_the_same_bytes(tmp_path: Path) -> None:
    original = open_source(ROOT / "artifacts" / "mnist-mlp")
    assert (original.record.kind, original.record.name) == ("architecture", "mlp-512-256-128")
    written, published = (onnx.load(str(one)) for one in (original.write(tmp_path, opset=20), PUBLISHED))
    written.producer_version = published.producer_version  # cpu or cuda
    assert written == published


FACTORIES = """
import numpy as np
import torch
from torch import nn
from kit.tensors import Signature, TensorSpec

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight
    def forward(self, ids):
        return self.head(self.table(ids))

def plain(): return nn.Linear(4, 3)
def tied(): return Tied(), (np.zeros((2, 3), np.int64),)
def signed():
    x, y = (TensorSpec(name=n, dtype="float32", shape=("batch", s)) for n, s in (("x", 4), ("y", 3)))
    return nn.Linear(4, 3), Signature(inputs=(x,), outputs=(y,))
def fails(): raise RuntimeError("no such checkpoint\\nsecond line")
def number(): return 3
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of factories in the current folder, and its name."""
    name = f"factories_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    return name


def test_a_factory_of_the_current_folder_builds_the_model(factories: str) -> None:
    original = open_source(f"{factories}:tied")
    assert (original.name, original.record.kind, original.record.name) == ("tied", "factory", f"{factories}:tied")
    assert original.signature.input("ids").below == 7
    assert open_source(f"{factories}:signed").signature.described() == {"x": "float32 [batch, 4]"}
    assert open_source(f"{factories}:plain", inputs=(np.ones((2, 4), np.float32),)).signature.batch == "batch"


def test_weights_go_into_the_module_strictly(factories: str, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    table = RNG.standard_normal((7, 4)).astype(np.float32)
    path = tmp_path / "w.safetensors"
    ids = np.array([[1, 2, 3]])
    for names in (("table.weight",), ("head.weight",), ("table.weight", "head.weight")):
        save_file(dict.fromkeys(names, table), path)
        original = open_source(f"{factories}:tied", weights=path)
        assert np.allclose(original.answer({"ids": ids})["output"], table[ids] @ table.T, atol=1e-5)
    for wrong, words in (
        ({}, "is missing"),
        ({"table.weight": table, "extra": table}, "it has no extra"),
        ({"table.weight": table[:3]}, r"is \(3, 4\), expected \(7, 4\)"),
    ):
        save_file(wrong, path)
        with pytest.raises(UsageError, match=words):
            open_source(f"{factories}:tied", weights=path)
    path.write_bytes(b"damaged")
    with pytest.raises(BadInput, match="no safetensors file"):
        open_source(f"{factories}:tied", weights=path)
    with pytest.raises(UsageError, match=r"no .safetensors file"):
        open_source(f"{factories}:tied", weights=tmp_path / "w.pth")


def test_a_factory_that_cannot_be_used_is_one_sentence(factories: str) -> None:
    for source, words in (
        (f"{factories}:fails", "failed: RuntimeError: no such checkpoint"),
        (f"{factories}:number", "returned int"),
        (f"{factories}:none", "no function 'none'"),
        ("no_such_package_at_all:f", "no module 'no_such_package_at_all'"),
    ):
        with pytest.raises(UsageError) as caught:
            open_source(source)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


transformers = pytest.importorskip("transformers")
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def bert(folder: Path, kind: str = "BertForSequenceClassification") -> Path:
    """A folder of a tiny network for texts, with a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    config = transformers.BertConfig(
        vocab_size=20,
        max_position_embeddings=32,
        id2label={0: "bad", 1: "good"},
        label2id={"bad": 0, "good": 1},
        **TINY,
    )
    getattr(transformers, kind)(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "nice": 2, "film": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.slow
def test_a_folder_that_classifies_texts_brings_its_labels_and_its_tokenizer(tmp_path: Path) -> None:
    original = open_source(str(bert(tmp_path / "bert")))
    assert original.signature.described() == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids"), "int64 [batch, sequence]"
    )
    assert original.signature.axes["sequence"] == Axis(most=32, typical=(16,))
    assert original.record.kind, original.record.name == ("huggingface", "BertForSequenceClassification")
    task = original.task
    assert task is not None
    assert (task.name, task.options()["labels"]) == ("text-classification@1", ["bad", "good"])
    encoded = task.encode(["nice film", "film"])
    expected = original.answer(encoded)["logits"]
    with OnnxRuntimeRunner(original.write(tmp_path, opset=20), signature=original.signature) as runner:
        assert np.allclose(runner.run(encoded)["logits"], expected, atol=1e-5)
        long = seeded(original.signature, sizes={"batch": 3, "sequence": 32}).inputs
        assert np.allclose(runner.run(long)["logits"], original.answer(long)["logits"], atol=1e-5)


def test_a_folder_of_sentence_transformers_pools_and_normalises_as_it_says(tmp_path: Path) -> None:
    folder = bert(tmp_path / "st", "BertModel")
    steps = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    described = [
        {"idx": n, "path": path, "type": f"sentence_transformers.models.{kind}"} for n, (path, kind) in enumerate(steps)
    ]
    (folder / "modules.json").write_text(json.dumps(described))
    (folder / "1_Pooling").mkdir()
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24}))
    original = open_source(folder)
    assert [spec.name for spec in original.signature.outputs] == ["last_hidden_state"]
    assert original.task is not None
    assert original.task.options() == {
        "pooling": "mean", "normalize": True, "max_tokens": 24, "output": "last_hidden_state",
    }  # fmt: skip
    edit(pooling, pooling_mode_max_tokens=True)
    with pytest.raises(UsageError, match="one way of pooling"):
        open_source(folder)
    described.append({"idx": 3, "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    edit(pooling, pooling_mode_max_tokens=False)
    (folder / "modules.json").write_text(json.dumps(described))
    with pytest.raises(UsageError, match="a step 'Dense'"):
        open_source(folder)


def test_a_folder_of_sentence_transformers_is_its_network_whatever_head_it_was_trained_with(tmp_path: Path) -> None:
    folder = bert(tmp_path / "st", "BertForMaskedLM")
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "path": "", "type": "x.Transformer"}]))
    original = open_source(folder)
    assert [(spec.name, spec.shape) for spec in original.signature.outputs] == [
        ("last_hidden_state", ("batch", "sequence", 16))
    ]


def test_a_folder_that_lacks_weights_of_its_model_is_refused(tmp_path: Path) -> None:
    folder = bert(tmp_path / "bert", "BertModel")
    edit(folder / "config.json", architectures=["BertForSequenceClassification"])
    with pytest.raises(BadInput, match="lacks weights that its model needs, such as classifier"):
        open_source(folder)


@pytest.mark.slow
def test_a_folder_that_classifies_pictures_normalises_them_in_the_graph(tmp_path: Path) -> None:
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=3, **TINY)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    described = {
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5, 0.6, 0.7],
        "size": {"height": 8, "width": 8},
        "resample": 3,
    }
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(described))
    original = open_source(tmp_path / "vit")
    assert original.signature.described() == {"pixels": "uint8 [batch, 3, 8, 8]"}
    assert original.task is not None
    assert original.task.options()["interpolation"] == "bicubic"
    inputs = seeded(original.signature, sizes={"batch": 3}).inputs
    expected = original.answer(inputs)["logits"]
    path = original.write(tmp_path, opset=20)
    assert not {"Mul", "Add"} & {node.op_type for node in read(path).model.graph.node[:3]}
    with OnnxRuntimeRunner(path, signature=original.signature) as runner:
        assert np.allclose(runner.run(inputs)["logits"], expected, atol=1e-4)


STANDARD = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "resample": 3}


def vit(folder: Path, **described: Any) -> Path:
    """A folder of a tiny network for pictures of 8 x 8 pixels."""
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=3, **TINY)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"do_resize": False}, "not scaled"),
        ({"resample": 5}, "resample 5"),
        ({"resample": None}, "resample None"),
        ({"image_mean": None}, "there is no image_mean"),
        ({"image_processor_type": "ViTImageProcessor", "image_std": None}, "there is no image_std"),
        ({"rescale_factor": None}, "cannot be understood"),
        ({"do_pad": True}, "the step do_pad"),
        ({"do_flip_channel_order": True}, "3 numbers for 3 channels"),
        ({"size": 9}, "9 x 9 pixels"),
        ({"size": {"shortest_edge": 8}}, "keep their proportions"),
        ({"size": {"longest_edge": 8}}, "the size"),
        ({"size": "large"}, "the size"),
        ({"image_std": ["much"]}, "cannot be understood"),
        ({"image_processor_type": "LevitImageProcessor"}, "the processor LevitImageProcessor"),
    ],
)
def test_pictures_prepared_in_ways_that_kit_lacks_are_plain_tensors_and_that_is_said(
    changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    original = open_source(vit(tmp_path / "vit", **{"size": 8, **STANDARD, **changes}))
    assert original.task is None
    assert original.signature.described() == {"pixel_values": "float32 [batch, 3, 8, 8]"}
    (remark,) = original.remarks
    assert why in remark


@pytest.mark.parametrize(
    "described",
    [
        {"image_processor_type": "ViTImageProcessor"},
        {"image_processor_type": "DeiTImageProcessor", "do_center_crop": None, "do_normalize": None},
        {"feature_extractor_type": "ViTFeatureExtractor", "do_normalize": False},
        {"image_processor_type": "ViTImageProcessorFast", "rescale_factor": 1 / 127.5, **STANDARD},
        {"image_processor_type": "EfficientNetImageProcessor", **STANDARD},
        {"image_processor_type": "EfficientNetImageProcessor", **STANDARD, "do_normalize": False},
        {"image_processor_type": "EfficientNetImageProcessor", **STANDARD, "include_top": False},
        {
            "image_processor_type": "EfficientNetImageProcessor",
            **STANDARD,
            "rescale_offset": True,
            "rescale_factor": 0.01,
        },
        {"image_processor_type": "MobileViTImageProcessor", "size": 8, "crop_size": 8},
        {"image_processor_type": "CLIPImageProcessor", "size": 10, "crop_size": 8},
        {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": 9},
            "crop_size": {"height": 8, "width": 8},
        },
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 8}, "crop_pct": 0.8},
    ],
)
def test_pictures_become_the_numbers_that_the_processor_of_the_folder_makes(
    described: dict[str, Any], tmp_path: Path
) -> None:
    folder = vit(tmp_path / "vit", **{"size": {"height": 8, "width": 8}, **described})
    kind = str(described.get("image_processor_type", "ViTImageProcessor")).removesuffix("Fast")
    own = getattr(transformers, f"{kind}Pil").from_pretrained(folder)
    picture = Image.fromarray(RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    expected = own(picture, return_tensors="np")["pixel_values"]
    original = open_source(folder)
    assert original.task is not None, original.remarks
    original.task.check(original.signature)
    prologue = original.task.prologue
    assert prologue is not None
    pixels = original.task.encode([picture])["pixels"].astype(np.float32)
    scale, shift = (np.array(one).reshape(1, -1, 1, 1) for one in (prologue.scale, prologue.shift))
    assert np.abs(pixels * scale + shift - expected).max() < 1e-4


def test_large_pictures_of_convnext_are_warped(tmp_path: Path) -> None:
    config = transformers.ConvNextConfig(hidden_sizes=[4, 4, 4, 4], depths=[1, 1, 1, 1], num_labels=3)
    transformers.ConvNextForImageClassification(config).save_pretrained(tmp_path / "convnext")
    described = {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 384, "crop_pct": 0.875}
    (tmp_path / "convnext" / "preprocessor_config.json").write_text(json.dumps(described))
    original = open_source(tmp_path / "convnext")
    assert original.signature.described() == {"pixels": "uint8 [batch, 3, 384, 384]"}
    assert original.task is not None
    assert original.task.options()["resize"] == [384, 384]


def test_the_network_is_out_of_reach_while_a_folder_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    from exporters.sources.huggingface import _offline

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with _offline():
        assert huggingface_hub.is_offline_mode()
        with pytest.raises(huggingface_hub.errors.OfflineModeIsEnabled):
            huggingface_hub.HfApi().repo_exists("some/model")
    assert not huggingface_hub.is_offline_mode()


def test_weights_from_elsewhere_are_refused(tmp_path: Path) -> None:
    folder = bert(tmp_path / "bert")
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    for name in ("../outside.safetensors", str(tmp_path / "outside.safetensors"), "weights.bin", 3):
        index.write_text(json.dumps({"metadata": {}, "weight_map": {"classifier.bias": name}}))
        with pytest.raises(BadInput, match="no safetensors file of its own"):
            open_source(folder)
    index.write_text("{}")
    with pytest.raises(BadInput, match="no weight_map"):
        open_source(folder)
    edit(folder / "config.json", backbone_config={"use_pretrained_backbone": True})
    with pytest.raises(UsageError, match="fetched from elsewhere"):
        open_source(folder)


@pytest.mark.parametrize("kind", ["gpt2", pytest.param("wav2vec2", marks=pytest.mark.slow)])
def test_other_folders_take_and_give_plain_tensors(kind: str, tmp_path: Path) -> None:
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0
        )
        transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / kind)
    else:
        config = transformers.Wav2Vec2Config(
            vocab_size=20, conv_dim=(8, 8), conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2,
            num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, **TINY,
        )  # fmt: skip
        transformers.Wav2Vec2ForCTC(config).save_pretrained(tmp_path / kind)
    original = open_source(tmp_path / kind)
    assert original.task is None
    assert original.signature.outputs[0].name == "logits"
    sizes = {"batch": 3, "sequence": 7} if kind == "gpt2" else {"batch": 2, "samples": 333}
    inputs = seeded(original.signature, sizes=sizes).inputs
    with OnnxRuntimeRunner(original.write(tmp_path, opset=20), signature=original.signature) as runner:
        assert np.allclose(runner.run(inputs)["logits"], original.answer(inputs)["logits"], atol=1e-4)


def test_code_pickles_and_missing_weights_are_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = bert(tmp_path / "bert")
    weights = folder / "model.safetensors"
    kept = weights.read_bytes()
    edit(folder / "config.json", auto_map={"AutoModel": "modeling.Mine"})
    with pytest.raises(UsageError, match="Python code of its own"):
        open_source(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config))
    weights.unlink()
    with pytest.raises(BadInput, match=r"no model.safetensors"):
        open_source(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UsageError, match="a pickle") as caught:
        open_source(folder)
    assert "save_pretrained" in caught.value.hint
    weights.write_bytes(kept[:100])
    with pytest.raises(BadInput, match="cannot open bert"):
        open_source(folder)
    weights.write_bytes(kept)
    edit(folder / "config.json", architectures=["NoSuchModel"])
    with pytest.raises(UsageError, match="has no model NoSuchModel"):
        open_source(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(BadInput, match="no JSON"):
        open_source(folder)
