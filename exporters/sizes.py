"""Whether a graph runs at every size that its signature allows, and whether its samples are independent of each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exporters import staging
from kit.errors import GateFailed, KitError
from kit.runtime.base import Runner
from kit.samples import Samples, seeded
from kit.system.wording import percent
from kit.tensors import Axis, Signature, Tensors, TensorSpec

BATCHES = (1, 2, 17)
"""Batch sizes every graph is run at, as far as its axis allows: one that was specialised to its example fails here."""

_MOST_BYTES = 256 * 2**20  # of inputs and outputs at one combination of sizes
_MOST_SIZES = 3
_BY_VALUE = frozenset({"NonZero", "NonMaxSuppression", "Unique", "Compress", "Loop", "Scan", "If"})
_INDEPENDENT_HINT = (
    "if the samples of one call belong together, say so, and one call is one sample: --axis batch=none, or batch=None in a "
    "signature"
)


_MOST_AGAIN = 0.1  # may differ from call to call, and of integers among others, whatever floats may move


class Movement(NamedTuple):
    """How far the answer to a sample may move when others are in its batch.

    Attributes:
        rtol: As a share of the output's largest value, of its root mean square if `is_rms`.
        is_rms: Compare root mean squares: where a few values may be far off, such as those at padded positions.
    """

    rtol: float
    is_rms: bool = False

    def size(self, values: NDArray[np.float64]) -> float:
        """Return the largest value, or the root mean square; 0 of nothing."""
        if not values.size:
            return 0.0
        return float(np.sqrt(np.mean(values**2))) if self.is_rms else float(values.max())


def check_sizes(
    runner: Runner,
    signature: Signature,
    golden: Sequence[Samples],
    *,
    name: str,
    allowed: Movement,
    graph: Path,
) -> Signature:
    """Run every dynamic axis at two or three sizes, and each sample alone and among others.

    `graph` is the file that the runner has open, to see which outputs may depend on values; `allowed` is how far a
    sample may move among others.

    Returns:
        The signature; outputs are marked whose size was seen to vary.

    Raises:
        GateFailed: A size does not run, gives another shape or dtype, or samples depend on each other.
    """
    supply = golden[0]
    usual = signature.sizes(supply.inputs)
    if signature.batch is not None:
        usual[signature.batch] = _tried(signature.axes[signature.batch], usual[signature.batch], batch=True)[0]
    varying = _varying(runner, signature, supply, usual, graph)
    if varying:
        outputs = (dataclasses.replace(spec, varies=spec.varies or spec.name in varying) for spec in signature.outputs)
        signature = dataclasses.replace(signature, outputs=tuple(outputs))
    for sizes in _combinations(signature, usual):
        _run(runner, signature, _inputs(signature, supply, sizes), sizes, name)
    if signature.batch is not None:
        _check_rows(runner, signature, supply, usual, name=name, allowed=allowed)
    return signature


def _tried(axis: Axis, usual: int, *, batch: bool = False) -> list[int]:
    if batch:
        step = axis.multiple_of
        wanted = [size for size in BATCHES if not axis.problem(size)]
        wanted = wanted or [axis.usual, axis.usual + step]
    else:
        wanted = [*axis.typical[:_MOST_SIZES], usual]
        wanted += [usual + axis.multiple_of] if len(set(wanted)) < 2 else []
        wanted += [axis.least] if axis.least > 1 else []
    possible = [size for size in dict.fromkeys(wanted) if not axis.problem(size)]
    return (sorted(possible) if batch else possible)[: _MOST_SIZES + 1] or [usual]


def _combinations(signature: Signature, usual: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Give the usual sizes with one axis at a time at another size, if that is of bearable size."""
    seen: list[dict[str, int]] = []
    for axis in signature.dynamic:
        for size in _tried(signature.axes[axis], usual[axis], batch=axis == signature.batch):
            sizes = {**usual, axis: size}
            if sizes not in seen and (not seen or signature.nbytes(sizes) <= _MOST_BYTES):
                seen.append(sizes)
                yield sizes
    if not seen:
        yield dict(usual)


