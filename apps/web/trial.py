"""Opens a page that was written in headless Chromium on this machine, and lets it prove itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.errors import VerifyFailed
from kit.runtime.browser.chromium import Tab
from kit.runtime.browser.pages import Pages, below


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a page found of itself.

    Attributes:
        samples: Golden samples whose answer agrees, and how many there are, by output of the variant shown first.
        items: Raw items that become the same tensors as in Python, and how many there are.
        most: The largest difference of an item's values.
        first_answer_ms: From asking for the page to the first answer.
    """

    samples: dict[str, tuple[int, int]]
    items: tuple[int, int]
    most: float
    first_answer_ms: float


def tried(folder: Path, variants: Sequence[str]) -> Trial:
    """Open a page and verify all of its variants.

    Raises:
        Unavailable: There is no browser here.
        VerifyFailed: The page does not come up, or a variant does not answer there as its bundle promises.
    """
    with Pages(below(folder)) as pages:
        tab = Tab(f"{pages.address}?plain")
        try:
            state = tab.call("() => document.documentElement.dataset.ready")
            if state != "yes":
                told = tab.call("() => document.getElementById('answer').textContent")
                raise VerifyFailed(f"the page does not come up in Chromium: {told}")
            first_ms = float(tab.call("() => window.kit.firstAnswer") or 0.0)
            found = {one: tab.call("(id) => window.kit.verify(id)", one) for one in variants}
        except RuntimeError as error:
            raise VerifyFailed(f"the page does not run in Chromium: {error}") from error
        finally:
            tab.close()
    for name, said in found.items():
        _refuse_failed(name, said)
    first = found[variants[0]]
    ways = first["ways"]
    return Trial(
        samples={one["output"]: (one["agreeing"], one["places"]) for one in first["outputs"]},
        items=(sum(one["different"] == 0 for one in ways), len(ways)),
        most=max((float(one["most"]) for one in ways), default=0.0),
        first_answer_ms=first_ms,
    )


def _refuse_failed(name: str, said: Mapping[str, Any]) -> None:
    for one in said["outputs"]:
        if not one["passed"]:
            raise VerifyFailed(
                f"{name} does not give in Chromium what its bundle promises: {one['output']}, rms error {one['rms']:.3g}, "
                f"and the bar is {one['bar']}",
                hint="offer another variant: --variant ID",
            )
    if not said["wayHolds"]:
        most = max(float(one["most"]) for one in said["ways"])
        raise VerifyFailed(f"items become other tensors in the page than in Python: they differ by {most:.3g}")
