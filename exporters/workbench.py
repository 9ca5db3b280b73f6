"""The workbench: a model, the answers of its original, and its baseline, ready to make candidates of and to judge them.

with open_source(module, ...) as original:
    bench = workbench.of(original, folder, opset=20, data=data)
passed = bench.examine(recipe.make(bench.source))
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporters import candidates
from exporters.bars import bars_for
from exporters.candidates import Candidate
from exporters.formats.base import Source
from exporters.gate import ANSWER_BYTES, Passed, Proof, check_numbers, examine
from exporters.golden import golden_of
from exporters.options import DEFAULT_OPSET
from exporters.sources.base import Original
from kit import samples as sampling
from kit.bench.meters import return_freed_memory
from kit.bundle import Bundle
from kit.errors import GateFailed, KitError, PackageMissing, StorageUnavailable, UsageError
from kit.metrics import Metric
from kit.samples import Samples, Splits
from kit.system import files
from kit.system.progress import OnProgress, silent
from kit.tasks import registry
from kit.tasks.base import Task
from kit.tasks.tensors import PlainTensors
from kit.tensors import Signature, Tensors

if TYPE_CHECKING:
    from exporters.sources.pupil import Lesson, Pupil

_IN_MEMORY_BYTES = 64 * 2**20  # answers to more than this lie on the disk


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """What can be trained, and how long for each number of bits.

    Attributes:
        opset: Of the graphs that come of it.
        done: The sources that came of it.
    """

    pupil: Pupil
    seconds: float
    opset: int
    done: dict[Lesson, Source] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """One model, ready to make candidates of.

    Attributes:
        source: What they are made of.
        proof: What they are held to: golden samples and data with the original's answers, and the bars.
        baseline: The model as it came, which has passed the gate.
        fine_tuning: With what and how long; None unless it was asked for.
    """

    source: Source
    proof: Proof
    baseline: Passed
    fine_tuning: FineTuning | None = None

    @property
    def signature(self) -> Signature:
        """What the model takes and gives."""
        return self.source.signature

    @property
    def data(self) -> Splits | None:
        """Samples with the original's answers; None if there are none."""
        return self.proof.data

    @property
    def golden(self) -> tuple[Samples, ...]:
        """Golden samples with the original's answers."""
        return self.proof.golden

    def examine(self, candidate: Candidate) -> Passed:
        """Pass a candidate through the gate.

        Raises:
            GateFailed: A check said no.
        """
        try:
            return examine(candidate, self.proof, baseline=self.baseline)
        finally:
            return_freed_memory()


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was published, the figures each candidate passed with, and what was remarkable about the original."""

    bundle: Bundle
    passed: tuple[Passed, ...]
    remarks: tuple[str, ...] = ()


@contextlib.contextmanager
def staging_beside(folder: Path) -> Iterator[Path]:
    """Give a folder in which files wait until they are moved into `folder`; it goes in any case.

    Raises:
        StorageUnavailable: There is no room for it.
    """
    above = folder.absolute().parent
    while not above.exists():
        above = above.parent
    try:
        files.sweep(above)
        made = tempfile.TemporaryDirectory(prefix=files.partial_name(), dir=above, ignore_cleanup_errors=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    with made as name:
        try:
            yield Path(name)
        except OSError as error:
            if not _is_of_writing(error, Path(name)):
                raise
            raise _unwritable(folder, error) from error


_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def _is_of_writing(error: OSError, folder: Path) -> bool:
    """Whether a disk is full, or a file in the folder was meant; anything else is a fault of what ran meanwhile."""
    if error.errno in _NO_ROOM:
        return True
    named = [name for name in (error.filename, error.filename2) if isinstance(name, str | bytes | os.PathLike)]
    return any(Path(os.fsdecode(name)).is_relative_to(folder) for name in named)


def _unwritable(folder: Path, error: OSError) -> StorageUnavailable:
    return StorageUnavailable(
        f"cannot write beside {folder}: {error.strerror or error}", hint="free some space, or choose another --out"
    )


def for_bundle(
    bundle: Bundle,
    folder: Path,
    *,
    opset: int,
    data: Splits | None = None,
    data_dir: Path | None = None,
    metric: str | Metric | None = None,
    max_loss: float | None = None,
    fine_tune_seconds: float | None = None,
    on_progress: OnProgress = silent,
) -> Workbench:
    """Set up a bundle: its own golden samples, the data it was made with unless other data are given.

    Its original is rebuilt, with `opset`, if an installed package knows its architecture; else its baseline answers for
    it. Candidates wait in `folder`. Without a metric the first of the task's decides that the data allow; without
    `max_loss` that metric's own bar.

    Raises:
        UsageError: The data do not fit the model, the bundle has neither an original nor a variant, or its graph is of
            another operator set than the one that was asked for.
        GateFailed: The original cannot be exported.
    """
    from exporters.sources import open_source
    from exporters.sources.onnx_file import OnnxOriginal
    from kit import datasets

    if data is None:
        on_progress("reading data")
        data = datasets.of(bundle, data_dir=data_dir)
    on_progress("opening the original")
    original = open_source(_with_known_task(bundle))
    baseline = bundle.baseline if isinstance(original, OnnxOriginal) else None
    if baseline is not None and opset not in {DEFAULT_OPSET, baseline.needs.opset}:
        original.close()
        raise UsageError(
            f"{bundle.name} is made of its own graph, whose operator set is {baseline.needs.opset}, and not {opset}",
            hint="leave --opset out, or export the model itself with it",
        )
    return of(
        original,
        folder,
        opset=opset,
        golden=bundle.golden(),
        data=data,
        metric=metric,
        max_loss=max_loss,
        fine_tune_seconds=fine_tune_seconds,
        first=None if baseline is None else candidates.published(bundle, baseline),
        on_progress=on_progress,
    )


def task_of(bundle: Bundle) -> Task:
    """Return a bundle's task, or plain tensors if no installed package knows it: variants can be made without it.

    Raises:
        BundleInvalid: Its options or files are not what this version takes.
    """
    try:
        return registry.task_of(bundle)
    except PackageMissing:
        plain = PlainTensors()
        plain.check(bundle.signature)
        return plain


def knows_task(bundle: Bundle) -> bool:
    """Whether an installed package knows a bundle's task, or it names none."""
    ref = bundle.manifest.task
    return ref is None or ref.name.partition("@")[0] == registry.PLAIN or not isinstance(task_of(bundle), PlainTensors)


