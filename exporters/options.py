"""What can be asked of the workshop, checked before anything is made. Imports neither torch nor onnx."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kit.choices import CalibrationMethod, Precision, QuantizationScheme, VariantFormat
from kit.errors import UsageError

OPSETS = (18, 19, 20, 21, 22, 23)
DEFAULT_OPSET = 20
STATIC_FORMATS = (VariantFormat.QDQ, VariantFormat.QOPERATOR, VariantFormat.PIXEL)
AUTO = "auto"


def check_fine_tuning(seconds: float | None) -> None:
    """Raise UsageError for a time that is none."""
    if seconds is not None and not 0 < seconds < math.inf:
        raise UsageError(f"fine-tuning takes longer than nothing, found {seconds:g} s", hint="--fine-tune 5m")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to make, and the bar it must meet. What would change nothing is refused.

    Attributes:
        precisions: Any of fp32, fp16, int8 and int4; the model as it came is written in any case, as the baseline.
        quantization: How int8 finds its activation ranges, or `weights` for weights alone; None for static.
        formats: How static int8 is written, one variant each; None for QDQ.
        calibration: How static int8 makes ranges of what its samples showed; None for the whole range.
        calibration_samples: Training samples that those ranges are drawn from; None for 1,024.
        per_channel: Whether int8 weights have a scale for each output; None for what suits the format: yes, but for pixel.
        weight_bits: Of int8 weights, 7 or 8; None for what is usual for the model: 7 if all its layers are dense, else 8.
        exclude_layers: Names of layers that int8 or int4 leaves in float; `("auto",)` for the fewest that meet the bar.
        fine_tune_seconds: Train the weights for so long before int8 or int4 is made of them, for each number of bits; None for
            not at all. For models of torch, with training samples.
        opset: ONNX operator set.
        max_loss: Largest loss against the baseline, in the unit of the metric, 0.003 of top-1 for 0.3 points; None for the
            metric's own bar.
        seed: Of the draw of the calibration samples.
    """

    precisions: tuple[Precision, ...] = (Precision.FP32,)
    quantization: QuantizationScheme | None = None
    formats: tuple[VariantFormat, ...] | None = None
    calibration: CalibrationMethod | None = None
    calibration_samples: int | None = None
    per_channel: bool | None = None
    weight_bits: int | None = None
    exclude_layers: tuple[str, ...] = ()
    fine_tune_seconds: float | None = None
    opset: int = DEFAULT_OPSET
    max_loss: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be made, and what would change nothing."""
        if not self.precisions:
            raise UsageError("precisions must be a tuple of one or more", hint='such as ("fp32", "int8")')
        object.__setattr__(self, "precisions", tuple(Precision.parse(item) for item in self.precisions))
        if self.quantization is not None:
            object.__setattr__(self, "quantization", QuantizationScheme.parse(self.quantization))
        if self.formats is not None:
            parsed = dict.fromkeys(VariantFormat.parse(item) for item in self.formats)
            object.__setattr__(self, "formats", tuple(parsed))
        if self.calibration is not None:
            object.__setattr__(self, "calibration", CalibrationMethod.parse(self.calibration))
        self._check_values()
        self._check_int8()

    def _check_values(self) -> None:
        if self.opset not in OPSETS:
            known = f"{OPSETS[0]} to {OPSETS[-1]}"
            raise UsageError(f"opset {self.opset} is not supported", hint=f"choose one of {known}")
        if self.weight_bits not in {None, 7, 8}:
            raise UsageError(f"int8 weights have 7 or 8 bits, not {self.weight_bits}")
        check_fine_tuning(self.fine_tune_seconds)
        if self.calibration_samples is not None and self.calibration_samples < 1:
            raise UsageError("calibration needs 1 sample or more")
        if self.max_loss is not None and not self.max_loss >= 0:
            raise UsageError(f"the allowed loss must not be negative, found {self.max_loss}")
        if self.max_loss is not None and set(self.precisions) == {Precision.FP32}:
            raise UsageError("an allowed loss changes nothing without --precision fp16, int8 or int4")

    def _check_int8(self) -> None:
        int8_only = {
            "--quantization": self.quantization,
            "--format": self.formats,
            "--calibration": self.calibration,
            "--calibration-size": self.calibration_samples,
            "--per-channel/--per-tensor": self.per_channel,
            "--weight-bits": self.weight_bits,
        }
        given = [flag for flag, value in int8_only.items() if value is not None]
        if given and Precision.INT8 not in self.precisions:
            raise UsageError(f"{given[0]} changes nothing without --precision int8")
        if self.exclude_layers and not {Precision.INT8, Precision.INT4} & set(self.precisions):
            raise UsageError("--exclude-layer changes nothing without --precision int8 or int4")
        if self.fine_tune_seconds is not None and not {Precision.INT8, Precision.INT4} & set(self.precisions):
            raise UsageError("--fine-tune changes nothing without --precision int8 or int4")
        static_only = [flag for flag in given if flag in {"--format", "--calibration", "--calibration-size"}]
        if static_only and self.quantization is QuantizationScheme.DYNAMIC:
            raise UsageError(f"{static_only[0]} changes nothing with --quantization dynamic, which needs no samples")
        if self.quantization is QuantizationScheme.WEIGHTS and given != ["--quantization"]:
            raise UsageError(
                f"{given[-1]} changes nothing with --quantization weights: they have 8 bits, and a scale for each block"
            )
        formats = self.formats or ()
        if any(form not in STATIC_FORMATS for form in formats):
            raise UsageError("a static format must be one of: " + ", ".join(STATIC_FORMATS))
        if VariantFormat.PIXEL in formats and self.exclude_layers:
            raise UsageError(
                "the pixel format is one chain of integer layers: none of them can stay in float",
                hint="use --format qdq with --exclude-layer",
            )
        if AUTO in self.exclude_layers and len(self.exclude_layers) > 1:
            raise UsageError("--exclude-layer auto finds the layers itself", hint="leave the others out")

    @property
    def static_formats(self) -> tuple[VariantFormat, ...]:
        """How static int8 is written; empty for any other."""
        if self.quantization not in {None, QuantizationScheme.STATIC}:
            return ()
        return self.formats or (VariantFormat.QDQ,)

    @property
    def finds_exclusions(self) -> bool:
        """Whether the layers to leave in float are to be found."""
        return self.exclude_layers == (AUTO,)
