"""From texts to the ids of their tokens: a tokenizer's JSON travels in the bundle, and the package `tokenizers` reads it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kit.errors import BadInput, BundleInvalid, DatasetInvalid, UsageError
from kit.samples import Samples
from kit.system import packages
from kit.tasks.base import Prologue
from kit.tasks.batches import has_rows_first
from kit.tasks.rows import STDIN, SUFFIXES, Row, rows_of, rows_or_errors
from kit.tensors import Signature, Tensors, TensorSpec

TOKENIZER = "tokenizer"
_IDS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_PADS = ("[PAD]", "<pad>", "<|endoftext|>", "</s>")
_MADE_UP = (
    "The station opens at half past six.",
    "Naïve cafés sell 3,5 % more tea — 你好, wörld! 🙂",
    "it's  a\ttest_of (odd) spacing; CAPITALS, numbers like 1024 and https://example.com",
)
_BUCKETS = (16, 32, 64, 128, 256, 512)


class Texts:
    """The way in that all tasks of texts share.

    Args:
        tokenizer: Path of a tokenizer.json.
        max_tokens: Longer texts are cut; the model's own bound holds in any case.
        pad_multiple_of: Lengths are filled up to a multiple of this.
        pad: Token to fill up with; None for the tokenizer's own, or the first usual one that it has.
    """

    name: str = ""
    metrics: Sequence[str] = ()
    prologue: Prologue | None = None
    takes_text = True

    def __init__(
        self, *, tokenizer: Path, max_tokens: int = 512, pad_multiple_of: int = 1, pad: str | None = None
    ) -> None:
        if max_tokens < 1 or pad_multiple_of < 1:
            raise ValueError(f"texts cannot have {max_tokens} tokens, filled up to multiples of {pad_multiple_of}")
        self.files: Mapping[str, Path] = {TOKENIZER: Path(tokenizer)}
        self.max_tokens = max_tokens
        self.pad_multiple_of = pad_multiple_of
        self.pad = pad
        self._inputs: tuple[TensorSpec, ...] = ()
        self._outputs: tuple[TensorSpec, ...] = ()
        self._longest: int | None = None  # that the model takes
        self._multiple = pad_multiple_of  # and what its axis asks for
        self._fixed: int | None = None
        self._has_batch = True

    @classmethod
    def open(cls, name: str, options: Mapping[str, Any], files: Mapping[str, Path], signature: Signature) -> Self:  # noqa: ARG003 - `check` reads the signature
        """Make it of what a manifest holds."""
        if TOKENIZER not in files:
            raise BundleInvalid(f"the task {name} needs a file {TOKENIZER!r}, and the bundle has none")
        return cls(tokenizer=files[TOKENIZER], **options)

    def options(self) -> dict[str, Any]:
        """Return what travels in the manifest: what is not as usual is left out."""
        given: dict[str, Any] = {"max_tokens": self.max_tokens}
        given |= {"pad_multiple_of": self.pad_multiple_of} if self.pad_multiple_of != 1 else {}
        return given | ({"pad": self.pad} if self.pad is not None else {})

    def check(self, signature: Signature) -> None:
        """Raise UsageError unless the model takes token ids, and nothing that a tokenizer cannot give."""
        for spec in signature.inputs:
            is_ids = spec.name in _IDS and spec.dtype.startswith("int") and len(spec.shape) == 2
            if not is_ids or not has_rows_first(spec, signature) or spec.shape[1] == signature.batch:
                raise UsageError(
                    f"a tokenizer gives {', '.join(_IDS)}, as whole numbers [batch, sequence]; the model takes "
                    f"{spec.name}: {spec.describe()}",
                    hint="export it as plain tensors: --task tensors",
                )
        if "input_ids" not in {spec.name for spec in signature.inputs}:
            raise UsageError("the model takes no input_ids", hint="export it as plain tensors: --task tensors")
        self._inputs, self._outputs = signature.inputs, signature.outputs
        self._has_batch = signature.batch is not None
        sequence = signature.input("input_ids").shape[1]
        if isinstance(sequence, int):
            self._fixed, self._longest = sequence, sequence
        else:
            axis = signature.axes[sequence]
            self._fixed = None
            self._longest = None if axis.most is None else axis.most - axis.most % axis.multiple_of
            self._multiple = math.lcm(self.pad_multiple_of, axis.multiple_of)

    def read(self, argument: str) -> Iterator[tuple[str, Any]]:
        """Give the texts of a file (its lines, or its column `text`), of stdin, or the word itself.

        Raises:
            BadInput: A file has no column `text`.
        """
        if argument != STDIN and Path(argument).suffix.lower() not in SUFFIXES and not Path(argument).is_file():
            yield argument, argument
            return
        for number, row in enumerate(rows_or_errors(argument), start=1):
            if number == 1 and isinstance(row, Mapping) and "text" not in row:
                _text_of(row, argument, number)  # no row would have one
            yield f"{argument}:{number}", _text_or_error(row, argument, number)

    def encode(self, items: Sequence[Any]) -> Tensors:
        """Return token ids for texts, or pairs of texts, filled up to the longest.

        Raises:
            UsageError: An item is no text, or texts that cannot share a call of this model.
        """
        if not items:
            raise UsageError("there is nothing to predict", hint="give one text or more")
        if len(items) > 1 and not self._has_batch:
            raise UsageError("this model takes one text in a call", hint="predict them one by one")
        return self._filled(self._tokenized(items))

    def samples(self, source: Path, signature: Signature) -> tuple[Samples, ...]:
        """Read texts, with a column `label` if they have labels, in groups of about one length.

        Raises:
            DatasetInvalid: It holds something else, or labels that the model does not have.
        """
        self.check(signature)
        try:
            rows = list(rows_of(source))
            texts = [_text_of(row, source.name, number) for number, row in enumerate(rows, start=1)]
        except BadInput as error:
            raise DatasetInvalid(str(error), hint=error.hint) from error
        if not texts:
            raise DatasetInvalid(f"{source.name} holds no texts")
        labels = self._labels_of(rows, source.name)
        tokens = self._tokenized(texts)
        groups = []
        for places in self._grouped([len(one.ids) for one in tokens]):
            own = [tokens[place] for place in places]
            inputs = self._filled(own)
            weights = self._weights([len(one.ids) for one in own], inputs["input_ids"].shape[1])
            targets = None if labels is None else {"labels": labels[places]}
            groups.append(Samples(inputs=inputs, targets=targets, weights=weights, source=source.name))
        return tuple(groups)

    def raw(self, source: Path | None, most: int) -> list[Any]:
        """Return the first texts; without a data set, sentences written for this, which say nothing of anybody."""
        if source is None:
            return list(_MADE_UP[:most])
        rows = enumerate(itertools.islice(rows_of(source), most), start=1)
        return [_text_of(row, source.name, number) for number, row in rows]

    def item(self, raw: Any) -> Any:
        """Return the text, or the pair of texts."""
        return tuple(raw) if isinstance(raw, list) else raw

    def snippet(self, path: str) -> str:
        """Return the lines that run a variant with ONNX Runtime and tokenizers alone."""
        filled = {
            "input_ids": "encoded.ids",
            "attention_mask": "encoded.attention_mask",
            "token_type_ids": "encoded.type_ids",
            "position_ids": "range(len(encoded.ids))",
        }
        given = ", ".join(f'"{one.name}": np.array([{filled[one.name]}], np.{one.dtype})' for one in self._inputs)
        return (
            "import numpy as np\nimport onnxruntime\nfrom tokenizers import Tokenizer\n\n"
            f'tokenizer = Tokenizer.from_file("{self.files[TOKENIZER].name}")\n'
            f'session = onnxruntime.InferenceSession("{path}")\n'
            'encoded = tokenizer.encode("a text")\n'
            f"outputs = session.run(None, {{{given}}})\n"
        )

    def _labels_of(self, rows: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.int64] | None:  # noqa: ARG002 - classifiers read them
        """Return the labels of rows as numbers; None if they have none."""
        return None

    def _grouped(self, lengths: Sequence[int]) -> list[list[int]]:
        if not self._has_batch:
            return [[place] for place in range(len(lengths))]
        return _by_length(lengths, exactly=not self._can_fill_up)

    @property
    def _can_fill_up(self) -> bool:
        """Whether the model tells padding from tokens, or always has as many."""
        return self._fixed is not None or any(spec.name == "attention_mask" for spec in self._inputs)

    @property
    def padding(self) -> tuple[str, dict[str, float]] | None:
        """The axis along which texts may be filled up, and with what, by input; None if they may not be."""
        if self._fixed is not None or not self._can_fill_up:
            return None
        ids = next(spec for spec in self._inputs if spec.name == "input_ids")
        axis = ids.shape[1]
        known = {"input_ids": self._pad_id, "attention_mask": 0, "token_type_ids": 0}
        if not isinstance(axis, str) or any(axis in spec.shape and spec.name not in known for spec in self._inputs):
            return None
        return axis, {spec.name: float(known[spec.name]) for spec in self._inputs if axis in spec.shape}

    def portable_way_in(self) -> dict[str, Any]:
        """Return how a text becomes tensors, in plain values, for another language that reads the tokenizer's JSON.

        `tail` is how many special tokens end a text: they stay when it is cut.
        """
        ends = reversed(self._tokenizer.encode("a").special_tokens_mask)
        return {
            "inputs": [{"name": spec.name, "dtype": spec.dtype} for spec in self._inputs],
            "pad": self._pad_id,
            "fixed": self._fixed,
            "multiple": self._multiple,
            "most": min(self.max_tokens, self._longest or self.max_tokens),
            "tail": sum(1 for _ in itertools.takewhile(bool, ends)),
        }

    def _weights(self, lengths: Sequence[int], filled: int) -> Tensors | None:
        """Return what counts of outputs that have a value for each token: not the padding."""
        mask = (np.arange(filled) < np.array(lengths)[:, np.newaxis]).astype(np.uint8)
        if mask.all():
            return None
        sequence = next(spec for spec in self._inputs if spec.name == "input_ids").shape[1]
        # Of a fixed length, an output [batch, 128] may be 128 classes as well.
        least = 3 if isinstance(sequence, int) else 2
        named = {
            spec.name: mask.reshape(*mask.shape, *[1] * (len(spec.shape) - 2))
            for spec in self._outputs
            if spec.shape[1:2] == (sequence,) and len(spec.shape) >= least
        }
        return named or None

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizers: Any = packages.needed(
            "tokenizers", distribution="tokenizers", purpose="reading texts", extra="text"
        )
        path = self.files[TOKENIZER]
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exceptions
            raise BundleInvalid(f"{path.name} is no tokenizer.json: {error}") from error
        self._own_padding = tokenizer.padding or {}
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def _tokenized(self, items: Sequence[Any]) -> list[Any]:
        texts = [_checked(item) for item in items]
        tokenizer = self._tokenizer
        most = min(self.max_tokens, self._longest or self.max_tokens)
        tokenizer.enable_truncation(max_length=most)
        encoded: list[Any] = tokenizer.encode_batch(texts)
        empty = next((place for place, one in enumerate(encoded) if not one.ids), None)
        if empty is not None:
            raise BadInput(f"text {empty + 1} has no tokens", hint="leave empty texts out")
        return encoded

    def _filled(self, encoded: Sequence[Any]) -> dict[str, NDArray[Any]]:
        if not self._inputs:
            raise UsageError("the task does not know its model yet", hint="call check(signature) first")
        counts = {len(one.ids) for one in encoded}
        if len(counts) > 1 and not self._can_fill_up:
            raise UsageError(
                "the model has no attention_mask: texts of different lengths cannot share a call",
                hint="predict them one by one",
            )
        longest = max(counts)
        length = self._fixed or math.ceil(longest / self._multiple) * self._multiple
        if self._longest is not None:
            length = min(length, self._longest)
        shape = (len(encoded), length)
        filled = {
            "input_ids": np.full(shape, self._pad_id, np.int64),
            "attention_mask": np.zeros(shape, np.int64),
            "token_type_ids": np.zeros(shape, np.int64),
            "position_ids": np.broadcast_to(np.arange(length), shape),
        }
        for row, one in enumerate(encoded):
            filled["input_ids"][row, : len(one.ids)] = one.ids
            filled["attention_mask"][row, : len(one.ids)] = one.attention_mask
            filled["token_type_ids"][row, : len(one.ids)] = one.type_ids
        return {spec.name: np.ascontiguousarray(filled[spec.name], spec.dtype) for spec in self._inputs}

    @cached_property
    def _own_end(self) -> int:
        """How many tokens equal to the padding the tokenizer itself puts at the end of every text."""
        encoded = self._tokenizer.encode("a")
        ids = list(zip(encoded.ids, encoded.special_tokens_mask, strict=True))
        return sum(1 for _ in itertools.takewhile(lambda one: one == (self._pad_id, 1), reversed(ids)))

    @cached_property
    def _pad_id(self) -> int:
        tokenizer = self._tokenizer
        if self.pad is not None:
            found = tokenizer.token_to_id(self.pad)
            if found is None:
                raise BundleInvalid(f"the tokenizer has no token {self.pad!r} to fill up with")
            return int(found)
        if "pad_id" in self._own_padding:
            return int(self._own_padding["pad_id"])
        usual = (tokenizer.token_to_id(token) for token in _PADS)
        return next((int(one) for one in usual if one is not None), 0)


def _text_or_error(row: Row, name: str, number: int) -> Any:
    try:
        return row if isinstance(row, BadInput) else _text_of(row, name, number)
    except BadInput as error:
        return error


def _text_of(row: Mapping[str, Any], where: str, number: int) -> Any:
    """Return the text of a row, or the pair of texts if it has a column `pair`."""
    if "text" not in row:
        raise BadInput(f"{where} has no column 'text'; it has {', '.join(map(str, row))}", hint="rename the column")
    if row["text"] is None:
        raise BadInput(f"{where}, row {number}: the text is missing", hint="fill it in, or leave the row out")
    return (str(row["text"]), str(row["pair"])) if row.get("pair") else str(row["text"])


def _checked(item: Any) -> Any:
    if isinstance(item, str):
        return _whole(item)
    if isinstance(item, tuple | list) and len(item) == 2 and all(isinstance(one, str) for one in item):
        return tuple(map(_whole, item))
    raise UsageError(f"cannot read a text from {type(item).__name__}", hint="give a string, or a pair of strings")


def _whole(text: str) -> str:
    """Return a text; one with half of a pair of surrogates, as JSON may have, is none."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadInput("the text holds half of a character", hint="write it as UTF-8") from error
    return text


def _by_length(lengths: Sequence[int], *, exactly: bool = False) -> list[list[int]]:
    """Return the places of texts in groups of about one length, or exactly one, the order kept within each."""
    groups: dict[int, list[int]] = {}
    for place, length in enumerate(lengths):
        bucket = length if exactly else next((one for one in _BUCKETS if length <= one), max(lengths))
        groups.setdefault(bucket, []).append(place)
    return [groups[bucket] for bucket in sorted(groups)]
