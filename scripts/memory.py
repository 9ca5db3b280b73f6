"""Peak memory of every step, for models of 0.5 MB to 3 GB: the table of docs/size.md.

    python scripts/memory.py [--sizes 0.5 100 500 3000] [--folder FOLDER] [--json memory.json]

Each step runs in a process of its own. Its peak is what that process held at most, less what the same process holds for a
model of next to nothing, which is measured first: packages that are imported on the way, buffers that are always there. The
model is a stack of dense layers with random weights; the factor is the peak over the bytes of its weights. Mapped files
count as far as they were read. The folder needs about four times the largest model in free space, and is emptied afterwards.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIZES_MB = (0.5, 100.0, 500.0, 3000.0)
LEAST_MB = 0.01  # of the model that is next to nothing
LAYERS = 6
BATCH = 2

MODEL = """
import torch
from torch import nn

def stack():
    width = {width}
    torch.manual_seed(0)
    layers = [nn.Linear(width, width) for _ in range({layers})]
    return nn.Sequential(*layers).eval(), (torch.randn({batch}, width),)
"""

# What each process imports before its memory is read for the first time, and what it does then.
STEPS = {
    "export a module": (
        "import torch, exporters; exporters.export; import exporters.pipeline",
        "exporters.export('{module}:stack', out='from-module', name='from-module')",
    ),
    "export an .onnx": (
        "import exporters; exporters.export; import exporters.pipeline",
        "exporters.export('from-module/' + graph('from-module'), out='from-onnx', name='from-onnx')",
    ),
    "open and run": (
        "import numpy, kit, kit.engine, onnxruntime",
        "e = kit.load('from-module'); e.run({k: v[:1] for k, v in kit.find('from-module').golden()[0].inputs.items()})",
    ),
    "verify": (
        "import kit.verify, kit.bundle, onnxruntime",
        "assert kit.verify.verify(kit.bundle.find('from-module')).ok",
    ),
    "bench": (
        "import kit.bundle, kit.bench.run, onnxruntime",
        "from apps.cli import run; assert run(['bench', 'from-module', '--batch-size', '1', '--budget', '5s']) == 0",
    ),
    "pack": (
        "import kit.bundle",
        "kit.bundle.pack(kit.bundle.find('from-module'), __import__('pathlib').Path('packed'))",
    ),
    "unpack": (
        "import kit.bundle",
        "p = __import__('pathlib').Path; kit.bundle.unpack(next(p('packed').iterdir()), p('unpacked'))",
    ),
}

CHILD = """
import json, os, resource, sys, time
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def graph(bundle):
    manifest = json.load(open(bundle + "/manifest.json"))
    return manifest["variants"][0]["graph"]["file"]
sys.path.insert(0, os.getcwd())
{imports}
before, started = peak(), time.perf_counter()
{work}
print("MEASURED", json.dumps({{"before": before, "peak": peak(), "seconds": time.perf_counter() - started}}))
"""


def main() -> None:
    """Measure every step for every size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES_MB, help="megabytes of weights")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "kit-memory")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    empty = {row["step"]: row.get("peak", 0) for row in measured(LEAST_MB, arguments.folder, {})}
    rows = [row for size in arguments.sizes for row in measured(size, arguments.folder, empty)]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    print("\n".join(table(rows)))


def measured(size_mb: float, folder: Path, empty: dict[str, int]) -> list[dict[str, Any]]:
    """Run all steps for a model of a size, one process after the other; `empty` has the peaks of a model without weights."""
    width = max(8, round(math.sqrt(size_mb * 1e6 / 4 / LAYERS)))
    weights = 4 * LAYERS * (width * width + width)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "packed").mkdir(parents=True)
    (folder / "stacked.py").write_text(MODEL.format(width=width, layers=LAYERS, batch=BATCH))
    rows = []
    try:
        for step, (imports, work) in STEPS.items():
            program = CHILD.format(imports=imports, work=work.replace("{module}", "stacked"))
            started = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False
            )
            line = next((one for one in done.stdout.splitlines() if one.startswith("MEASURED")), "")
            row: dict[str, Any] = {
                "step": step,
                "weights_bytes": weights,
                "process_seconds": time.perf_counter() - started,
            }
            if line:
                found = json.loads(line.removeprefix("MEASURED"))
                above = max(found["peak"] - empty.get(step, found["before"]), 0)
                row |= {**found, "above": above, "factor": above / weights}
            else:
                row["error"] = (done.stderr.strip().splitlines() or ["no output"])[-1]
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return rows


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the rows as a table in Markdown: a line for each step, a column for each size."""
    sizes = list(dict.fromkeys(row["weights_bytes"] for row in rows))
    lines = ["| step | " + " | ".join(f"{size / 1e6:,.1f} MB" for size in sizes) + " |", "|---|" + "---:|" * len(sizes)]
    for step in STEPS:
        found = {row["weights_bytes"]: row for row in rows if row["step"] == step}
        cells = [_cell(found[size]) for size in sizes]
        lines.append(f"| {step} | " + " | ".join(cells) + " |")
    return lines


def _cell(row: dict[str, Any]) -> str:
    if "error" in row:
        return row["error"]
    return f"{row['above'] / 1e6:,.0f} MB ({row['factor']:.2f}x, {row['seconds']:,.1f} s)"


if __name__ == "__main__":
    main()
