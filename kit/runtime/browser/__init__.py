"""onnxruntime-web in headless Chromium behind the Runner protocol: what a page on somebody's machine computes, and how fast."""

from __future__ import annotations

import base64
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.bundle import Bundle
from kit.bundle.manifest import Variant
from kit.choices import Provider
from kit.errors import BundleInvalid, Unavailable
from kit.runtime.base import BaseRunner, Placement, RunnerOptions
from kit.runtime.browser import packages
from kit.runtime.browser.chromium import Tab
from kit.runtime.browser.pages import Pages
from kit.tensors import Signature, Tensors

HERE = Path(__file__).parent
SESSION = HERE / "session.js"

_MODEL = "model/"


class BrowserRunner(BaseRunner):
    """A variant in a page, on the CPU: WebAssembly with SIMD, and with threads if `options` asks for more than one.

    Calls are timed within the page: the way there and back takes longer than a small model does.

    Raises:
        Unavailable: No Chromium, no Playwright, or onnxruntime-web cannot be had.
        BundleInvalid: onnxruntime-web does not take the model.
    """

    runtime = "browser"
    provider = Provider.CPU
    slow_to_open = True

    def __init__(self, bundle: Bundle, variant: Variant, options: RunnerOptions) -> None:
        self.signature: Signature = bundle.signature
        self.placement = Placement({})
        self._folder = Path(tempfile.mkdtemp(prefix="kit-browser-"))
        self._closing: list[Any] = [lambda: shutil.rmtree(self._folder, ignore_errors=True)]
        try:
            packages.unpack(packages.RUNTIME, self._folder)
            pages = Pages(_finding(self._folder, {one.file: bundle.path(one) for one in variant.files()}))
            self._closing.append(pages.close)
            self._tab = Tab(f"{pages.address}bench.html")
            self._closing.append(self._tab.close)
            said = self._asked(
                "([given]) => window.kit.open(0, given)",
                {
                    "threads": options.threads,
                    "graph": _MODEL + variant.graph.file,
                    "data": {one.file: f"{pages.address}{_MODEL}{one.file}" for one in variant.data},
                },
            )
        except BaseException:
            self.close()
            raise
        self.version = str(said["version"])
        if options.threads > 1 and not said["isolated"]:
            self.close()
            raise Unavailable("the page may have no threads", hint="measure one: --threads 1")

    def run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        """Compute the outputs in the page."""
        self._give(tensors)
        found = self._asked("([]) => window.kit.run(0)")
        made = {one["name"]: _array(one) for one in found}
        return {spec.name: made[spec.name] for spec in self.signature.outputs}

    def times_us(self, tensors: Tensors, calls: int) -> NDArray[np.float64]:
        """Return latencies of about so many calls in microseconds, by the page's own clock.

        It steps by 5 us, so that each of them is the mean over enough calls to outlast 20 steps.
        """
        self._give(tensors)
        return np.array(self._asked("([calls]) => window.kit.time(0, calls)", calls), np.float64)

    def close(self) -> None:
        """End the browser and the server."""
        while self._closing:
            self._closing.pop()()

    def _give(self, tensors: Tensors) -> None:
        arrays = [np.ascontiguousarray(tensors[spec.name]) for spec in self.signature.inputs]
        given = [
            {
                "name": spec.name,
                "dtype": spec.dtype,
                "dims": list(array.shape),
                "data": base64.b64encode(array.tobytes()).decode("ascii"),
            }
            for spec, array in zip(self.signature.inputs, arrays, strict=True)
        ]
        self._asked("([given]) => window.kit.give(0, given)", given)

    def _asked(self, script: str, *arguments: Any) -> Any:
        try:
            return self._tab.call(script, list(arguments))
        except RuntimeError as error:
            raise BundleInvalid(f"onnxruntime-web does not run it: {str(error).splitlines()[0]}") from error


def _finding(runtime: Path, model: Mapping[str, Path]) -> Any:
    def find(name: str) -> Path | None:
        if name in {"bench.html", SESSION.name}:
            return HERE / name
        folder, _, file = name.rpartition("/")
        if folder == "ort" and (runtime / file).is_file():
            return runtime / file
        return model.get(file) if folder + "/" == _MODEL else None

    return find


def _array(found: Mapping[str, Any]) -> NDArray[Any]:
    data = base64.b64decode(found["data"])
    dtype = np.dtype(np.bool_ if found["dtype"] == "bool" else found["dtype"])
    return np.frombuffer(data, dtype).reshape(found["dims"]).copy()
