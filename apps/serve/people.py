"""Questions as people have them: a picture, a text, a row. The bundle's task makes tensors of them, and answers of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import orjson

from apps.serve.batcher import Answer
from apps.serve.model import Model
from apps.serve.refusals import Refused, bad
from kit.samples import seeded
from kit.tasks.base import Task
from kit.tensors import DATATYPES, Tensors

JSON = "application/json"
_ITEMS = "items"
_MOST_ITEMS = 10_000


def encoded(model: Model, body: bytes | bytearray, kind: str) -> list[Tensors]:
    """Return the calls that a body asks for: one, or one for each item if the model takes one at a time.

    A body that is no JSON is one item: a picture for a task that takes bytes, a text for one that takes texts. JSON is
    `{"items": [...]}`, or one item alone.

    Raises:
        Refused: There is nothing to encode.
        BadInput, UsageError: An item is not what the task takes.
    """
    task = _task(model)
    items = _items(task, bytes(body), kind)
    if not items:
        raise bad("there is nothing to predict")
    if len(items) > _MOST_ITEMS:
        raise bad(f"a request may have {_MOST_ITEMS:,} items at most")
    if model.signature.batch is None:
        return [task.encode([item]) for item in items]
    return [task.encode(items)]


def records(model: Model, answers: Sequence[Answer], calls: Sequence[Tensors]) -> list[dict[str, Any]]:
    """Return the answer to each item as plain values."""
    task = _task(model)
    return [
        record
        for answer, inputs in zip(answers, calls, strict=True)
        for record in task.decode(answer.outputs, inputs).records()
    ]


def schema(model: Model) -> dict[str, Any]:
    """Return what the model takes, with requests that can be sent as they are."""
    found: dict[str, Any] = {
        "model_name": model.name,
        "model_version": model.version,
        "variant": model.engine.variant.id,
        "sha256": model.sha256,
        "provider": model.engine.provider.value,
        "task": None if model.task is None else model.task.name,
        "inputs": {spec.name: spec.describe() for spec in model.signature.inputs},
        "outputs": {spec.name: spec.describe() for spec in model.signature.outputs},
        "axes": {name: axis.describe() for name, axis in model.signature.axes.items()},
        "infer": {
            "method": "POST",
            "path": f"/v2/models/{model.name}/infer",
            "headers": {"content-type": JSON},
            "body": infer_example(model),
        },
    }
    example = predict_example(model)
    if example is not None:
        found["predict"] = {
            "method": "POST",
            "path": f"/v1/models/{model.name}/predict",
            "headers": {"content-type": JSON},
            "body": example,
            "takes": takes(model.task),
        }
    return found


def takes(task: Task | None) -> list[str]:
    """Return the kinds of bodies that a task takes beside JSON."""
    kinds = [JSON]
    if getattr(task, "takes_bytes", False):
        kinds += ["image/png", "image/jpeg", "application/octet-stream"]
    if getattr(task, "takes_text", False):
        kinds += ["text/plain"]
    return kinds


def predict_example(model: Model) -> dict[str, Any] | None:
    """Return a body for `predict`; None if the task has no items in JSON."""
    task = model.task
    if task is None:
        return None
    held = model.engine.bundle.items()
    raw = list(held.raw[:1]) if held is not None else task.raw(None, 1)
    if not raw and task.name.startswith("tensors@"):
        return {_ITEMS: [{name: array.tolist() for name, array in _drawn(model).items()}]}
    return {_ITEMS: raw} if raw else None


def infer_example(model: Model) -> dict[str, Any]:
    """Return a body for `infer`, of one sample."""
    drawn = _drawn(model)
    return {
        "inputs": [
            {
                "name": spec.name,
                "datatype": DATATYPES[spec.dtype],
                "shape": list(drawn[spec.name].shape),
                "data": drawn[spec.name].reshape(-1).tolist(),
            }
            for spec in model.signature.inputs
        ]
    }


def _drawn(model: Model) -> Tensors:
    signature = model.signature
    sizes = signature.usual_sizes()
    if signature.batch is not None:
        axis = signature.axes[signature.batch]
        sizes[signature.batch] = max(axis.least, axis.multiple_of, 1)
    return seeded(signature, sizes=sizes).inputs


def _task(model: Model) -> Task:
    if model.task is None:
        said = "the package that knows this model's task is not installed here; infer takes its tensors"
        raise Refused(HTTPStatus.NOT_IMPLEMENTED, said, cause="task")
    return model.task


def _items(task: Task, body: bytes, kind: str) -> list[Any]:
    if kind != JSON and getattr(task, "takes_bytes", False):
        return [body]
    if kind == "text/plain" and getattr(task, "takes_text", False):
        try:
            return [body.decode()]
        except UnicodeDecodeError as error:
            raise bad("the text is not UTF-8") from error
    try:
        plain = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad(f"the request is no JSON: {error}; this model takes {', '.join(takes(task))}") from error
    if isinstance(plain, dict) and _ITEMS in plain:
        found = plain[_ITEMS]
        if not isinstance(found, list):
            raise bad('"items" must be a list')
    else:
        found = plain if isinstance(plain, list) else [plain]
    return [task.item(one) for one in found]
