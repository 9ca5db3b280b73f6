"""The notebook in docs/: it runs from the first cell to the last, and what it shows is what it promises."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow
NOTEBOOK = ROOT / "docs" / "own_model.ipynb"


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The cells, run in an empty folder."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    found: list[Any] = notebook.cells
    return found


def test_the_notebook_runs_as_printed(cells: list[Any]) -> None:
    said = "\n".join(_text(output) for cell in cells for output in cell.get("outputs", []))
    assert re.search(r"PyTorch: (38\d|39\d) of 397 test images right", said)
    assert "everything its manifest promises holds" in said
    assert "int8-qdq" in said
    assert re.search(r"FASTER|SLOWER|SAME|INCONCLUSIVE", said)
    assert re.search(r"[78] of 8 right", said)
    assert ".kit" in said
    assert "\x1b[2K" not in said  # a notebook keeps every line of a progress bar
    kinds = {kind for cell in cells for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert {"image/png", "text/html"} <= kinds


def test_the_notebook_holds_the_output_of_a_run() -> None:
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(cell.outputs for cell in notebook.cells if cell.cell_type == "code")


def _text(output: Any) -> str:
    return str(output.get("text") or output.get("data", {}).get("text/plain", ""))
