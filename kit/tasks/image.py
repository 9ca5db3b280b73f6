"""Image classification: a picture in, its class and a probability out.

task = ImageClassification(labels=("cat", "dog"), pipeline="imagenet@2", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
task.signature(shape=(3, 224, 224))  # raw uint8 pixels in: the normalisation belongs to the graph
task.encode(["photo.jpg"])           # {"pixels": uint8 (1, 3, 224, 224)}
"""

from __future__ import annotations

import base64
import dataclasses
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kit.errors import BundleInvalid, PictureInvalid, UsageError
from kit.samples import Samples
from kit.tasks import pictures
from kit.tasks.base import Prologue
from kit.tasks.batches import as_input, batch_rank, stacked
from kit.tasks.classification import METRICS, SCORES, Classes, Classifier
from kit.tasks.images import PIPELINES, PIXELS_ONLY, Crop, Source, check_pipeline, folders, run_pipeline
from kit.tasks.images.layout import Layout, layout_of
from kit.tasks.images.reading import open_picture
from kit.tasks.inputs import stdin
from kit.tensors import BATCH, Axis, Signature, Tensors, TensorSpec

_ALWAYS = ("labels", "pipeline", "mean", "std")
_RAW_SIDE = 256  # pixels of the pictures that travel in a bundle as the proof of the way in
_STDIN = "-"
COLOURS = ("RGB", "BGR")


