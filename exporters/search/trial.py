"""Bench variants that are not published: side by side, in a bundle that is thrown away."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from exporters import staging
from kit import bundle as bundles
from kit.bench.measure import Plan
from kit.bench.request import Request
from kit.bench.results import Results
from kit.bench.run import bench
from kit.bundle import Staged
from kit.choices import Provider
from kit.runtime import registry
from kit.runtime.base import RunnerOptions
from kit.samples import Samples
from kit.system import machine
from kit.system.progress import OnProgress, silent
from kit.system.wording import percent
from kit.tensors import Signature


def measure(
    name: str,
    signature: Signature,
    golden: Sequence[Samples],
    variants: Sequence[Staged],
    folder: Path,
    *,
    points: Sequence[Mapping[str, int]],
    threads: int,
    plan: Plan,
    on_progress: OnProgress = silent,
) -> Results:
    """Measure variants, the first as the baseline, in ONNX Runtime on the CPU, in the same rounds; their files stay.

    They are linked into a bundle that is thrown away, in `folder`: on the same file system if possible.
    """
    with tempfile.TemporaryDirectory(prefix="trial-", dir=folder) as place:
        trial = bundles.create(
            Path(place) / name,
            name=name,
            signature=signature,
            golden=golden,
            tools=machine.tool_versions(),
            variants=tuple(_linked(staged, Path(place)) for staged in variants),
        )
        request = Request(
            runtimes=(registry.DEFAULT,),
            providers=(Provider.CPU,),
            runner=RunnerOptions(threads=threads),
            points=tuple(dict(point) for point in points),
            plan=plan,
            counts_scores=False,
        )
        return bench(
            trial,
            request,
            on_progress=lambda what, share=None: on_progress(
                f"measuring: {what}" if share is None else f"measuring: {what}, {percent(share)}"
            ),
        )


def _linked(staged: Staged, folder: Path) -> Staged:
    """Return a variant whose files may be moved: its graph under a second name, and copies of its weights."""
    # A bundle takes no weights that could be changed under another name.
    own = Path(tempfile.mkdtemp(dir=folder))
    staging.link(staged.folder / staged.variant.graph.file, own / staged.variant.graph.file)
    for ref in staged.variant.data:
        shutil.copyfile(staged.folder / ref.file, own / ref.file)
    return Staged(variant=staged.variant, folder=own)
