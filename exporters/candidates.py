"""What can be made of a model: a recipe for each variant that was asked for, by the id it will have.

for recipe in recipes(options):
    if not recipe.format.refusal(source.model):
        candidate = recipe.make(source)  # files in a folder of its own
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from exporters import staging
from exporters.formats.base import Format, Source, refusal_of_quantized
from exporters.formats.counting import count_arithmetic
from exporters.formats.float16 import Float16
from exporters.formats.int8 import DynamicInt8, StaticInt8
from exporters.formats.pixel import Pixel
from exporters.formats.weights import WeightOnly
from exporters.options import ExportOptions
from exporters.staging import Settled
from kit.bundle import Bundle, graph_file
from kit.bundle.manifest import Quantization, Variant
from kit.choices import CalibrationMethod, Precision, QuantizationScheme, VariantFormat
from kit.errors import UsageError

_INT8_WEIGHTS = "int8-weights"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model that is to be published: its files wait in a folder, under the names they will have."""

    id: str
    files: Settled
    precision: Precision
    format: VariantFormat
    quantization: Quantization | None = None

    def discard(self) -> None:
        """Remove its files."""
        shutil.rmtree(self.files.folder, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class VariantRecipe:
    """How to make one variant; `exclude` names the layers that the options leave in float."""

    id: str
    format: Format
    exclude: tuple[str, ...] = ()

    def make(self, source: Source, exclude: tuple[str, ...] | None = None) -> Candidate:
        """Make the candidate, with other layers left in float than the options said if `exclude` is given.

        Raises:
            UsageError: It cannot be made of this model, or lacks data.
            GateFailed: A layer was skipped, or the converter failed.
        """
        if reason := self.format.refusal(source.model):
            hint = "choose another --precision or --format"
            if refusal_of_quantized(source.model):
                hint = "it is left as it is: without --precision it is published as it came"
            raise UsageError(f"{self.id} cannot be made of this model: {reason}", hint=hint)
        folder = Path(tempfile.mkdtemp(prefix=f"{self.id}-", dir=source.folder))
        target = folder / "made.onnx"
        try:
            record = self.format.make(source, self.exclude if exclude is None else exclude, target)
            if record is not None:
                done, total = count_arithmetic(source.model, staging.read(target), source.signature)
                record = dataclasses.replace(
                    record, macs_quantized=done, macs_total=total, fine_tuned=source.is_fine_tuned
                )
            files = staging.settle(target, self.id)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return Candidate(
            id=self.id,
            files=files,
            precision=self.format.precision,
            format=self.format.form,
            quantization=record,
        )


def baseline(path: Path) -> Candidate:
    """Return the candidate that all others are compared with: the model as it came, in a folder of its own."""
    looked = graph_file.look(path)
    precision, form = looked.precision, looked.format
    name = f"{precision}-{form}"
    if form is VariantFormat.WEIGHT_ONLY:
        name = _INT8_WEIGHTS if precision is Precision.INT8 else str(precision)
    elif form is VariantFormat.FLOAT:
        name = str(precision)
    return Candidate(id=name, files=staging.settle(path, name), precision=precision, format=form)


def published(bundle: Bundle, variant: Variant) -> Candidate:
    """Return a variant of a bundle as a candidate; its files stay where they are."""
    return Candidate(
        id=variant.id,
        files=Settled(folder=bundle.folder, graph=variant.graph, data=variant.data),
        precision=variant.precision,
        format=variant.format,
        quantization=variant.quantization,
    )


def recipes(options: ExportOptions) -> tuple[VariantRecipe, ...]:
    """Return what was asked for besides the baseline, in the order fp16, int8, int4."""
    exclude = () if options.finds_exclusions else options.exclude_layers
    found = []
    if Precision.FP16 in options.precisions:
        found.append(VariantRecipe(id="fp16", format=Float16()))
    if Precision.INT8 in options.precisions:
        found += [_static(form, options, exclude) for form in options.static_formats]
        if options.quantization is QuantizationScheme.DYNAMIC:
            dynamic = DynamicInt8(per_channel=options.per_channel is not False, weight_bits=options.weight_bits)
            name = _id("int8-dynamic", dynamic, usual=True)
            found.append(VariantRecipe(id=name, format=dynamic, exclude=exclude))
        if options.quantization is QuantizationScheme.WEIGHTS:
            found.append(VariantRecipe(id=_INT8_WEIGHTS, format=WeightOnly(bits=8), exclude=exclude))
    if Precision.INT4 in options.precisions:
        found.append(VariantRecipe(id="int4", format=WeightOnly(bits=4), exclude=exclude))
    return tuple(found)


def _static(form: VariantFormat, options: ExportOptions, exclude: tuple[str, ...]) -> VariantRecipe:
    usual = form is not VariantFormat.PIXEL
    per_channel = usual if options.per_channel is None else options.per_channel
    made = (Pixel if form is VariantFormat.PIXEL else StaticInt8)(
        form=form,
        per_channel=per_channel,
        weight_bits=options.weight_bits,
        method=options.calibration or CalibrationMethod.MINMAX,
        samples=options.calibration_samples,
        seed=options.seed,
    )
    return VariantRecipe(id=_id(f"int8-{form}", made, usual=usual), format=made, exclude=exclude)


def _id(base: str, made: StaticInt8 | DynamicInt8, *, usual: bool) -> str:
    if made.per_channel != usual:
        base = f"{base}-per-channel" if made.per_channel else f"{base}-per-tensor"
    return base if made.weight_bits is None else f"{base}-{made.weight_bits}-bit"