@dataclass(kw_only=True, eq=False)
class ImageClassification:
    """Pictures of any size and mode in, classes out.

    `labels`, `temperature`, `abstain_below` and `scores` are those of kit.tasks.classification.Classifier; `resize`,
    `crop_pct` and `interpolation` those of kit.tasks.images.crop.Crop, for `imagenet`.

    Attributes:
        pipeline: From a picture to pixels: a name in PIPELINES, or "" for a model that takes arrays only.
        mean: Of pixels scaled to 0..1, for all channels or each: subtracted first. Empty if the model does it itself.
        std: Likewise: what is left is divided by it.
        channels_last: The graph takes [batch, height, width, channels].
        normalize_in_graph: Move mean and std into the graph, which then takes raw uint8; else `encode` gives floats.
        size: (height, width) of what the model sees, if its signature leaves them open.
        colours: Order of three channels: one of COLOURS.

    Raises:
        ValueError: Labels that are blank or stand twice, or another value that cannot be.
    """

    takes_bytes: ClassVar[bool] = True

    labels: Sequence[str]
    pipeline: str = "resize@2"
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    temperature: float = 1.0
    abstain_below: float | None = None
    channels_last: bool = False
    normalize_in_graph: bool = True
    size: Sequence[int] | None = None
    resize: int | Sequence[int] | None = None
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    colours: str = COLOURS[0]
    scores: str = SCORES[0]

    name = "image-classification@1"
    metrics: Sequence[str] = field(default=METRICS, init=False, repr=False)
    files: Mapping[str, Path] = field(default_factory=dict, init=False, repr=False)
    _spec: TensorSpec | None = field(default=None, init=False, repr=False)
    _layout: Layout | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self._classifier = Classifier(
            self.labels, temperature=self.temperature, abstain_below=self.abstain_below, scores=self.scores
        )
        self.labels = self._classifier.labels
        self.mean, self.std = (tuple(float(one) for one in values) for values in (self.mean, self.std))
        if bool(self.mean) != bool(self.std) or any(not np.isfinite(one) for one in self.mean):
            raise ValueError(f"mean and std must both be numbers, found {self.mean} and {self.std}")
        if any(not (one > 0 and np.isfinite(one)) for one in self.std):
            raise ValueError(f"std must be positive, found {self.std}")
        if self.colours not in COLOURS:
            raise ValueError(f"colours are {' or '.join(COLOURS)}, not {self.colours!r}")
        resize = self.resize if self.resize is None or isinstance(self.resize, int) else _pair(self.resize)
        self.resize = resize
        self.size = None if self.size is None else _pair(self.size)
        self._crop = Crop(resize=resize, crop_pct=self.crop_pct, interpolation=self.interpolation)

    @classmethod
    def open(
        cls,
        name: str,  # noqa: ARG003 - there is one version
        options: Mapping[str, Any],
        files: Mapping[str, Path],  # noqa: ARG003 - it needs none
        signature: Signature,
    ) -> Self:
        """Make it of what a manifest holds."""
        task = cls(**options)
        task.check(signature)
        return task

    def options(self) -> dict[str, Any]:
        """Return what differs from the defaults, and what everybody wants to see."""
        shown = {}
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            if one.init and (one.name in _ALWAYS or value != one.default):
                shown[one.name] = list(value) if isinstance(value, tuple) else value
        return shown

    @property
    def output(self) -> str:
        """Name of the output that holds the scores; empty before `check`."""
        return self._classifier.output

    @property
    def prologue(self) -> Prologue | None:
        """(x / 255 - mean) / std for raw values x; None if `encode` or the model does it."""
        if not self.normalize_in_graph or not self.mean:
            return None
        count = max(len(self.mean), len(self.std))
        pairs = zip(_spread(self.mean, count), _spread(self.std, count), strict=True)
        scale, shift = zip(*((1 / (255 * std), -mean / std) for mean, std in pairs), strict=True)
        return Prologue(input="pixels", scale=scale, shift=shift, channels_last=self.channels_last)

    def signature(self, shape: Sequence[int] = (28, 28)) -> Signature:
        """Return what a model of this task takes and gives, for pictures of one shape without the batch."""
        dtype = "uint8" if self.normalize_in_graph else "float32"
        signature = Signature(
            inputs=(TensorSpec(name="pixels", dtype=dtype, shape=(BATCH, *shape)),),
            outputs=(TensorSpec(name="logits", dtype="float32", shape=(BATCH, len(self.labels))),),
            axes={BATCH: Axis(typical=(1, 64))},
        )
        self.check(signature)
        return signature

    def check(self, signature: Signature) -> None:
        """Take models with one input that can hold a picture, and an output with a score for each label."""
        if len(signature.inputs) != 1:
            raise UsageError(
                f"image classification needs one input, the model has {len(signature.inputs)}: "
                + ", ".join(spec.name for spec in signature.inputs),
                hint="use plain tensors: --task tensors",
            )
        spec = signature.inputs[0]
        if spec.dtype != "uint8" and not spec.is_float:
            raise UsageError(f"a picture is uint8 or float, the input {spec.name} is {spec.describe()}")
        layout = self._sized(layout_of(_core(spec, signature), channels_last=self.channels_last))
        check_pipeline(self.pipeline, layout)
        for what, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in {0, 1, layout.channels}:
                raise UsageError(f"{what} has {len(values)} values for {layout.channels} channels")
        self._classifier.check(signature)
        self._batch, self._rank = batch_rank(spec, signature)
        self._spec, self._layout = spec, layout

    def _sized(self, layout: Layout) -> Layout:
        if self.size is not None:
            height, width = self.size
            if (layout.height or height, layout.width or width) != (height, width):
                raise UsageError(f"the model sees {layout.height} x {layout.width} pixels, not {height} x {width}")
            return dataclasses.replace(layout, height=height, width=width)
        if self.pipeline != PIXELS_ONLY and not (layout.height and layout.width):
            raise UsageError(
                "the model takes pictures of any height and width", hint="say what it sees: size=(224, 224)"
            )
        return layout

    def read(self, argument: str) -> Iterator[tuple[str, Any]]:
        """Give a picture, those of a folder, or one on stdin."""
        path = Path(argument)
        if argument == _STDIN:
            yield _STDIN, stdin()
        elif path.is_dir():
            is_empty = True
            try:
                for item in folders.pictures_below(path):
                    is_empty = False
                    yield str(item), item
            except OSError as error:
                raise _unreadable(path, error) from error
            if is_empty:
                raise PictureInvalid(f"{argument} holds no pictures", hint=folders.LOOKED_FOR)
        else:
            yield argument, path

    def passed_over(self, argument: str) -> str:
        """Return what `read` leaves out of a folder, for people; empty if that is nothing."""
        path = Path(argument)
        return _below(path).describe_rest() if argument != _STDIN and path.is_dir() else ""

    def encode(self, items: Sequence[Any]) -> Tensors:
        """Return pixels of pictures: paths, encoded bytes, Pillow images, or arrays of the model's own shape.

        Raises:
            PictureInvalid: Not a readable picture, or an empty one.
            UsageError: An item is something else.
        """
        spec, layout = self._checked()
        arrays = [self._values(item, spec, layout) for item in items]
        return {spec.name: stacked(arrays, self._batch, self._rank)}

    def _values(self, item: Any, spec: TensorSpec, layout: Layout) -> NDArray[Any]:
        if isinstance(item, np.ndarray):
            if not _fits(item.shape, _core_shape(layout)) or item.dtype not in {
                np.dtype(spec.dtype),
                np.dtype("uint8"),
            }:
                raise UsageError(
                    f"an array of {item.dtype} {list(item.shape)} is no sample of {spec.name}: {spec.describe()}"
                )
            return item if item.dtype == spec.dtype else self._normalized(item, spec, layout)
        pixels = self._pixels(item, layout)
        return pixels if spec.dtype == "uint8" else self._normalized(pixels, spec, layout)

    def _pixels(self, item: Any, layout: Layout) -> NDArray[np.uint8]:
        if not isinstance(item, str | os.PathLike | bytes | Image.Image):
            raise UsageError(
                f"cannot read a picture from {type(item).__name__}", hint="give a path, bytes, a picture or an array"
            )
        if self.pipeline == PIXELS_ONLY:
            raise UsageError("this model takes pixels, not pictures", hint=f"give an array: {self._described()}")
        source: Source = item
        pixels = run_pipeline(source, self.pipeline, layout, self._crop)
        if self.colours == "BGR" and layout.axis is not None and layout.channels == 3:
            pixels = np.ascontiguousarray(np.flip(pixels, layout.axis))
        return pixels

    def _normalized(self, pixels: NDArray[np.uint8], spec: TensorSpec, layout: Layout) -> NDArray[Any]:
        """Scale, subtract, divide, in the order and precision of torchvision's ToTensor and Normalize."""
        values = pixels.astype(np.float32) / np.float32(255)
        if self.mean:
            values -= layout.per_channel(self.mean)
            values /= layout.per_channel(self.std)
        return values.astype(spec.dtype, copy=False)

    def _described(self) -> str:
        return self._checked()[0].describe()

    def _checked(self) -> tuple[TensorSpec, Layout]:
        if self._spec is None or self._layout is None:
            raise UsageError("the task does not know its model yet", hint="call check(signature) first")
        return self._spec, self._layout

    def decode(self, outputs: Tensors, inputs: Tensors) -> Classes:
        """Return the classes."""
        return self._classifier.decode(outputs, inputs)

    def portable(self) -> dict[str, Any] | None:
        """Return the way in and out in plain values, for another language; None for a model that takes arrays only."""
        if self.pipeline == PIXELS_ONLY:
            return None
        spec, layout = self._checked()
        blank = np.zeros([size or 1 for size in _core_shape(layout)], np.uint8)
        return {
            "kind": "picture",
            "way_in": {
                "input": spec.name,
                "dtype": spec.dtype,
                "dims": list(stacked([blank], self._batch, self._rank).shape),
                "pipeline": self.pipeline,
                "crop": dataclasses.asdict(self._crop),
                "height": layout.height,
                "width": layout.width,
                "channels": layout.channels,
                "axis": layout.axis,
                "colours": self.colours,
                "mean": list(self.mean),
                "std": list(self.std),
            },
            "way_out": self._classifier.portable(),
        }

    def samples(self, source: Path, signature: Signature) -> tuple[Samples, ...]:
        """Read a folder of pictures, by class or without classes, or an .npz with `images` and perhaps `labels`."""
        self.check(signature)
        spec, layout = self._checked()
        if source.is_dir():
            found = pictures.read_folder(source, self._classifier, lambda item: self._values(item, spec, layout))
        else:
            found = pictures.read_npz(source, self._classifier, spec, lambda item: self._array(item, spec, layout))
        return as_input(spec, found, self._batch, self._rank)

    def _array(self, pixels: NDArray[Any], spec: TensorSpec, layout: Layout) -> NDArray[Any]:
        """Return a picture of an .npz: as it is if it has the model's shape, else through the pipeline."""
        if _fits(pixels.shape, _core_shape(layout)):
            return self._values(pixels, spec, layout)
        if pixels.dtype != np.uint8:
            raise PictureInvalid(f"an array of {pixels.dtype} {list(pixels.shape)} is no picture for {spec.describe()}")
        if pixels.ndim == 3 and pixels.shape[-1] == 1:
            pixels = pixels[..., 0]
        try:
            picture = Image.fromarray(pixels)
        except (TypeError, ValueError) as error:
            raise PictureInvalid(f"an array of {list(pixels.shape)} is no picture") from error
        return self._values(picture, spec, layout)

    def raw(self, source: Path | None, most: int) -> list[Any]:
        """Return a few pictures as base64 PNG, small; none for a model that takes arrays only."""
        if self.pipeline == PIXELS_ONLY:
            return []
        if source is None:
            made = [pictures.drawn(seed) for seed in range(most)]
        elif source.is_dir():
            own_range = PIPELINES[self.pipeline].own_range
            chosen = pictures.spread_over(pictures.everywhere(source), most)
            made = [open_picture(path, own_range=own_range) for path in chosen]
        else:
            made = pictures.of_npz(source, most)
        return [_base64(picture) for picture in made]

    def item(self, raw: Any) -> Any:
        """Return the bytes of a picture in base64."""
        try:
            return base64.b64decode(raw, validate=True)
        except (TypeError, ValueError) as error:
            raise BundleInvalid(f"a raw item is no picture in base64: {error}") from error

    def snippet(self, path: str) -> str:
        """Return the lines that run a variant with ONNX Runtime alone, for a picture that has the model's size already."""
        spec, layout = self._checked()
        if spec.dtype != "uint8" or not (layout.height and layout.width):
            return ""
        by_channel = "pixels.reshape(HEIGHT, WIDTH, -1)"
        arranged = {None: "pixels", 0: f"{by_channel}.transpose(2, 0, 1)", 2: by_channel}
        shown = arranged[layout.axis].replace("HEIGHT", str(layout.height)).replace("WIDTH", str(layout.width))
        return (
            "import numpy as np\nimport onnxruntime\nfrom PIL import Image\n\n"
            f"labels = {list(self.labels)!r}\n"
            f'picture = Image.open("picture.png").convert("{layout.mode}").resize(({layout.width}, {layout.height}))\n'
            f"pixels = np.asarray(picture, np.uint8)\n"
            f'session = onnxruntime.InferenceSession("{path}", providers=["CPUExecutionProvider"])\n'
            f'scores = session.run(["{self._classifier.output}"], {{"{spec.name}": {shown}[np.newaxis]}})[0]\n'
            "print(labels[scores.argmax()])\n"
        )


