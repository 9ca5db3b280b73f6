"""Fixtures: small real bundles, made once, and the things a test may need that a machine may lack.

What is named in KIT_TEST_REQUIRE (such as "mnist browser") must be there: its tests then fail instead of being skipped.
Tests run in two worker processes; `pytest -n 0` runs them in this one. What is costly to make is made by the worker that
needs it first, and the other waits for it.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

import apps.cli
from kit.bundle import Bundle, create, open_folder, pack
from kit.bundle.manifest import Provenance
from kit.choices import Precision, Provider, QuantizationScheme
from kit.lab import data
from kit.runtime import providers
from kit.samples import Samples
from kit.tasks.image import ImageClassification

ROOT = Path(__file__).parent.parent
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)

# Threads of torch that wait for a busy core spin, and slow everyone down severalfold; small networks gain nothing from them.
# The workers and what the tests start inherit this, and nothing above has imported torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A first try in a child takes half a second for each file that a test makes; tests/test_trial.py asks for it.
os.environ.setdefault("KIT_TRUST_FILES", "1")

Kit = Callable[..., "subprocess.CompletedProcess[str]"]
Once = Callable[[str, Callable[[Path], object]], Path]

SCANS = 300
"""Pictures of the fixture `scans`."""


def _missing(what: str, reason: str) -> None:
    if what in os.environ.get("KIT_TEST_REQUIRE", "").split():
        pytest.fail(f"KIT_TEST_REQUIRE asks for {what}, but {reason}")
    pytest.skip(reason)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give the workers long tests first, so that none is left for the end, and those that need `_digits` last."""
    if hasattr(config, "workerinput"):  # one worker then makes it while the other has something else to do
        items.sort(
            key=lambda item: (not item.get_closest_marker("slow"), "_digits" in getattr(item, "fixturenames", ()))
        )


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not providers.prove(Provider.CUDA).works:
        _missing("gpu", providers.prove(Provider.CUDA).reason)
    if item.get_closest_marker("mnist") and not data.is_here("mnist"):
        _missing("mnist", f"MNIST is not in {data.default_dir()} (set KIT_DATA_DIR)")
    if item.get_closest_marker("browser") and CHROMIUM is None:
        _missing("browser", "Chromium is not installed")