def _inputs(signature: Signature, supply: Samples, sizes: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """Return inputs of these sizes, samples that differ from each other."""
    if signature.rows(supply.inputs) > 1 or signature.batch is None or sizes[signature.batch] < 2:
        return supply.resized(signature, sizes)
    return dict(seeded(signature, sizes=sizes, seed=1).inputs)


def _run(
    runner: Runner, signature: Signature, inputs: Tensors, sizes: Mapping[str, int], name: str
) -> dict[str, NDArray[Any]]:
    said = _said(sizes)
    try:
        outputs = runner.run(inputs)
    except KitError as error:
        raise GateFailed(
            f"{name} does not run with {said}: {error}",
            hint="say which sizes it takes, such as --axis NAME=16..512:16,128" if sizes else error.hint,
        ) from error
    for spec in signature.outputs:
        _check_output(spec, outputs[spec.name], sizes, signature, name)
    return outputs


def _check_output(
    spec: TensorSpec, array: NDArray[Any], sizes: Mapping[str, int], signature: Signature, name: str
) -> None:
    wanted = [sizes.get(size, -1) if isinstance(size, str) else size for size in spec.shape]
    fits = array.ndim == len(wanted) and all(
        size in {-1, found} for size, found in zip(wanted, array.shape, strict=True)
    )
    if str(array.dtype) == spec.dtype and (fits or spec.varies):
        return
    found = f"{array.dtype} [{', '.join(map(str, array.shape))}]"
    lost = ""
    if array.ndim < len(wanted) and signature.batch in spec.shape and sizes.get(signature.batch or "") == 1:
        lost = ": the batch axis is lost, as squeeze() without an axis loses every axis of 1"
    raise GateFailed(f"{name}: with {_said(sizes)} {spec.name} is {found}, where it should be {spec.describe()}{lost}")


def _check_rows(
    runner: Runner, signature: Signature, supply: Samples, usual: Mapping[str, int], *, name: str, allowed: Movement
) -> None:
    """Compare each sample among others to itself alone, or in the smallest batch that the axis allows."""
    batch = signature.batch
    assert batch is not None  # the caller looked
    tried = _tried(signature.axes[batch], usual[batch], batch=True)
    tried = [size for size in tried if size == tried[0] or signature.nbytes({**usual, batch: size}) <= _MOST_BYTES]
    least, most = tried[0], tried[-1]
    whole = _inputs(signature, supply, {**usual, batch: most})
    outputs = [spec for spec in signature.outputs if batch in spec.shape and not spec.varies]
    pieces = [signature.take(whole, slice(start, start + least)) for start in range(0, most - most % least, least)]
    alone = [runner.run(piece) for piece in pieces]
    again = Movement(0.0 if allowed.rtol < 1e-3 else min(allowed.rtol, _MOST_AGAIN))
    if _differs(alone[0], runner.run(pieces[0]), outputs, again):
        raise GateFailed(
            f"{name} gives other answers to the same inputs from call to call",
            hint="something in it is random, such as dropout that stays on: put the module into evaluation mode",
        )
    for size in tried:
        if size == least:
            continue
        together = runner.run(signature.take(whole, slice(0, size)))
        each = signature.join([_outputs(one, outputs) for one in alone[: size // least]])
        among = signature.take(_outputs(together, outputs), slice(0, size - size % least))
        if worst := _differs(each, among, outputs, allowed):
            raise GateFailed(
                f"{name}: in a batch of {size} the samples depend on their neighbours: {worst}", hint=_INDEPENDENT_HINT
            )


def _outputs(outputs: Tensors, specs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
    return {spec.name: outputs[spec.name] for spec in specs}


def _differs(ones: Tensors, others: Tensors, specs: Sequence[TensorSpec], allowed: Movement) -> str:
    """Return which output differs by how much more than is allowed; empty if none does."""
    for spec in specs:
        one, other = ones[spec.name], others[spec.name]
        if one.shape != other.shape:
            return f"{spec.name} has another size"
        if not spec.is_float:
            share = float(np.mean(one != other)) if one.size else 0.0
            if share > max(min(allowed.rtol, _MOST_AGAIN), 0.01):  # an index of scores that tie may change
                return f"{percent(share, 1)} of {spec.name} differ"
            continue
        same = (one == other) | (np.isnan(one) & np.isnan(other))
        with np.errstate(invalid="ignore"):
            difference = np.where(same, 0.0, np.abs(one.astype(np.float64) - other.astype(np.float64)))
        finite = np.abs(one[np.isfinite(one)]).astype(np.float64)
        error = allowed.size(difference) / max(allowed.size(finite), 1e-12)
        if not error <= allowed.rtol:  # what is no number is no agreement
            return f"{spec.name} moves by {error:.2g} of its {'own size' if allowed.is_rms else 'largest value'}"
    return ""


def _varying(runner: Runner, signature: Signature, supply: Samples, sizes: Mapping[str, int], graph: Path) -> set[str]:
    """Return the outputs whose size depends on the values: by how the graph computes them, or because they were seen to."""
    inputs = {size for spec in signature.inputs for size in spec.shape if isinstance(size, str)}
    open_ended = [
        spec.name
        for spec in signature.outputs
        if any(isinstance(size, str) and size not in inputs for size in spec.shape)
    ]
    if not open_ended:
        return set()
    by_value = {name for name in open_ended if _depends_on_values(graph, name)}
    try:
        given = [supply.resized(signature, sizes), dict(seeded(signature, sizes=sizes, seed=1).inputs)]
        shapes = [{name: array.shape for name, array in runner.run(one).items()} for one in given]
    except KitError:
        return by_value  # the run at these sizes says why
    return by_value | {name for name in open_ended if shapes[0][name] != shapes[1][name]}


def _depends_on_values(graph: Path, output: str) -> bool:
    model = staging.read(graph)
    makers = {name: node for node in model.graph.node for name in node.output}
    waiting, seen = [output], set[str]()
    while waiting:
        node = makers.get(waiting.pop())
        if node is None:
            continue
        if node.op_type in _BY_VALUE:
            return True
        fresh = [name for name in node.input if name not in seen]
        seen.update(fresh)
        waiting += fresh
    return False


def _said(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in sizes.items()) or "its fixed sizes"