def _with_known_task(bundle: Bundle) -> Bundle:
    """Return a bundle whose task can be opened: as it is, or as one of plain tensors. Its manifest on the disk stays."""
    if knows_task(bundle):
        return bundle
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, task=None))


def of(
    original: Original,
    folder: Path,
    *,
    opset: int,
    golden: Sequence[Samples] | None = None,
    data: Splits | None = None,
    task: Task | None = None,
    metric: str | Metric | None = None,
    max_loss: float | None = None,
    fine_tune_seconds: float | None = None,
    first: Candidate | None = None,
    on_progress: OnProgress = silent,
) -> Workbench:
    """Set up any original: it answers all samples, is written as ONNX unless `first` is the baseline, and is closed.

    Golden samples that have answers keep them; None for what golden_of chooses. Without data, variants are compared
    with the original on the golden samples alone. Candidates wait in `folder`; metric and `max_loss` are as in
    `for_bundle`, the task is the original's own unless one is given. With
    `fine_tune_seconds` what can be trained is kept.

    Raises:
        UsageError: The data do not fit the signature, or it is to be fine-tuned and cannot be.
        GateFailed: The original cannot be exported, or does not agree with itself afterwards.
    """
    signature, task = original.signature, task or original.task
    try:
        if data is not None:
            check_data(data, signature)
        fine_tuning = None
        if fine_tune_seconds is not None:
            fine_tuning = FineTuning(pupil=_pupil(original, data), seconds=fine_tune_seconds, opset=opset)
        chosen = golden_of(signature, golden=golden, examples=original.examples, data=data)
        bars, golden_bars = bars_for(
            signature,
            task=task,
            metric=metric,
            max_loss=max_loss,
            has_targets=data is not None and all(group.targets for group in (*data.validation, *data.test)),
        )
        on_progress("answers of the original")
        answered = answers(original, chosen, signature, folder)
        if data is not None:
            data = dataclasses.replace(
                data,
                validation=answers(original, data.validation, signature, folder),
                test=answers(original, data.test, signature, folder),
            )
        if first is None:
            on_progress("writing ONNX")
            own = Path(tempfile.mkdtemp(prefix="original-", dir=folder))
            first = candidates.baseline(original.write(own, opset=opset))
    finally:
        original.close()
        return_freed_memory()
    proof = Proof(signature=signature, golden=answered, data=data, bars=bars, golden_bars=golden_bars)
    on_progress(f"{first.id}: checks")
    passed = examine(first, proof, baseline=None)
    return_freed_memory()
    source = Source(
        path=first.files.path,
        folder=folder,
        signature=passed.signature,
        train=data.train if data is not None else None,
        dataset=data.dataset if data is not None else "",
        on_progress=on_progress,
    )
    proof = dataclasses.replace(proof, signature=passed.signature)
    return Workbench(source=source, proof=proof, baseline=passed, fine_tuning=fine_tuning)