@pytest.fixture(autouse=True)
def choices(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `kit tune` keeps its choices, here and in processes that the test starts: none of this machine's own."""
    folder = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("XDG_DATA_HOME", str(folder))
    path = folder / "kit" / "tuning.json"
    if sys.platform != "linux":
        monkeypatch.setattr("kit.runtime.choice.store_path", lambda: path)
    return path


@pytest.fixture(autouse=True)
def _converted(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what converters make of the tests' models out of the user's cache."""
    folder = tmp_path_factory.getbasetemp() / "converted"
    monkeypatch.setattr("kit.runtime.converted.folder", lambda: folder)


@pytest.fixture(autouse=True)
def _same_weights_in_any_order() -> None:
    """Seed torch, which draws the weights of untrained modules: no test may depend on those that ran before it."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture
def no_cuda() -> None:
    """Skip where CUDA works: what is tested is what happens without it."""
    if providers.prove(Provider.CUDA).works:
        pytest.skip("CUDA works here")


@pytest.fixture(scope="session")
def tiny_task() -> ImageClassification:
    """Pictures of 4x4 grey pixels, three classes: nothing to do with digits."""
    return ImageClassification(labels=("left", "right", "none"), pipeline="resize@1", mean=(0.4,), std=(0.2,))


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Make a folder once for all workers: `make` gets a folder to write, which takes its name when all is in it."""
    here = tmp_path_factory.getbasetemp()
    shared = here.parent if "PYTEST_XDIST_WORKER" in os.environ else here

    def made(name: str, make: Callable[[Path], object]) -> Path:
        done = shared / f"once-{name}"
        with FileLock(shared / f"once-{name}.lock"):
            if not done.is_dir():
                partial = tmp_path_factory.mktemp(name)
                make(partial)
                partial.rename(done)
        return done

    return made


@pytest.fixture(scope="session")
def _tiny(once: Once, tiny_task: ImageClassification) -> Path:
    def make(folder: Path) -> None:
        import torch

        import exporters
        from kit.lab import models

        torch.manual_seed(1)
        signature = tiny_task.signature(shape=(4, 4))
        module = models.build("mlp-8", shape=(16,), outputs=3).eval()
        pixels = np.random.default_rng(0).integers(0, 256, (256, 4, 4), dtype=np.uint8)
        with torch.inference_mode():
            logits = module((torch.tensor(pixels) / 255 - 0.4) / 0.2).numpy()
        bundle = create(
            folder / "tiny",
            name="tiny",
            signature=signature,
            task=tiny_task,
            golden=[Samples(inputs={"pixels": pixels}, expected={"logits": logits}, source="seeded noise")],
            tools={},
            original=Provenance(kind="architecture", name="mlp-8"),
            weights=models.save_weights(module),
        )
        exporters.export_bundle(bundle, exporters.ExportOptions())

    return once("tiny", make) / "tiny"


@pytest.fixture
def tiny(_tiny: Path, tmp_path: Path) -> Bundle:
    """A bundle of one fp32 variant, a fresh copy for each test."""
    return open_folder(Path(shutil.copytree(_tiny, tmp_path / "tiny")))


@pytest.fixture(scope="session")
def _duo(once: Once) -> Path:
    def make(folder: Path) -> None:
        import torch

        import exporters
        from tests.helpers.modules import Duo, duo_signature

        torch.manual_seed(2)
        exporters.export(Duo(), name="duo", signature=duo_signature(), out=folder / "duo")

    return once("duo", make) / "duo"


@pytest.fixture
def duo(_duo: Path, tmp_path: Path) -> Bundle:
    """Two inputs, two outputs, two dynamic axes and no task: plain tensors; a fresh copy for each test."""
    return open_folder(Path(shutil.copytree(_duo, tmp_path / "duo")))


@pytest.fixture(scope="session")
def _digits(once: Once) -> Path:
    def make(folder: Path) -> None:
        import exporters
        from kit.lab.training.loop import train
        from kit.lab.training.recipe import recipe
        from kit.lab.training.trained import save

        dataset = data.load("digits")
        short = dataclasses.replace(recipe("default", dataset="digits"), epochs=15)
        bundle = save(train(dataset, short, name="digits-mlp"), folder / "digits-mlp")
        both = (Precision.FP32, Precision.INT8)
        for scheme in (QuantizationScheme.STATIC, QuantizationScheme.DYNAMIC):
            options = exporters.ExportOptions(precisions=both, quantization=scheme)
            bundle = exporters.export_bundle(bundle, options).bundle

    return once("digits", make) / "digits-mlp"


@pytest.fixture
def digits(_digits: Path, tmp_path: Path) -> Bundle:
    """The main job's bundle on the embedded digits: fp32, int8-qdq and int8-dynamic; a fresh copy for each test."""
    return open_folder(Path(shutil.copytree(_digits, tmp_path / "digits-mlp")))


@pytest.fixture(scope="session")
def _quantized(once: Once, _digits: Path) -> Path:
    def make(folder: Path) -> None:
        import exporters

        bundle = open_folder(Path(shutil.copytree(_digits, folder / "digits-mlp")))
        every = exporters.ExportOptions(
            precisions=("fp16", "int8", "int4"), formats=("qdq", "qoperator", "pixel"), max_loss=0.01
        )
        bundle = exporters.export_bundle(bundle, every).bundle
        exporters.export_bundle(bundle, exporters.ExportOptions(precisions=("int8",), per_channel=False, max_loss=0.01))

    return once("quantized", make) / "digits-mlp"


@pytest.fixture
def quantized(_quantized: Path, tmp_path: Path) -> Bundle:
    """The digits in every precision and format; a fresh copy for each test."""
    return open_folder(Path(shutil.copytree(_quantized, tmp_path / "quantized")))


@pytest.fixture(scope="session")
def reviews(once: Once) -> Path:
    """A bundle that tells dull texts from nice ones, of any length up to 32 tokens; not to be written to."""

    def make(folder: Path) -> None:
        import torch
        from torch import nn

        import exporters
        from kit.tasks.text import TextClassification
        from kit.tensors import Axis, Signature, TensorSpec

        tokenizers = pytest.importorskip("tokenizers")
        words = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "a", "nice", "dull", "film"))}
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        made.save(str(folder / "tokenizer.json"))

        class Reviews(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.words = nn.Embedding(6, 2)

            def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
                return (self.words(input_ids) * attention_mask.unsqueeze(-1)).sum(dim=1)

        module = Reviews()
        module.words.weight.data = torch.tensor([[0.0, 0], [0, 0], [0, 0], [0, 5], [5, 0], [0, 0]])
        signature = Signature(
            inputs=tuple(
                TensorSpec(name=name, dtype="int64", shape=("batch", "sequence"), below=below)
                for name, below in (("input_ids", 6), ("attention_mask", 2))
            ),
            outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 2)),),
            axes={"sequence": Axis(most=32, typical=(4, 8))},
        )
        task = TextClassification(labels=("dull", "nice"), tokenizer=folder / "tokenizer.json", max_tokens=32)
        exporters.export(module, name="reviews", task=task, signature=signature, out=folder / "reviews")

    return once("reviews", make) / "reviews"


