"""Ranges of activations that make the least squared error, where some values lie far out and hardly any do.

A value inside a range is rounded to one of 256 levels, which costs a twelfth of a step's square on average; one outside it
becomes the range's edge. Which range costs least is looked up in a histogram of what the samples showed (Sung, Shin & Hwang
2015, "Resiliency of deep neural networks under quantization"; Banner et al. 2019, "Post training 4-bit quantization of
convolutional networks for rapid-deployment", split the error like this).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.choices import CalibrationMethod

_STEPS = 255
_EDGES = 256  # that are tried on each side of 0

Floats = NDArray[np.float64]


def wanted(
    method: CalibrationMethod, model: Path, reader: Any, kinds: list[str], folder: Path, *, is_large: bool
) -> dict[str, Any]:
    """Return what tells ONNX Runtime's quantizer how to find ranges: a method of its own, or a file of ranges found here.

    Args:
        method: How they follow from what the samples show.
        model: The float model's file.
        reader: Of samples; see exporters.formats.calibration.
        kinds: Operators whose inputs and outputs have a range.
        folder: Where to write.
        is_large: Whether weights lie beside the graph.
    """
    from onnxruntime.quantization import CalibrationMethod as Methods
    from onnxruntime.quantization import calibrate

    own = {
        CalibrationMethod.MINMAX: Methods.MinMax,
        CalibrationMethod.ENTROPY: Methods.Entropy,
        CalibrationMethod.PERCENTILE: Methods.Percentile,
    }
    if method in own:
        return {"calibrate_method": own[method]}
    calibrator = calibrate.create_calibrator(
        model,
        kinds,
        augmented_model_path=str(folder / "augmented.onnx"),
        calibrate_method=Methods.Percentile,  # for its histograms alone
        use_external_data_format=is_large,
        extra_options={"symmetric": False},
    )
    if reader.is_strided:
        for start in range(len(reader)):
            reader.set_range(start, start + 1)
            calibrator.collect_data(reader)
    else:
        calibrator.collect_data(reader)
    found = {
        name: tuple(np.array(edge, low.dtype) for edge in least_error(counts, edges, float(low), float(high)))
        for name, (counts, edges, low, high, _) in calibrator.collector.get_histogram_dict().items()
    }
    path = folder / "ranges.json"
    calibrate.save_tensors_data(calibrate.TensorsData(Methods.MinMax, found), path)
    return {"calibrate_method": Methods.MinMax, "calibration_cache_path": path}


def least_error(counts: NDArray[Any], edges: NDArray[Any], low: float, high: float) -> tuple[float, float]:
    """Return the range, 0 in it, that costs least when its values are rounded to 8 bits.

    Args:
        counts: Of each bin.
        edges: Of the bins, all of one width; one more than there are bins.
        low: The least value of all.
        high: The largest.
    """
    values = (edges[:-1].astype(np.float64) + edges[1:]) / 2
    number = counts.astype(np.float64)
    lows, below, cut_low = _cut(-values, number, -min(low, 0.0))
    highs, above, cut_high = _cut(values, number, max(high, 0.0))
    # What is 0, as much is behind a ReLU, is 0 in any range.
    rounded = number[np.abs(values) > edges[1] - edges[0]].sum()
    inside = np.maximum(rounded - below[:, None] - above, 0)
    costs = ((highs + lows[:, None]) / _STEPS) ** 2 / 12 * inside + cut_low[:, None] + cut_high
    one, other = np.unravel_index(costs.argmin(), costs.shape)
    return 0.0 - float(lows[one]), float(highs[other])


def _cut(values: Floats, number: Floats, far: float) -> tuple[Floats, Floats, Floats]:
    """Return the edges on one side of 0 that are tried, how many values lie beyond each, and their squared error."""
    tried = np.linspace(far, 0, _EDGES, endpoint=False) if far else np.zeros(1)
    order = np.argsort(values)
    values, number = values[order], number[order]
    # Sums over all from each bin on, a 0 behind the last: what is beyond an edge follows from where it would stand.
    zeroth, first, second = (np.append(np.cumsum((number * values**power)[::-1])[::-1], 0) for power in range(3))
    at = np.searchsorted(values, tried)
    return tried, zeroth[at], np.maximum(second[at] - 2 * tried * first[at] + tried**2 * zeroth[at], 0)
