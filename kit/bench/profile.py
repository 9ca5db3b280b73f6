"""Where the time goes: each variant run under its runtime's own profiler, node by node.

A profiler slows down what it watches, so that these figures are shares, not latencies: `kit bench` measures those.
"""

from __future__ import annotations

import re
from pathlib import Path

from kit.bench.cases import OpenCase, Subject, prepare
from kit.bench.points import described, telling
from kit.bench.request import Request
from kit.bench.results import NodeTime, Row, Status
from kit.bundle import Bundle
from kit.errors import KitError, StorageUnavailable, Unavailable
from kit.runtime import profiler, registry
from kit.system import files
from kit.system.progress import OnProgress
from kit.tensors import Sizes

CALLS = 100


def rows(bundle: Bundle, request: Request, folder: Path, on_progress: OnProgress) -> tuple[Row, ...]:
    """Profile every case at every point and write a trace for each into `folder`.

    Raises:
        StorageUnavailable: A trace cannot be written.
    """
    subject, points = Subject.of(bundle), request.points_of(bundle.signature)
    prepared = prepare(subject, request.cases_of(bundle), names_session=bool(request.cases))
    axes = telling(points)
    every = [one.at(sizes, described(sizes, axes)) for sizes in points for one in prepared]
    found = []
    for number, one in enumerate(every):
        on_progress(f"{one.row.variant}, {one.row.at}", number / len(every))
        try:
            found.append(_row(one, folder))
        except StorageUnavailable:
            raise
        except KitError as error:
            found.append(one.failed(error).row)
    return tuple(found)


def _row(one: OpenCase, folder: Path) -> Row:
    row, bundle = one.row, one.subject.bundle
    if row.runtime != registry.DEFAULT:
        raise Unavailable(f"kit has no profiler for {row.runtime}", hint="profile the runtime onnxruntime")
    profiled = profiler.profile(
        bundle.model(one.variant),
        one.case.options,
        one.subject.inputs(row.sizes),
        calls=CALLS,
        signature=bundle.signature,
    )
    where = row.provider if profiled.provider is row.provider else f"{row.provider}-fell-back-to-{profiled.provider}"
    parts = [row.variant, where, *([_brief(row.sizes)] if row.sizes else [])]
    name = bundle.beside(f".{'.'.join(parts)}.trace.json").name
    files.write(folder / name, profiled.trace)
    return one.changed(
        status=Status.FALLBACK if profiled.fallback_reason else Status.OK,
        reason=profiled.fallback_reason,
        fix=profiled.fallback_fix,
        ran_on=profiled.provider,
        placement=profiled.placement.describe(),
        profile=tuple(
            NodeTime(
                node=node.name,
                operator=node.operator,
                provider=node.provider,
                mean_us=node.mean_us,
                share=node.mean_us / profiled.run_us,
            )
            for node in profiled.nodes
        ),
        kernels=profiled.kernels.describe(),
        trace_file=name,
    ).row


def _brief(sizes: Sizes) -> str:
    """Return `batch1-sequence128` for a file's name."""
    return "-".join(f"{re.sub(r'[^A-Za-z0-9_]', '_', axis)}{size}" for axis, size in sizes.items())