def _pupil(original: Original, data: Splits | None) -> Pupil:
    pupil = original.pupil()
    if pupil is None:
        raise UsageError(
            "fine-tuning needs the PyTorch model, and this one comes as a graph",
            hint="name what makes it: kit export package.module:factory --precision int8 --fine-tune 5m --data FILE",
        )
    if data is None or not data.train:
        raise UsageError("fine-tuning needs samples to train with", hint="give some of the model's own: --data FILE")
    return pupil


def check_data(data: Splits, signature: Signature) -> None:
    """Raise UsageError unless all splits fit the signature."""
    for name, groups in (("train", data.train), (data.validation_name, data.validation), ("test", data.test)):
        if groups is not None:
            sampling.check(groups, signature, name=f"{name} samples")


def answers(original: Original, groups: Sequence[Samples], signature: Signature, folder: Path) -> tuple[Samples, ...]:
    """Return samples with the original's answers; those that have some keep them, and large ones lie on the disk.

    Raises:
        GateFailed: It cannot answer, or not with numbers.
    """
    return tuple(
        group
        if group.expected is not None
        else dataclasses.replace(group, expected=_answered(original, group, signature, folder))
        for group in groups
    )


def _answered(original: Original, group: Samples, signature: Signature, folder: Path) -> dict[str, NDArray[Any]]:
    joins = all(signature.batch in spec.shape and not spec.varies for spec in signature.outputs)
    kept = _in_pieces(original, group, signature, folder) if joins else None
    if kept is None:
        outputs = _ask(original, group.inputs, signature.sizes(group.inputs))
        _check_answers(outputs, signature)
        kept = {name: np.array(array) for name, array in outputs.items()}
    check_numbers("the original", [kept], group.source or "the samples")
    return kept


def _in_pieces(
    original: Original, group: Samples, signature: Signature, folder: Path
) -> dict[str, NDArray[Any]] | None:
    """Return answers that were made in pieces bounded by bytes; None if all is one piece, or the sizes of pieces differ."""
    sizes, total = signature.sizes(group.inputs), signature.rows(group.inputs)
    rows = signature.rows_within(ANSWER_BYTES, sizes)
    if total <= rows:
        return None
    kept: dict[str, NDArray[Any]] = {}
    done = 0
    for piece in signature.split(group.inputs, rows):
        outputs = _ask(original, piece, sizes)
        count = signature.rows(piece)
        _check_answers(outputs, signature)
        if not kept:
            kept = {spec.name: _room(spec.name, outputs, signature, total, folder) for spec in signature.outputs}
        for spec in signature.outputs:
            place = (*[slice(None)] * spec.shape.index(signature.batch or ""), slice(done, done + count))
            if kept[spec.name][place].shape != outputs[spec.name].shape:
                return None  # it depends on the values, as nobody can tell before
            kept[spec.name][place] = outputs[spec.name]
        done += count
    return kept


def _ask(original: Original, inputs: Tensors, sizes: dict[str, int]) -> Tensors:
    try:
        return original.answer(inputs)
    except GateFailed:
        raise
    except KitError as error:
        said = ", ".join(f"{axis}={size}" for axis, size in sizes.items()) or "its own sizes"
        raise GateFailed(
            f"the original does not run with {said}: {error}",
            hint="say which sizes it takes, such as --axis NAME=16..512:16,128, or give samples of its own: --data FILE",
        ) from error


def _room(name: str, outputs: Tensors, signature: Signature, total: int, folder: Path) -> NDArray[Any]:
    spec, array = signature.output(name), outputs[name]
    shape = tuple(
        total if axis == signature.batch else size for axis, size in zip(spec.shape, array.shape, strict=True)
    )
    if math.prod(shape) * array.itemsize <= _IN_MEMORY_BYTES:
        return np.empty(shape, array.dtype)
    handle, path = tempfile.mkstemp(suffix=".npy", dir=folder)
    with open(handle, "wb"):  # noqa: PTH123 - the file is open already
        pass
    return np.lib.format.open_memmap(path, mode="w+", dtype=array.dtype, shape=shape)


def _check_answers(outputs: Tensors, signature: Signature) -> None:
    for spec in signature.outputs:
        array = outputs.get(spec.name)
        if array is None:
            raise GateFailed(f"the original gives no {spec.name!r}: {', '.join(outputs) or 'nothing'}")
        if str(array.dtype) != spec.dtype or (array.ndim != len(spec.shape) and not spec.varies):
            raise GateFailed(
                f"the original gives {spec.name} as {array.dtype} [{', '.join(map(str, array.shape))}], where its signature "
                f"says {spec.describe()}"
            )
