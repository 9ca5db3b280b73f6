"""Prove models on this machine: a bundle by what travels in it, a ready .onnx file by running it, one model by another."""

from __future__ import annotations

from kit.verify.bundle import FileCheck, OriginalCheck, VariantCheck, Verification, WayIn, verify
from kit.verify.model import ModelCheck, PairCheck, SizeCheck, check_model, compare_models
from kit.verify.promises import judged, prove

__all__ = [
    "FileCheck",
    "ModelCheck",
    "OriginalCheck",
    "PairCheck",
    "SizeCheck",
    "VariantCheck",
    "Verification",
    "WayIn",
    "check_model",
    "compare_models",
    "judged",
    "prove",
    "verify",
]
