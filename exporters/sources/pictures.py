"""What preprocessor_config.json says of pictures: the task that prepares them likewise, or why kit cannot.

task, problem = pictures.described(json, labels, (3, 224, 224))
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kit.tasks.base import Task

_INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_WARPS_FROM = 384  # pixels; below, ConvNeXt's processor cuts out the middle
_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class _UnknownError(Exception):
    """Pictures are prepared in a way that kit lacks; the message says how."""


@dataclass(frozen=True, kw_only=True)
class _Processor:
    """What a class of transformers does about what a configuration leaves out; null is no for it, or an error."""

    resample: int | None
    mean: Sequence[float] | None = _HALF
    std: Sequence[float] | None = _HALF
    crops: bool = False
    is_square: bool = False  # what a size of one number means
    normalizes: bool = True
    flips: bool = False
    divides_twice: bool = False
    crop_pct: float | None = None


# By the name without its ending; the first for configurations that name none.
_PROCESSORS = {
    "": _Processor(resample=None, mean=None, std=None, is_square=True),
    "ViT": _Processor(resample=2, is_square=True),
    "DeiT": _Processor(resample=3, crops=True, is_square=True),
    "Beit": _Processor(resample=3, is_square=True),
    "Siglip": _Processor(resample=3),
    "Bit": _Processor(resample=3, crops=True, mean=_CLIP_MEAN, std=_CLIP_STD),
    "CLIP": _Processor(resample=3, crops=True, mean=_CLIP_MEAN, std=_CLIP_STD),
    "ConvNext": _Processor(resample=3, crop_pct=224 / 256),
    "EfficientNet": _Processor(resample=3, is_square=True, divides_twice=True),
    "MobileNetV1": _Processor(resample=2, crops=True),
    "MobileNetV2": _Processor(resample=2, crops=True),
    "MobileViT": _Processor(resample=3, crops=True, normalizes=False, flips=True),
}
_ENDING = re.compile(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$")
_KNOWN = frozenset(
    {
        *("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_flip_channel_order"),
        *("size", "crop_size", "resample", "rescale_factor", "rescale_offset", "image_mean", "image_std"),
        *("include_top", "crop_pct"),
    }
)
# What does not change the pixels of a picture in RGB.
_IDLE = frozenset(
    {
        *("image_processor_type", "feature_extractor_type", "processor_class", "_processor_class"),
        *("_valid_processor_keys", "do_convert_rgb", "do_reduce_labels", "reduce_labels", "default_to_square"),
        *("data_format", "input_data_format", "return_tensors", "device", "disable_grouping"),
    }
)


def described(found: Mapping[str, Any], labels: Sequence[str], shape: Sequence[int | str]) -> tuple[Task | None, str]:
    """Return the task for pictures and nothing, or no task and why there is none.

    `found` is the content of preprocessor_config.json, `shape` what the model takes: channels, height, width.
    """
    try:
        return _task(found, labels, shape), ""
    except _UnknownError as error:
        return None, str(error)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        return None, f"preprocessor_config.json cannot be understood ({error})"


def seen(found: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the (height, width) that pictures get; None if kit does not know."""
    try:
        return _scaled(found, _processor(found))[1]
    except (_UnknownError, TypeError, ValueError, KeyError, AttributeError):
        return None


