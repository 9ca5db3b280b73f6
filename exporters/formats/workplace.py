"""Where ONNX Runtime's quantizer works: on files, one with the model rewritten for it, one for what it makes."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx

from exporters import staging
from exporters.formats import smooth
from exporters.formats.folding import fold_pixels
from kit.errors import GateFailed


@contextlib.contextmanager
def rewritten(
    model: onnx.ModelProto | Path, factors: Mapping[str, smooth.Floats], *, folds: bool
) -> Iterator[onnx.ModelProto | Path]:
    """Give a model that computes the same, inputs divided by factors and pixels folded; weights stay beside it if they were."""
    graph = onnx.ModelProto()
    graph.CopyFrom(staging.read(model) if isinstance(model, Path) else model)
    beside = model.parent if isinstance(model, Path) else Path()
    folded = folds and fold_pixels(graph, beside)
    if not factors and not folded:
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="kit-") as place:
        folder = Path(place)
        if factors:
            graph = smooth.smooth(graph, factors, beside, folder)
        else:
            staging.link_weights(graph, beside, folder)
        yield staging.write(graph, folder / "rewritten.onnx") if isinstance(model, Path) else graph


@contextlib.contextmanager
def files(model: onnx.ModelProto | Path, target: Path | None) -> Iterator[tuple[str, str]]:
    """Give the quantizer, which works on files, a place to work; hold back its advice and translate its failures.

    A graph with weights beside it is read where it lies, and its weights are written beside `target`.
    """
    logger = logging.getLogger()
    level = logger.level
    with tempfile.TemporaryDirectory(prefix="kit-") as folder:
        if isinstance(model, Path):
            assert target is not None  # whoever gives a path says where the result goes
            source, written = model, target
        else:
            source, written = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
            onnx.save(model, source)
        logger.setLevel(logging.ERROR)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # some calibrators print what they are doing
                yield str(source), str(written)
        except (GateFailed, MemoryError):
            raise
        except Exception as error:  # the quantizer, numpy inside it, and shape inference raise whatever they meet
            raise GateFailed(f"the quantizer failed: {type(error).__name__}: {error}") from error
        finally:
            logger.setLevel(level)
