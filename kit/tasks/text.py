"""Texts in, classes or vectors out: a tokenizer's JSON travels in the bundle, and the package `tokenizers` reads it.

task = TextEmbedding(tokenizer=Path("tokenizer.json"), pooling="mean", normalize=True, max_tokens=256)
task.encode(["a nice film", "a boring one"])  # {"input_ids": int64 [2, 6], "attention_mask": ...}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kit.errors import UsageError
from kit.tasks.base import Prediction
from kit.tasks.batches import has_rows_first
from kit.tasks.classification import METRICS, SCORES, Classes, Classifier
from kit.tasks.tokens import Texts
from kit.tensors import Signature, Tensors

POOLINGS = ("mean", "cls", "max", "last", "none")


@dataclass(kw_only=True, slots=True, eq=False, repr=False)
class Vectors(Prediction):
    """A vector for each item: `vectors`, float32 `[N, size]`."""

    vectors: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.vectors)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return iter(self.vectors)

    @property
    def similarities(self) -> NDArray[np.float32]:
        """Cosine of each vector to each, float32 `[N, N]`."""
        unit = _scaled(self.vectors)
        return unit @ unit.T

    def _cells(self, most: int) -> list[tuple[str, str]]:  # noqa: ARG002 - there is one line
        return [("vectors", f"{self.vectors.dtype} {list(self.vectors.shape)}")]

    def _count(self) -> int:
        return 1

    def records(self) -> list[dict[str, Any]]:
        """Return the vector of each item."""
        return [{"vector": vector} for vector in self.vectors.tolist()]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the vectors alone: outputs with a vector for each token may have any length."""
        return {"vectors": self.vectors}


class TextClassification(Texts):
    """Texts to classes.

    The arguments are those of Texts and of kit.tasks.classification.Classifier.
    """

    name = "text-classification@1"
    metrics = METRICS

    def __init__(
        self,
        *,
        labels: Sequence[str],
        tokenizer: Path,
        max_tokens: int = 512,
        pad_multiple_of: int = 1,
        pad: str | None = None,
        temperature: float = 1.0,
        abstain_below: float | None = None,
        scores: str = SCORES[0],
    ) -> None:
        super().__init__(tokenizer=tokenizer, max_tokens=max_tokens, pad_multiple_of=pad_multiple_of, pad=pad)
        self._classifier = Classifier(labels, temperature=temperature, abstain_below=abstain_below, scores=scores)
        self.labels = self._classifier.labels
        self.temperature = temperature
        self.abstain_below = abstain_below
        self.scores = scores

    @property
    def output(self) -> str:
        """Name of the output that holds the scores; empty before `check`."""
        return self._classifier.output

    def options(self) -> dict[str, Any]:
        """Return what travels in the manifest."""
        return {"labels": list(self.labels), **super().options(), **self._classifier.options()}

    def check(self, signature: Signature) -> None:
        """Raise UsageError unless the model takes token ids and gives a score for each label."""
        super().check(signature)
        self._classifier.check(signature)

    def decode(self, outputs: Tensors, inputs: Tensors) -> Classes:
        """Return the most probable class of each text."""
        return self._classifier.decode(outputs, inputs)

    def portable(self) -> dict[str, Any]:
        """Return the way in and out in plain values, for another language."""
        return {"kind": "text", "way_in": self.portable_way_in(), "way_out": self._classifier.portable()}

    def _labels_of(self, rows: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.int64] | None:
        return self._classifier.labels_of([row.get("label") for row in rows], name)


