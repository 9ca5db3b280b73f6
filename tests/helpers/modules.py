"""Small torch modules of every kind, and what they take and give."""

from __future__ import annotations

import torch
from torch import nn

from kit.tensors import Axis, Signature, TensorSpec


class Duo(nn.Module):
    """Words and numbers in, scores and a vector for each word out."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.numbers = nn.Linear(3, 6)
        self.scores = nn.Linear(6, 4)

    def forward(self, ids: torch.Tensor, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        vectors = self.words(ids) + self.numbers(numbers).unsqueeze(1)
        return {"scores": self.scores(vectors.mean(dim=1)), "vectors": torch.tanh(vectors)}


def duo_signature() -> Signature:
    """What Duo takes and gives."""
    return Signature(
        inputs=(
            TensorSpec(name="ids", dtype="int64", shape=("batch", "sequence"), below=11),
            TensorSpec(name="numbers", dtype="float32", shape=("batch", 3)),
        ),
        outputs=(
            TensorSpec(name="scores", dtype="float32", shape=("batch", 4)),
            TensorSpec(name="vectors", dtype="float32", shape=("batch", "sequence", 6)),
        ),
        axes={"batch": Axis(typical=(1, 8)), "sequence": Axis(most=64, typical=(5, 16))},
    )


class Conv(nn.Module):
    """A small network of grey pictures whose first layer is not dense: three scores."""

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
