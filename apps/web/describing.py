"""What a page must know of a model's task: what people give, what they get, and an example of it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from kit.bundle import Bundle
from kit.samples import SEEDED
from kit.system import plain_json
from kit.tasks.base import Task
from kit.tasks.tokens import TOKENIZER
from kit.tensors import Signature

PICTURE, TEXT, TENSORS = "picture", "text", "tensors"
TOKENIZER_PATH = "model/tokenizer.json"

_WHERE = "It runs in this browser: nothing is sent anywhere."
_FLAT_VALUES = 256
_TOKENIZERS = frozenset({"BPE", "Unigram", "WordPiece"})
_TOKENIZER_MOST_BYTES = 2**28


def describe(bundle: Bundle, task: Task) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return what the page reads of the task, and what it cannot do, in words: then people give it tensors."""
    found: dict[str, Any] | None = getattr(task, "portable", lambda: None)()
    problem = ""
    if found is None and bundle.manifest.task is not None and TENSORS not in bundle.manifest.task.name:
        problem = f"the page does not know the way into {task.name}: people give it tensors"
    if found is not None and found["kind"] == TEXT and (kind := _tokenizer_kind(task)) not in _TOKENIZERS:
        problem = f"the page cannot read a tokenizer of the kind {kind}: people give it tensors"
    if found is None or problem:
        return {"kind": TENSORS, "way_out": {"kind": TENSORS}, "inputs": _inputs(bundle)}, (problem,) if problem else ()
    return found | (_picture(bundle, found) if found["kind"] == PICTURE else _text(bundle, found)), ()


def _picture(bundle: Bundle, found: Mapping[str, Any]) -> dict[str, Any]:
    items, way_in = bundle.items(), found["way_in"]
    step = 1.0 if way_in["dtype"] == "uint8" else 1 / 255 / min(way_in["std"] or (1.0,))
    return {
        "draws": way_in["channels"] == 1,
        "example": _golden_picture(bundle, found) or (items.raw[0] if items and items.raw else None),
        "way_in_tolerance": step,  # a grey level
    }


def _text(bundle: Bundle, found: Mapping[str, Any]) -> dict[str, Any]:
    items = bundle.items()
    return {
        "way_in": {**found["way_in"], "tokenizer": TOKENIZER_PATH},
        "examples": [one for one in (items.raw if items else ()) if isinstance(one, str)],
        "way_in_tolerance": 0.0,
    }


def _golden_picture(bundle: Bundle, task: Mapping[str, Any]) -> str | None:
    """Return the golden sample that the original was surest about as a PNG in base64; None if they hold no pictures."""
    group, way_in = bundle.golden()[0], task["way_in"]
    if way_in["dtype"] != "uint8" or group.source == SEEDED or bundle.signature.batch is None:
        return None
    scores = (group.expected or {})[task["way_out"]["output"]].reshape(bundle.signature.rows(group.inputs), -1)
    ranked = np.sort(scores.astype(np.float64), axis=1)
    surest = int((ranked[:, -1] - ranked[:, -2]).argmax())
    one = bundle.signature.take(group.inputs, slice(surest, surest + 1))[way_in["input"]]
    sizes = [way_in["height"], way_in["width"]]
    if way_in["axis"] is not None:
        sizes.insert(way_in["axis"], way_in["channels"])
    pixels = one.reshape(sizes)
    if way_in["axis"] == 0:
        pixels = np.moveaxis(pixels, 0, 2)
    if way_in["colours"] == "BGR" and way_in["channels"] == 3:
        pixels = pixels[..., ::-1]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels).squeeze()).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _tokenizer_kind(task: Task) -> str:
    said = plain_json.read(task.files[TOKENIZER].read_bytes(), what="tokenizer.json", most_bytes=_TOKENIZER_MOST_BYTES)
    return str(said["model"].get("type") or "BPE")  # old files of BPE have none


def _inputs(bundle: Bundle) -> list[dict[str, Any]]:
    """Describe the inputs of plain tensors, with the first golden sample as an example where it is short."""
    signature, group = bundle.signature, bundle.golden()[0]
    first = signature.take(group.inputs, slice(0, 1)) if signature.batch else group.inputs
    return [
        {
            "name": spec.name,
            "dtype": spec.dtype,
            "described": spec.describe(),
            "example": first[spec.name].tolist() if first[spec.name].size <= _FLAT_VALUES else [],
        }
        for spec in signature.inputs
    ]


def about(task: Mapping[str, Any], signature: Signature) -> str:
    """Say in a sentence what the model does."""
    out = task["way_out"]
    what = {PICTURE: "a picture", TEXT: "a text"}.get(task["kind"], ", ".join(spec.name for spec in signature.inputs))
    if out["kind"] == "classes":
        labels = out["labels"]
        shown = ", ".join(labels) if len(labels) <= 10 else f"{', '.join(labels[:3])} and {len(labels) - 3:,} more"
        return f"Tells of {what} which of {len(labels):,} classes it is: {shown}. {_WHERE}"
    result = "a vector" if out["kind"] == "vector" else ", ".join(spec.name for spec in signature.outputs)
    return f"Makes {result} of {what}. {_WHERE}"
