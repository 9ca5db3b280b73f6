"""What every source of a model offers: an original that can be asked, and written as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kit.bundle.manifest import Provenance
from kit.samples import Samples
from kit.tasks.base import Task
from kit.tensors import Signature, Tensors

if TYPE_CHECKING:
    from exporters.sources.pupil import Pupil

EXTERNAL_ABOVE_BYTES = 64 * 2**20
"""Weights above this lie in a file of their own, beside the graph."""


class Original(Protocol):
    """A model as it came: asked for the answers its variants are held to, then written as ONNX, then let go.

    Attributes:
        name: A bundle's name for it.
        signature: What it takes and gives.
        task: What its files say of it; None if they say nothing.
        record: What the manifest says of it.
        examples: Inputs that came with it; None if there were none.
        remarks: What its files say of its use that kit cannot follow, in sentences.
    """

    name: str
    signature: Signature
    task: Task | None
    record: Provenance
    examples: tuple[Samples, ...] | None
    remarks: tuple[str, ...]

    def answer(self, tensors: Tensors) -> Tensors:
        """Compute its outputs, by name.

        Raises:
            GateFailed: It cannot answer; the message says on which tensors.
        """

    def write(self, folder: Path, *, opset: int) -> Path:
        """Write it as `model.onnx` into a folder, weights above EXTERNAL_ABOVE_BYTES in `model.data` beside it.

        Raises:
            GateFailed: It cannot be written as ONNX, or not at this opset.
        """

    def pupil(self) -> Pupil | None:
        """Return what can learn, which stays when this is closed; None where there is no model of torch."""

    def close(self) -> None:
        """Free its weights; a closed original answers nothing."""
