"""Where the time goes: each variant run under its runtime's own profiler, node by node.

A profiler slows down what it watches, so that these figures are shares, not latencies: `kit bench` measures those.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from kit.bench.entries import Entry, Field, OnProgress, entries, pixels
from kit.bench.results import NodeTime, Row, Status
from kit.bundle import Bundle
from kit.errors import KitError, StorageUnavailable, Unavailable
from kit.runtime import profiler, registry
from kit.system import files

CALLS = 100


def rows(bundle: Bundle, field: Field, sizes: Sequence[int], folder: Path, on_progress: OnProgress) -> tuple[Row, ...]:
    """Profile every variant at every batch size and write a trace for each into `folder`.

    Raises:
        StorageUnavailable: A trace cannot be written.
    """
    found = []
    stand = entries(bundle, field)
    for number, (size, entry) in enumerate((size, entry) for size in sizes for entry in stand):
        on_progress(f"{entry.row.variant}, batch {size}", number / max(len(sizes) * len(stand), 1))
        entry = Entry(dataclasses.replace(entry.row, batch_size=size), None, entry.options)  # noqa: PLW2901 - the same one, sized
        try:
            found.append(_row(bundle, entry, size, folder))
        except StorageUnavailable:
            raise
        except KitError as error:
            found.append(entry.failed(error).row)
    return tuple(found)


def _row(bundle: Bundle, entry: Entry, size: int, folder: Path) -> Row:
    row = entry.row
    if row.runtime != registry.DEFAULT:
        raise Unavailable(f"kit has no profiler for {row.runtime}", hint="profile --runtime onnxruntime")
    variant = bundle.variant(row.variant)
    profiled = profiler.profile(bundle.read(variant.artifact), entry.options, pixels(bundle, size), calls=CALLS)
    where = row.provider if profiled.provider is row.provider else f"{row.provider}-fell-back-to-{profiled.provider}"
    name = bundle.beside(f".{row.variant}.{where}.batch{size}.trace.json").name
    files.write(folder / name, profiled.trace)
    return dataclasses.replace(
        row,
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
    )
