"""Verify: a bundle does here what its manifest promises, or says what does not hold."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from kit import bundle as bundles
from kit import parity
from kit.bundle import Bundle
from kit.bundle.records import ParityRecord
from kit.choices import Provider
from kit.runtime.base import RunnerOptions
from kit.verify import verify


def test_a_fresh_bundle_holds_against_pytorch(digits: Bundle) -> None:
    result = verify(digits)
    assert result.ok
    assert result.reference.startswith("PyTorch")
    assert [check.variant for check in result.variants] == ["fp32", "int8-qdq", "int8-dynamic"]
    for check in result.variants:
        assert check.verdict is not None
        assert check.verdict.needed <= check.verdict.tolerance
        assert check.golden_labelled == 256


def test_an_altered_variant_fails_and_the_others_are_still_checked(digits: Bundle) -> None:
    path = digits.path(digits.variant("int8-qdq").artifact)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    result = verify(digits)
    assert not result.ok
    assert [check.file for check in result.files if not check.ok] == [path.name]
    assert [check.variant for check in result.variants if not check.ok] == ["int8-qdq"]


def test_weights_that_changed_with_a_matching_hash_are_still_found(digits: Bundle) -> None:
    """A manifest rewritten to fit wrong weights passes the hashes; the golden logits do not."""
    variant = digits.variant("fp32")
    model = onnx.load_from_string(digits.read(variant.artifact))
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 2)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
    tampered = bundles.publish(digits, ((variant, model.SerializeToString()),), tools={})
    result = verify(tampered)
    assert all(check.ok for check in result.files)
    failed = next(check for check in result.variants if check.variant == "fp32")
    assert not failed.ok
    assert failed.verdict is not None
    assert failed.verdict.needed > failed.verdict.tolerance


def test_without_golden_samples_nothing_is_claimed(digits: Bundle) -> None:
    digits.path(digits.manifest.golden).unlink()
    result = verify(digits)
    assert not result.ok
    assert result.variants == ()


def test_a_bundle_without_variants_is_not_called_fine(digits: Bundle) -> None:
    bare = Bundle(digits.folder, dataclasses.replace(digits.manifest, variants=(), default_variant=None))
    assert not verify(bare).ok


@pytest.mark.usefixtures("no_cuda")
def test_a_provider_that_cannot_run_is_told_apart_from_a_failure(digits: Bundle) -> None:
    result = verify(digits, options=RunnerOptions(provider=Provider.CUDA))
    assert not result.ok
    assert result.only_unavailable
    assert all(check.parity is None for check in result.variants)


def test_parity_counts_not_a_number_as_infinitely_wrong() -> None:
    reference = np.array([[1.0, 2.0]], np.float32)
    broken = np.array([[np.nan, 2.0]], np.float32)
    found = parity.compare(reference, broken)
    assert found.max_abs_error == np.inf
    assert not parity.judge_float(found).passed


def test_a_quantized_variant_is_held_to_what_it_did_when_published() -> None:
    published = ParityRecord(images=100, max_abs_error=1.0, rms_error=0.1, top1_agreement=0.99)
    reference = np.zeros((100, 2), np.float32)
    reference[:, 0] = 1.0
    near = parity.compare(reference, reference + np.float32(0.1))
    far = parity.compare(reference, reference + np.float32(0.2))
    assert parity.judge_quantized(near, published).passed
    assert not parity.judge_quantized(far, published).passed