class TextEmbedding(Texts):
    """Texts to vectors; the arguments not listed are those of Texts.

    Args:
        pooling: How the vectors of tokens become one: `mean` and `max` over what is no padding, `cls` the first, `last`
            the last token, `none` if the graph gives one vector for each text itself.
        normalize: Scale each vector to length 1.
        output: Name of the output to take; None for the first that fits.
    """

    name = "text-embedding@1"
    metrics = ("cosine",)
    _RANKS: ClassVar[dict[bool, int]] = {True: 2, False: 3}

    def __init__(
        self,
        *,
        tokenizer: Path,
        max_tokens: int = 512,
        pad_multiple_of: int = 1,
        pad: str | None = None,
        pooling: str = "mean",
        normalize: bool = False,
        output: str | None = None,
    ) -> None:
        super().__init__(tokenizer=tokenizer, max_tokens=max_tokens, pad_multiple_of=pad_multiple_of, pad=pad)
        if pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}; there are {', '.join(POOLINGS)}")
        self.pooling = pooling
        self.normalize = normalize
        self.output = output

    def options(self) -> dict[str, Any]:
        """Return what travels in the manifest."""
        given = {"pooling": self.pooling, **super().options()}
        given |= {"normalize": True} if self.normalize else {}
        return given | ({"output": self.output} if self.output is not None else {})

    def check(self, signature: Signature) -> None:
        """Raise UsageError unless the model takes token ids and gives vectors."""
        super().check(signature)
        rank = self._RANKS[self.pooling == "none"]
        fitting = [
            spec.name
            for spec in signature.outputs
            if spec.is_float
            and len(spec.shape) == rank
            and self.output in {None, spec.name}
            and has_rows_first(spec, signature)
            and signature.batch not in spec.shape[1:]
        ]
        if not fitting:
            found = ", ".join(f"{spec.name}: {spec.describe()}" for spec in signature.outputs)
            raise UsageError(f"the pooling {self.pooling!r} needs an output of {rank} axes, found {found}")
        self.output = fitting[0]

    def decode(self, outputs: Tensors, inputs: Tensors) -> Vectors:
        """Return the vector of each text."""
        assert self.output is not None  # `check` found it
        vectors = self._pooled(outputs[self.output].astype(np.float32), inputs)
        return Vectors(vectors=_scaled(vectors) if self.normalize else vectors, outputs=outputs, inputs=inputs)

    def portable(self) -> dict[str, Any]:
        """Return the way in and out in plain values, for another language."""
        way_out = {
            "kind": "vector",
            "output": self.output,
            "pooling": self.pooling,
            "normalize": self.normalize,
            "pad": self._pad_id,
            "own_end": self._own_end,
            "filled_up": self._fixed is not None or self.pad_multiple_of > 1,
        }
        return {"kind": "text", "way_in": self.portable_way_in(), "way_out": way_out}

    def _mask(self, inputs: Tensors) -> NDArray[Any]:
        """Return 1 for tokens and 0 for padding, `[N, tokens]`.

        Padding follows the text: without a mask, what is equal to it within the text, or ends every text, is a token.
        """
        if "attention_mask" in inputs:
            return inputs["attention_mask"]
        ids = inputs["input_ids"]
        if self._fixed is None and self.pad_multiple_of == 1:
            return np.ones_like(ids)  # texts of one length, not filled up
        length = ids.shape[1]
        is_text = ids != self._pad_id
        ends = np.where(is_text.any(axis=1), length - is_text[:, ::-1].argmax(axis=1), 0)
        mask: NDArray[np.bool_] = np.arange(length) < np.minimum(ends + self._own_end, length)[:, np.newaxis]
        return mask

    def _pooled(self, tokens: NDArray[np.float32], inputs: Tensors) -> NDArray[np.float32]:
        if self.pooling == "none":
            return tokens
        if self.pooling == "cls":
            first: NDArray[np.float32] = tokens[:, 0]
            return first
        mask = self._mask(inputs).astype(np.float32)[..., np.newaxis]
        if self.pooling == "last":
            last = mask[..., 0].sum(axis=1).astype(np.int64) - 1
            final: NDArray[np.float32] = tokens[np.arange(len(tokens)), last]
            return final
        if self.pooling == "max":
            highest: NDArray[np.float32] = np.where(mask > 0, tokens, -np.inf).max(axis=1)
            return highest.astype(np.float32)
        mean: NDArray[np.float32] = (tokens * mask).sum(axis=1) / np.maximum(mask.sum(axis=1), 1e-9)
        return mean


def _scaled(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    scaled: NDArray[np.float32] = vectors / np.maximum(
        np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12)
    )
    return scaled
