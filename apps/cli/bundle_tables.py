"""What bundles and ready models are, as tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from apps.cli import figures
from apps.cli.lines import say
from apps.cli.render import stdout
from apps.cli.tables import Rows, pairs
from kit.bundle import Bundle, Packed
from kit.bundle.lookup import came_with_kit
from kit.bundle.manifest import Manifest, Variant
from kit.lab import records
from kit.ready import ReadyModel
from kit.report.format import NONE, about, score, size
from kit.system.wording import counted, times
from kit.tensors import Signature, TensorSpec

_MANY = 12  # labels, and other values of an option, that are shown


def bundle_table(bundles: Mapping[str, Bundle | Packed | Exception]) -> None:
    """Print the bundles there are, one row each; an unreadable one says why."""
    console = stdout()
    rows = Rows(
        headers=("bundle", "task", "variants", "score", "size", "where"),
        left=("bundle", "task", "variants", "where"),
        wraps=("variants",),
        spare=("size", "where"),
        needed=("task",),
    )
    broken = []
    for name, found in bundles.items():
        if isinstance(found, Exception):
            broken.append(Text.assemble((f"{name} is broken:", "red"), f" {found}"))
            continue
        manifest = found.manifest
        ids = ", ".join(variant.id for variant in manifest.variants) or "none yet"
        rows.add(
            name,
            _task_name(manifest),
            ids,
            _best(manifest),
            size(_bytes(manifest)),
            _where(found),
        )
    if rows.rows:
        rows.show(console)
    for line in broken:
        say(console, line)


def _where(found: Bundle | Packed) -> str:
    return "came with kit" if isinstance(found, Bundle) and came_with_kit(found) else str(found.origin)


def _best(manifest: Manifest) -> str:
    best = next((one for variant in manifest.variants if (one := figures.main_score(variant))), None)
    return NONE if best is None else f"{score(best)} {best.metric}"


def _bytes(manifest: Manifest) -> int:
    return sum(ref.size_bytes for ref in set(manifest.files()))


def _task_name(manifest: Manifest) -> str:
    return manifest.task.name.split("@")[0] if manifest.task else "tensors"


def bundle_info(bundle: Bundle) -> None:
    """Print everything a stranger needs to use a bundle or a ready model."""
    manifest, console = bundle.manifest, stdout()
    is_ready = isinstance(bundle, ReadyModel)
    rows = [("model" if is_ready else "bundle", f"{manifest.name}  ({bundle.origin})")]
    rows += _tensors(bundle.signature)
    rows += _task(manifest)
    if manifest.original is not None and not is_ready:
        rows.append(("made of", f"{manifest.original.kind} {manifest.original.name}"))
    rows += _training(bundle)
    rows.append(("samples", _samples(bundle)))
    if manifest.attachments or bundle.inline:
        rows.append(("attached", ", ".join(dict.fromkeys((*manifest.attachments, *bundle.inline)))))
    if manifest.tools:
        rows.append(("made with", ", ".join(f"{name} {version}" for name, version in manifest.tools.items())))
    if unknown := _unknown(bundle):
        rows.append(("not known", unknown))
    pairs(console, rows)
    _variants(console, bundle)


def _tensors(signature: Signature) -> list[tuple[str, str]]:
    rows = []
    for name, specs in (("takes", signature.inputs), ("gives", signature.outputs)):
        rows += [(name if number == 0 else "", _tensor(spec)) for number, spec in enumerate(specs)]
    axes = [_axis(signature, name) for name in signature.axes]
    rows += [("axes" if number == 0 else "", text) for number, text in enumerate(axes)]
    if not signature.dynamic:
        rows.append(("axes", "none: all sizes are fixed"))
    if signature.batch is None:
        rows.append(("", "no batch axis: one call answers one sample"))
    return rows


def _tensor(spec: TensorSpec) -> str:
    below = f", values below {spec.below:,}" if spec.below is not None else ""
    varies = ", its size depends on the values" if spec.varies else ""
    return f"{spec.name}: {spec.describe()}{below}{varies}"


def _axis(signature: Signature, name: str) -> str:
    axis = signature.axes[name]
    typical = f"; usually {', '.join(map(str, axis.typical))}" if axis.typical else ""
    batch = "; samples do not depend on each other" if name == signature.batch else ""
    return f"{name}: {axis.describe()}{typical}{batch}"


def _task(manifest: Manifest) -> list[tuple[str, str]]:
    if manifest.task is None:
        return [("task", "tensors in, tensors out")]
    rows = [("task", manifest.task.name)]
    rows += [
        ("", f"{name}: {_short(value)}")
        for name, value in manifest.task.options.items()
        if value not in (None, [], {}, "")
    ]
    rows += [("", f"{role}: {ref.file}") for role, ref in manifest.task.files.items()]
    return rows


def _training(bundle: Bundle) -> list[tuple[str, str]]:
    rows = []
    if (training := records.training_record(bundle)) is not None:
        held_out = "on all its samples"
        if training.validation is not None:
            held_out = f"{score(training.validation)} on validation"
        kept = f"epoch {training.best_epoch} of {training.epochs_run}, {held_out}"
        rows.append(("trained", f"on {training.dataset}, seed {training.seed}: {kept}"))
    if (origin := records.origin_of(bundle)) is not None:
        gains = ", ".join(f"{times(one.speedup)} at batch {one.batch_size}" for one in origin.speedups)
        left = "-".join(map(str, origin.units_left))
        rows.append(("compressed", f"from {origin.bundle} ({origin.architecture}) to {left} units: {gains} in fp32"))
    return rows


def _short(value: Any) -> str:
    if isinstance(value, list):
        shown = ", ".join(map(_short, value[:_MANY]))
        return shown if len(value) <= _MANY else f"{shown}, ... ({len(value)} in all)"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _samples(bundle: Bundle) -> str:
    golden = bundle.manifest.golden
    if isinstance(bundle, ReadyModel):
        return golden.source or f"none: no inputs were found that it accepts ({bundle.problem})"
    count = counted(golden.samples, "golden sample") if golden.samples else "golden samples"
    items = "; raw items that prove the way in travel with them" if golden.items else ""
    return f"{count}: {golden.source or 'source unknown'}{items}"


def _unknown(bundle: Bundle) -> str:
    manifest = bundle.manifest
    unknown = [] if manifest.task else ["what it is for"]
    if manifest.variants and not any(variant.scores for variant in manifest.variants):
        unknown.append("how right it is")
    if isinstance(bundle, ReadyModel):
        if bundle.signature.dynamic:
            unknown.append("the bounds of its axes")
        unknown.append("what it was made of")
    return ", ".join(unknown)


def _variants(console: Console, bundle: Bundle) -> None:
    variants = bundle.variants
    if not variants:
        say(console, f"\nno variants yet: kit export {bundle.name}")
        return
    scores = [figures.main_score(variant) for variant in variants]
    rows = Rows(
        headers=(
            "variant",
            "size",
            "opset",
            "needs",
            "layers",
            "rel err",
            figures.header(scores, "test"),
            "loss [95 %]",
        ),
        left=("variant", "needs", "layers"),
        wraps=("needs", "layers"),
        spare=("opset", "rel err"),
        needed=("size",),
    )
    for variant, found in zip(variants, scores, strict=True):
        default = " (default)" if variant.id == bundle.manifest.default and len(variants) > 1 else ""
        rows.add(
            variant.id + default,
            size(variant.size_bytes),
            str(variant.needs.opset),
            _needs(variant),
            figures.layers(variant.quantization),
            _worst(variant),
            "" if found is None else score(found),
            "" if found is None or found.baseline is None else figures.loss(found),
        )
    rows.show(console)
    for variant in variants:
        for said in variant.remarks:
            say(console, f"{variant.id}: {said}")
    for line in dict.fromkeys(about(one) for one in scores if one is not None):
        say(console, line)


def _needs(variant: Variant) -> str:
    operators = " ".join(variant.needs.domains) or "portable ONNX"
    oldest = f"onnxruntime {variant.needs.onnxruntime}+, " if variant.needs.onnxruntime else ""
    return f"{oldest}{operators}"


def _worst(variant: Variant) -> str:
    """Return the error of the output that is furthest from the original, on the golden samples."""
    errors = [one.max_rel_error for one in variant.fidelity if one.max_rel_error is not None]
    return f"{max(errors):.2g}" if errors else ""
