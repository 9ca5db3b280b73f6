"""What an ONNX Runtime session takes and gives, as a Signature; and whether it is what a manifest says."""

from __future__ import annotations

from typing import Any

from kit.errors import BundleInvalid
from kit.tensors import BATCH, DTYPES, Signature, Sizes, Tensors, TensorSpec

_NAMES = {"float": "float32", "double": "float64"}
_HINTS = {
    "string": "do the work on text before the graph, and give it numbers",
    "bfloat16": "cast to float32 inside the graph",
}
_OTHERWISE = "kit runs models of plain tensors: " + ", ".join(DTYPES)


def of_session(session: Any) -> Signature:
    """Read a signature from a session.

    A size without a name gets one: `batch` where a tensor begins, else the tensor's name and the place, such as `image_2`.
    The batch is the axis with which every input begins that begins with an axis; without a single one there is no batch.

    Raises:
        BundleInvalid: A tensor is of a kind that kit does not run; the message says which.
    """
    inputs = tuple(_spec(one) for one in session.get_inputs())
    outputs = tuple(_spec(one) for one in session.get_outputs())
    if not inputs:
        raise BundleInvalid("the model has no inputs", hint="there is nothing to give it")
    try:
        return Signature(inputs=inputs, outputs=outputs, batch=_batch(inputs))
    except ValueError as error:
        raise BundleInvalid(f"the model's inputs and outputs cannot be told apart: {error}") from error


def check_session(session: Any, signature: Signature) -> None:
    """Raise BundleInvalid unless a session takes and gives what a signature says, for all that the graph tells."""
    for kind, found, wanted in (
        ("input", session.get_inputs(), signature.inputs),
        ("output", session.get_outputs(), signature.outputs),
    ):
        has = {one.name: one for one in found}
        names = [spec.name for spec in wanted]
        if set(has) != set(names):
            raise BundleInvalid(f"the graph has the {kind}s {sorted(has)}, expected {sorted(names)}")
        for spec in wanted:
            _check_tensor(kind, has[spec.name], spec)


def check_outputs(outputs: Tensors, signature: Signature, sizes: Sizes) -> None:
    """Raise BundleInvalid unless outputs are of the dtypes and shapes that a signature says."""
    for spec in signature.outputs:
        array, known = outputs[spec.name], dict(sizes)
        fits = array.dtype == spec.dtype and array.ndim == len(spec.shape)
        if fits and not spec.varies:
            pairs = zip(spec.shape, array.shape, strict=True)
            fits = all((known.setdefault(one, size) if isinstance(one, str) else one) == size for one, size in pairs)
        if not fits:
            raise BundleInvalid(
                f"the output {spec.name} must be {spec.describe()}, and the model gave {array.dtype} {list(array.shape)}"
                + (f" for {', '.join(f'{name} {size}' for name, size in sizes.items())}" if sizes else "")
            )


def _check_tensor(kind: str, found: Any, spec: TensorSpec) -> None:
    dtype, shape = _dtype(found), tuple(found.shape)
    ranks_differ = len(shape) != len(spec.shape) and (shape or kind == "input")  # of an output, () may mean unknown
    sizes_differ = not ranks_differ and any(
        isinstance(one, int) and isinstance(other, int) and one != other
        for one, other in zip(shape, spec.shape, strict=False)
    )
    if dtype != spec.dtype or ranks_differ or sizes_differ:
        raise BundleInvalid(f"the {kind} {spec.name} of the graph is {dtype} {list(shape)}, expected {spec.describe()}")


def _spec(found: Any) -> TensorSpec:
    shape = tuple(_axis(found.name, place, size) for place, size in enumerate(found.shape))
    return TensorSpec(name=found.name, dtype=_dtype(found), shape=shape)


def _axis(name: str, place: int, size: Any) -> int | str:
    if isinstance(size, int) and size >= 0:
        return size
    if isinstance(size, str) and size not in {"", "?"}:
        return size
    return BATCH if place == 0 else f"{name}_{place}"


def _dtype(found: Any) -> str:
    """Return numpy's word for a type as ONNX Runtime writes it, such as `tensor(float)`."""
    kind, _, rest = str(found.type).partition("(")
    element = rest.removesuffix(")")
    dtype = _NAMES.get(element, element)
    if kind == "tensor" and dtype in DTYPES:
        return dtype
    what = {"seq": "a sequence", "map": "a map", "optional": "optional", "sparse_tensor": "a sparse tensor"}
    described = what.get(kind, f"a tensor of {element}")
    raise BundleInvalid(f"{found.name} is {described}, which kit does not run", hint=_HINTS.get(element, _OTHERWISE))


def _batch(inputs: tuple[TensorSpec, ...]) -> str | None:
    first = {spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], str)}
    (only,) = first if len(first) == 1 else (None,)
    return str(only) if only is not None else None
