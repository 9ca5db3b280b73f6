"""The half of a Runner that runtimes share which prepare a model for the sizes of its inputs, as compilers do."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from kit.choices import Provider
from kit.errors import UsageError
from kit.runtime import signatures
from kit.runtime.base import (
    MOST_BINDINGS,
    BaseRunner,
    Binding,
    Placement,
    RecentBindings,
    copied,
    refuse_varying,
)
from kit.tensors import Signature, Sizes, Tensors


class SizedRunner(BaseRunner):
    """A model on the CPU that `_prepared` binds for each size of its inputs anew; the sizes used last stay ready."""

    provider = Provider.CPU

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.placement = Placement({})
        self._outputs = [spec.name for spec in signature.outputs]
        self._bindings = RecentBindings(MOST_BINDINGS)
        self._is_open = True
        self._is_checked = False

    def run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        """Compute the outputs; the first call of a size prepares the model for it."""
        self._refuse_closed()
        sizes = self.signature.check(tensors)
        arrays = [tensors[spec.name] for spec in self.signature.inputs]
        shapes = tuple([array.shape for array in arrays])
        bound = self._bindings.get(shapes) or self._bindings.keep(shapes, self._prepared(sizes))
        outputs = copied(bound.run(*arrays), self._outputs)
        if not self._is_checked:
            signatures.check_outputs(outputs, self.signature, sizes)
            self._is_checked = True
        return outputs

    def bind(self, sizes: Sizes) -> Binding:
        """Prepare the model for inputs of these sizes, and bind buffers; an axis left out has its usual size."""
        self._refuse_closed()
        refuse_varying(self.signature)
        return self._prepared(self.signature.usual_sizes(**sizes))

    def _prepared(self, sizes: Sizes) -> Binding:
        raise TypeError(f"{type(self).__name__} must say how it prepares a model for {dict(sizes)}")

    def _refuse_closed(self) -> None:
        if not self._is_open:
            raise UsageError("this runner was closed")

    def close(self) -> None:
        """Free the models that are ready; those of bindings stay as long as these."""
        self._is_open = False
        self._bindings.clear()