def _task(found: Mapping[str, Any], labels: Sequence[str], shape: Sequence[int | str]) -> Task:
    own = _processor(found)
    if len(labels) < 2:
        raise _UnknownError("there are no names of classes")
    strange = sorted(key for key, value in found.items() if value and key not in _KNOWN | _IDLE)
    if strange:
        raise _UnknownError(f"kit does not know the step {strange[0]}")
    if not found.get("do_resize", True):
        raise _UnknownError("they are not scaled to one size")
    resize, size = _scaled(found, own)
    if size != tuple(shape[1:]):
        raise _UnknownError(f"they become {size[0]} x {size[1]} pixels, where the model takes {shape[1]} x {shape[2]}")
    resample = found.get("resample", own.resample)
    if resample not in _INTERPOLATIONS:
        raise _UnknownError(f"kit does not know how they are scaled (resample {resample})")
    mean, std = _arithmetic(found, own)
    flips = found.get("do_flip_channel_order", own.flips)
    if {len(mean), len(std)} - {1, shape[0]} or (flips and len({*mean}) + len({*std}) > 2):
        raise _UnknownError(f"they are normalised with {len(mean)} numbers for {shape[0]} channels")
    from kit.tasks.image import ImageClassification

    return ImageClassification(
        labels=labels,
        pipeline="imagenet@2",
        mean=mean,
        std=std,
        resize=resize,
        interpolation=_INTERPOLATIONS[resample],
        colours="BGR" if flips else "RGB",
    )


def _processor(found: Mapping[str, Any]) -> _Processor:
    name = str(found.get("image_processor_type") or found.get("feature_extractor_type") or "")
    try:
        return _PROCESSORS[_ENDING.sub("", name)]
    except KeyError:
        raise _UnknownError(f"kit does not know the processor {name}") from None


def _scaled(found: Mapping[str, Any], own: _Processor) -> tuple[int | tuple[int, int], tuple[int, int]]:
    """Return how pictures are scaled, the shorter side or (height, width), and the (height, width) that is left of them."""
    size = found.get("size")
    if isinstance(size, int):
        size = {"height": size, "width": size} if own.is_square else {"shortest_edge": size}
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else None
    if own.crop_pct is not None and edge is not None:
        left = (int(edge), int(edge))
        return (left if edge >= _WARPS_FROM else int(edge / found.get("crop_pct", own.crop_pct))), left
    crops = found.get("do_center_crop", own.crops)
    cut = pair(found.get("crop_size")) if crops else None
    if crops and cut is None:
        raise _UnknownError("they are cut to a size that is not given")
    if isinstance(size, Mapping) and edge is not None and set(size) == {"shortest_edge"}:
        if cut is None:
            raise _UnknownError("they keep their proportions")
        return int(edge), cut
    whole = pair(size)
    if whole is None or edge is not None:
        raise _UnknownError(f"kit does not know the size {size}")
    return whole, cut or whole


def pair(size: Any) -> tuple[int, int] | None:
    """Return (height, width) of a size as configurations have it; None if it is none."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, (list, tuple)):
        return int(size[0]), int(size[-1])
    if isinstance(size, Mapping) and size.get("height") and size.get("width"):
        return int(size["height"]), int(size["width"])
    return None


def _arithmetic(found: Mapping[str, Any], own: _Processor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of values that were divided by 255, whatever the processor itself does with them."""
    rescales = found.get("do_rescale", True)
    factor = float(found.get("rescale_factor", 1 / 255)) if rescales else 1.0
    divides_twice = found.get("include_top", own.divides_twice)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    given = _numbers(found, "image_std", own.std) if divides_twice else std
    if found.get("do_normalize", own.normalizes):
        mean, std = _numbers(found, "image_mean", own.mean), _numbers(found, "image_std", own.std)
    if divides_twice:
        std = tuple(one * other for one, other in zip(_spread(std, len(given)), given, strict=True))
    shift = 1.0 if rescales and found.get("rescale_offset") else 0.0
    scale = 1 / (255 * factor)
    return tuple((one + shift) * scale for one in mean), tuple(one * scale for one in std)


def _numbers(found: Mapping[str, Any], key: str, otherwise: Sequence[float] | None) -> tuple[float, ...]:
    value = found.get(key, otherwise)
    if value is None:
        raise _UnknownError(f"they are normalised, and there is no {key}")
    return tuple(map(float, value)) if isinstance(value, (list, tuple)) else (float(value),)


def _spread(values: tuple[float, ...], count: int) -> tuple[float, ...]:
    return values * count if len(values) == 1 else values
