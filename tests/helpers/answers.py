"""What `kit predict -o` wrote."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest


def rows_in(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of answers, whatever its form."""
    if path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        found: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
        return found
    if path.suffix == ".csv":
        return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