def _below(folder: Path) -> folders.Found:
    try:
        return folders.below(folder)
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: OSError) -> PictureInvalid:
    return PictureInvalid(f"{error.filename or folder} cannot be read: {error.strerror or error}")


def _core(spec: TensorSpec, signature: Signature) -> tuple[int | str, ...]:
    """Return the shape of one picture: without the batch, or without a leading 1 that stands for it."""
    if signature.batch in spec.shape:
        place = spec.shape.index(signature.batch)
        return (*spec.shape[:place], *spec.shape[place + 1 :])
    return spec.shape[1:] if len(spec.shape) == 4 and spec.shape[0] == 1 else spec.shape


def _core_shape(layout: Layout) -> tuple[int | None, ...]:
    sizes = [layout.height, layout.width]
    if layout.axis is not None:
        sizes.insert(layout.axis, layout.channels)
    return tuple(sizes)


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        size is None or size == have for have, size in zip(shape, wanted, strict=True)
    )


def _pair(values: Sequence[int]) -> tuple[int, int]:
    height, width = (int(one) for one in values)
    return height, width


def _spread(values: Sequence[float], count: int) -> Sequence[float]:
    return values if len(values) == count else tuple(values) * count


def _base64(picture: Image.Image) -> str:
    picture = picture.copy()
    picture.thumbnail((_RAW_SIDE, _RAW_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