@pytest.fixture(scope="session")
def _scans(once: Once) -> Path:
    """Drawings enough for five chunks, and a file that is none."""

    def make(folder: Path) -> None:
        import numpy as np
        from PIL import Image

        random = np.random.default_rng(1)
        for number in range(SCANS):
            pixels = random.integers(0, 256, (16, 20), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:03}.png")
        (folder / "017.png").write_text("no picture")

    return once("scans", make)


@pytest.fixture
def scans(_scans: Path, tmp_path: Path) -> Path:
    (tmp_path / "scans").symlink_to(_scans, target_is_directory=True)
    return tmp_path / "scans"


@pytest.fixture(scope="session")
def scores(once: Once) -> Path:
    """A bundle that gives a number for a row of two columns; not to be written to."""

    def make(folder: Path) -> None:
        import torch

        import exporters
        from kit.tasks.table import Table
        from kit.tensors import Signature, TensorSpec

        torch.manual_seed(3)
        signature = Signature(
            inputs=(TensorSpec(name="features", dtype="float32", shape=("batch", 2)),),
            outputs=(TensorSpec(name="score", dtype="float32", shape=("batch", 1)),),
        )
        task = Table(columns=("age", "smoker"), categories={"smoker": ("no", "yes")})
        exporters.export(torch.nn.Linear(2, 1), name="scores", task=task, signature=signature, out=folder / "scores")

    return once("scores", make) / "scores"


@pytest.fixture(scope="session")
def web_packages(once: Once) -> None:
    """What `kit web` takes from npm, in the user's cache: fetched once, if it is not there yet."""
    from kit.errors import Unavailable
    from kit.runtime.browser import packages

    try:
        once("npm", lambda folder: [packages.unpack(one, folder) for one in (packages.RUNTIME, packages.TOKENIZERS)])
    except Unavailable as error:
        _missing("browser", str(error))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where packed files are unpacked, here and in processes that the test starts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if sys.platform != "linux":
        monkeypatch.setattr("kit.bundle.packed.cache_folder", lambda: tmp_path / "cache" / "kit" / "bundles")
    return tmp_path / "cache" / "kit" / "bundles"


@pytest.fixture
def packed(tiny: Bundle, tmp_path: Path, cache: Path) -> Path:  # noqa: ARG001 - nothing goes into the user's own cache
    """The tiny bundle as one file."""
    return pack(tiny, tmp_path)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell's background jobs ignore Ctrl-C and pass that on: without this, what a test starts would run forever."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    """Run `kit` as users do, in a process of its own, in an empty folder."""

    def run(*arguments: str, cwd: Path = tmp_path, **environment: str) -> subprocess.CompletedProcess[str]:
        program = str(Path(sys.executable).with_name("kit"))
        return subprocess.run(
            [program, *arguments],
            cwd=cwd,
            env={**os.environ, "COLUMNS": "140", **environment},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run


@pytest.fixture
def kit_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Kit]:
    """Run `kit` in this process, where torch is imported already: for commands that would import it again."""

    def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "140")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        urllib.request.install_opener(None)  # it keeps the proxies of the moment when it was first used
        code = apps.cli.run(list(arguments))
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    yield call
    urllib.request.install_opener(None)  # else whoever asks next is sent to this test's proxy


@pytest.fixture
def python(tmp_path: Path) -> Kit:
    """Run a Python program in a process of its own."""

    def run(program: str, *, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-c", program], cwd=cwd, capture_output=True, text=True, timeout=240, check=False
        )

    return run


__all__ = ["CHROMIUM", "ROOT", "Kit"]
