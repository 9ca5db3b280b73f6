"""What a task is: the way from what people have to named tensors, and from the outputs to what they want to know.

A plug is a class with this protocol, registered by its package under the entry point group `kit.tasks`, by the name without
the version. kit.tasks.registry opens them.

```toml
[project.entry-points."kit.tasks"]
my-task = "my_package:MyTask"
```
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from numpy.typing import NDArray

from kit.choices import Provider
from kit.samples import Samples
from kit.system import html
from kit.tensors import Signature, Tensors


@dataclass(frozen=True, slots=True)
class Opened:
    """What answers: one object that all predictions of an engine hold."""

    provider: Provider
    runtime: str
    variant: str


_SHOWN, _LISTED = 3, 20  # answers in a line, and in a table


@dataclass(kw_only=True, slots=True, eq=False, repr=False)  # frozen, it takes 0.8 us longer to make
class Prediction:
    """What a model answered, and where. All arrays are the caller's to keep.

    Attributes:
        inputs: What the model really saw, by name.
        outputs: As the model gave them, by name.
        latency_us: Time of the runtime's call alone, in microseconds; the way in is not in it.
    """

    outputs: Tensors = field(repr=False)
    inputs: Tensors = field(repr=False)
    latency_us: float = 0.0
    opened: Opened | None = None

    @property
    def provider(self) -> Provider | None:
        """Where it ran."""
        return self.opened.provider if self.opened else None

    @property
    def runtime(self) -> str:
        """By what."""
        return self.opened.runtime if self.opened else ""

    @property
    def variant(self) -> str:
        """Which variant of the bundle ran."""
        return self.opened.variant if self.opened else ""

    def __repr__(self) -> str:
        count = self._count()
        shown = ", ".join(" ".join(cells) for cells in self._cells(_SHOWN))
        more = f", ... ({count:,} in all)" if count > _SHOWN else ""
        return f"<{type(self).__name__}: {shown}{more}; {self._origin()}>"

    def _repr_html_(self) -> str:
        count = self._count()
        rows = self._cells(_LISTED)
        title = self._origin() if count <= _LISTED else f"the first {_LISTED} of {count:,}; {self._origin()}"
        return html.table(title, rows)

    def _origin(self) -> str:
        where = f"{self.variant} in {self.runtime} on {self.provider}, " if self.opened else ""
        return f"{where}{self.latency_us:,.1f} µs"

    def _count(self) -> int:
        """Return how many lines `_cells` can give."""
        return len(self.outputs)

    def _cells(self, most: int) -> list[tuple[str, str]]:
        """Return the first answers in words, each with its name: what `repr` and notebooks show."""
        return [(name, f"{array.dtype} {list(array.shape)}") for name, array in list(self.outputs.items())[:most]]

    def records(self) -> list[dict[str, Any]]:
        """Return the answer to each item as plain values, for JSON and CSV."""
        return [{name: array.tolist() for name, array in self.outputs.items()}]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the answers as arrays by name, for .npz files."""
        return dict(self.outputs)


@dataclass(frozen=True, kw_only=True)
class Prologue:
    """Arithmetic that moves into the graph: raw uint8 values in place of the floats that a model takes at one input.

    The graph then begins with Cast, perhaps Transpose, Mul and Add, which are folded into the first layer if that is exact.

    Attributes:
        input: Name of the new input, such as `pixels`.
        scale: Factor of each raw value: one for all, or one for each channel.
        shift: Added after it, likewise.
        channels_last: The new input is `[batch, height, width, channels]`, where the model takes channels first.
    """

    input: str
    scale: tuple[float, ...]
    shift: tuple[float, ...]
    channels_last: bool = False


class Task(Protocol):
    """A task of a model: opened from the options and files that travel in its bundle, or made by its own constructor.

    `check` tells it the signature, before anything is encoded.

    Attributes:
        name: With its version, such as `image-classification@1`: bundles outlive code.
        files: What it needs beside its options, such as a tokenizer, by role.
        metrics: Names of metrics that suit it, the best first: the first that the data allow is the default bar.

    A task may also have:

    - `takes_text = True`: its items are strings of text; `kit predict --text` is then allowed.
    - `takes_bytes = True`: it takes the bytes of a file; servers then pass on the body of a request.
    - `passed_over(argument) -> str`: what `read` leaves out; `kit predict` prints it beside the answers.
    - `read_rows(argument)`: the samples of a file one by one, named, if `read` gives it whole; `kit predict -o` then
      writes a row for each. Either may give an error in the place of what cannot be read.
    - `padding`, after `check`: the name of the axis along which items may be filled up, and the value for each input;
      or None. Servers then put items of several lengths into one call.
    - `portable()`, after `check`: the way in and out, for the page that `kit web` writes (see apps/web); or None.
    - `output`, which `check` finds: the only output that it reads, and that metrics look at (`scored_output`).
    """

    name: str
    files: Mapping[str, Path]
    metrics: Sequence[str]

    @property
    def prologue(self) -> Prologue | None:
        """What the graph is to do with raw values; None if the model takes what `encode` gives."""

    @classmethod
    def open(cls, name: str, options: Mapping[str, Any], files: Mapping[str, Path], signature: Signature) -> Self:
        """Make it of what a manifest holds.

        Raises:
            BundleInvalid: The options or files are not what this version takes.
        """

    def options(self) -> dict[str, Any]:
        """Return what travels in the manifest: plain JSON values."""

    def check(self, signature: Signature) -> None:
        """Raise UsageError unless the model takes and gives what the task needs; the message says what that is."""

    def read(self, argument: str) -> Iterator[tuple[str, Any]]:
        """Give the items that a word of the command line stands for, each with a name: a file, a folder, `-` for stdin.

        What is no item, such as a line that cannot be read, is given as a BadInput in its place.

        Raises:
            BadInput: There is nothing to read, or it cannot be read.
        """

    def encode(self, items: Sequence[Any]) -> Tensors:
        """Return the inputs for items.

        Raises:
            BadInput: An item cannot be read.
            UsageError: An item is of a kind that the task does not take.
        """

    def decode(self, outputs: Tensors, inputs: Tensors) -> Prediction:
        """Return what the outputs mean."""

    def samples(self, source: Path, signature: Signature) -> tuple[Samples, ...]:
        """Read a data set of this task, with targets if it has labels, as samples in groups of one size.

        Raises:
            DatasetInvalid: It holds something else.
        """

    def raw(self, source: Path | None, most: int) -> list[Any]:
        """Return a few items (`most`) as plain JSON values (pictures as base64), for `item`.

        Without a data set as `source`, they are made up.
        """

    def item(self, raw: Any) -> Any:
        """Return the item that a plain JSON value of `raw` stands for."""

    def snippet(self, path: str) -> str:
        """Return the lines of Python that run a variant with ONNX Runtime alone; empty if there is no short way."""


def scored_output(task: Task | None, signature: Signature) -> str | None:
    """Return the output that a task reads, which its metrics are to look at; None for all of them."""
    name = getattr(task, "output", None)
    return name if isinstance(name, str) and name in {spec.name for spec in signature.outputs} else None
