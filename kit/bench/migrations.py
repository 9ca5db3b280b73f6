"""Results files of earlier versions, as plain JSON values: what each becomes in the newest version. Nothing is written.

Version 1 lacks fields that have defaults in version 2, and nothing in it has another meaning. Version 2 knows pictures with
labels: one batch size in place of sizes, one accuracy in place of scores.
"""

from __future__ import annotations

from typing import Any

from kit.bundle.migrations import scores_of_accuracy

_BATCH = "batch"


def migrated(data: dict[str, Any]) -> dict[str, Any]:
    """Bring a results file's JSON to the newest version.

    Raises:
        KeyError, TypeError, AttributeError: It is no results file of its version.
    """
    if not isinstance(data.get("schema_version"), int) or data["schema_version"] >= 3:
        return data
    arguments = dict(data["arguments"])
    sizes = arguments.pop("batch_sizes", "")
    arguments |= (
        {"sweep": _BATCH} if sizes == "sweep" else {"points": "; ".join(f"{_BATCH} {n}" for n in sizes.split())}
    )
    return {
        **data,
        "schema_version": 3,
        "arguments": arguments,
        "rows": [_row(row) for row in data["rows"]],
        "controls": [_sized(control) for control in data.get("controls", ())],
    }


def _sized(old: dict[str, Any]) -> dict[str, Any]:
    new = {name: value for name, value in old.items() if name != "batch_size"}
    size = old["batch_size"]
    return {**new, "sizes": {_BATCH: size}, "at": f"{_BATCH} {size:,}"}


def _row(old: dict[str, Any]) -> dict[str, Any]:
    new = _sized(old) | {"samples": old["batch_size"]}
    accuracy = new.pop("accuracy", None)
    if accuracy:
        new["scores"] = scores_of_accuracy(accuracy, is_baseline=old["precision"] == "fp32")
    for before, now in (("accuracy_source", "score_source"), ("correct_images", "right")):
        if before in new:
            new[now] = new.pop(before)
    if latency := new.get("latency"):
        latency = dict(latency)
        latency["samples_per_second"] = latency.pop("images_per_second")
        new["latency"] = latency
    return new
