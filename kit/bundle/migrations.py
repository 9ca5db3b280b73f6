"""Manifests of earlier versions, as plain JSON values: what each becomes in the next version. Nothing is written.

Version 1 lacks formats that version 2 knows, and nothing else. Version 2 knows one task, pictures with labels, and holds the
training record; version 3 has named tensors, any task, and records of the lab as files of their own.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

_ARCHITECTURE = re.compile(r"(mlp|cnn)(-\d+)+(-crop-\d+)?")


@dataclass
class Migrated:
    """A manifest's JSON in the newest version, and by role the bytes of what stood in it and is its own file now."""

    data: dict[str, Any]
    attachments: dict[str, bytes] = field(default_factory=dict)


def migrated(data: dict[str, Any]) -> Migrated:
    """Bring a manifest's JSON to the newest version.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: It is no manifest of its version.
    """
    return Migrated(data) if data["schema_version"] >= 3 else _to_3(data)


def _to_3(old: dict[str, Any]) -> Migrated:
    spec = old["spec"]
    variants = [_variant(one, spec["output"]["name"]) for one in old.get("variants", ())]
    ids = [one["id"] for one in variants]
    floats = [one["id"] for one in variants if one["precision"] == "fp32"]
    samples = next((one["fidelity"][0]["samples"] for one in variants), 0)
    new = {
        "schema_version": 3,
        "name": spec["name"],
        "signature": _signature(spec),
        "task": {"name": f"{spec.get('task', 'image-classification')}@1", "options": _options(spec)},
        "original": _original(spec, old.get("weights")),
        "golden": {"file": old["golden"], "samples": samples, "source": ""},
        "tools": old["tools"],
        "baseline": next(iter(floats or ids), None),
        "default": old.get("default_variant"),
        "variants": variants,
        "attachments": {"card": old["card"]} if old.get("card") else {},
    }
    records = {role: old[role] for role in ("training", "origin") if old.get(role)}
    return Migrated(new, {role: json.dumps(record, indent=1).encode() for role, record in records.items()})


def _signature(spec: dict[str, Any]) -> dict[str, Any]:
    def tensor(one: dict[str, Any]) -> dict[str, Any]:
        return {"name": one["name"], "dtype": one["dtype"], "shape": ["batch", *one["shape"]]}

    return {
        "inputs": [tensor(spec["input"])],
        "outputs": [tensor(spec["output"])],
        "axes": {"batch": {"typical": [1, 64]}},
        "batch": "batch",
    }


def _options(spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "labels": spec["labels"],
        "pipeline": spec["pipeline"],
        "mean": [spec["normalization"]["mean"]],
        "std": [spec["normalization"]["std"]],
        "temperature": spec.get("temperature", 1.0),
        "abstain_below": spec.get("abstain_below"),
    }


def _original(spec: dict[str, Any], weights: Any) -> dict[str, Any]:
    is_known = _ARCHITECTURE.fullmatch(spec["architecture"]) is not None
    return {"kind": "architecture" if is_known else "module", "name": spec["architecture"], "weights": weights}


def _variant(old: dict[str, Any], output: str) -> dict[str, Any]:
    parity = old["parity"]
    fidelity = {
        "output": output,
        "samples": parity["images"],
        "max_abs_error": parity["max_abs_error"],
        "rms_error": parity["rms_error"],
        "agreement": parity["top1_agreement"],
    }
    counted = [one for one in (old.get("validation"), old.get("accuracy")) if one]
    is_baseline = old["precision"] == "fp32"
    return {
        "id": old["id"],
        "precision": old["precision"],
        "format": old["format"],
        "graph": old["artifact"],
        "needs": {
            "opset": old["opset"],
            "ir_version": old["ir_version"],
            "onnxruntime": old["min_onnxruntime"],
            "domains": old["domains"],
        },
        "fidelity": [fidelity],
        "scores": [score for one in counted for score in scores_of_accuracy(one, is_baseline=is_baseline)],
        "quantization": old.get("quantization"),
    }


def scores_of_accuracy(old: dict[str, Any], *, is_baseline: bool) -> list[dict[str, Any]]:
    """Return the scores that stand for a count of right answers: of top-1, and of agreement with the baseline."""
    where = {"dataset": old["dataset"], "split": old["split"], "samples": old["images"], "unit": "%"}
    worse, improved = old.get("flips_to_wrong", 0), old.get("flips_to_right", 0)
    top1 = {"metric": "top-1", "value": old["correct"] / old["images"], **where}
    if is_baseline:
        return [top1]
    top1 |= {
        "baseline": (old["correct"] + worse - improved) / old["images"],
        "worse": worse,
        "improved": improved,
    }
    agreeing = old.get("agreeing")
    return [top1] if agreeing is None else [top1, {"metric": "agreement", "value": agreeing / old["images"], **where}]
