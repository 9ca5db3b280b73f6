"""Runs that are killed and taken up again, teachers, several processes, and what a run leaves to look at."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from kit.bundle import find
from kit.errors import BadInput, ProviderUnavailable, UsageError
from kit.lab import data, models
from kit.lab.data import Dataset
from kit.lab.records import training_record
from kit.lab.training import confidence, figures
from kit.lab.training import recipe as recipes
from kit.lab.training.batches import Labelled
from kit.lab.training.loop import DivergedError, Epoch, InterruptedEarlyError, Listener, train
from kit.lab.training.recipe import Recipe, Teaching
from kit.lab.training.world import World, world
from kit.tasks.classification import probabilities
from tests.conftest import Kit

QUICK = Recipe(model="mlp-32", epochs=4, batch_size=128, batch_norm=True, average=0.9, calm=0.5)
TAUGHT = dataclasses.replace(
    QUICK,
    epochs=4,
    teaching=Teaching(
        teacher=Recipe(model="cnn-4-8-8", epochs=2, batch_size=128), count=2, views=3, calm_views=1, temperature=2.0
    ),
)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return data.load("digits")


def weights(result: object) -> bytes:
    return models.save_weights(result.module)  # type: ignore[attr-defined]


KILLED = """
import dataclasses, os, signal, sys
from pathlib import Path
from kit.lab import data
from kit.lab.training.loop import Listener, train
from tests.test_training_runs import QUICK, TAUGHT

recipe = {"quick": QUICK, "taught": TAUGHT}[sys.argv[1]]
phase, epoch = sys.argv[2], int(sys.argv[3])

def kill(done):
    if (done.phase, done.epoch) == (phase, epoch):
        os.kill(os.getpid(), signal.SIGKILL)

train(data.load("digits"), recipe, name="a", run_folder=Path(sys.argv[4]), checkpoint_seconds=0.0,
      listener=Listener(on_epoch=kill))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize(
    ("recipe", "phase", "epoch"),
    [
        pytest.param("quick", "student", 2, marks=pytest.mark.slow),
        pytest.param("taught", "teacher-1", 1, marks=pytest.mark.slow),
        pytest.param("taught", "student", 3, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_to_the_same_weights(
    dataset: Dataset, tmp_path: Path, recipe: str, phase: str, epoch: int
) -> None:
    line = [sys.executable, "-c", KILLED, recipe, phase, str(epoch), str(tmp_path)]
    root = Path(__file__).parent.parent
    # one thread in both: how a sum is split over threads changes its last bit
    killed = subprocess.run(
        line, env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}, cwd=root, check=False
    )
    assert killed.returncode == -9
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        chosen = {"quick": QUICK, "taught": TAUGHT}[recipe]
        told: list[tuple[str, int]] = []
        listener = Listener(on_epoch=lambda done: told.append((done.phase, done.epoch)))
        resumed = train(dataset, chosen, name="a", run_folder=tmp_path, resume=True, listener=listener)
        assert told[0] == (phase, epoch + 1)
        whole = train(dataset, chosen, name="a")
    finally:
        torch.set_num_threads(threads)
    assert weights(resumed) == weights(whole)
    assert len(resumed.record.history) == chosen.epochs


def test_a_checkpoint_of_another_run_or_a_broken_one_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    train(dataset, QUICK, name="a", run_folder=tmp_path)
    with pytest.raises(BadInput, match=r"another recipe or other data: lr 0.003, now 0.1"):
        train(dataset, dataclasses.replace(QUICK, lr=0.1), name="a", run_folder=tmp_path, resume=True)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"half a file")
    with pytest.raises(BadInput, match="no checkpoint"):
        train(dataset, QUICK, name="a", run_folder=tmp_path, resume=True)
    assert not list(tmp_path.glob(".partial-*"))


def test_resuming_without_a_checkpoint_is_a_start(dataset: Dataset, tmp_path: Path) -> None:
    assert train(dataset, QUICK, name="a", run_folder=tmp_path, resume=True).record.epochs_run == QUICK.epochs


def test_a_new_run_forgets_the_one_before(dataset: Dataset, tmp_path: Path) -> None:
    train(dataset, TAUGHT, name="a", run_folder=tmp_path)
    assert (tmp_path / "teacher-1.safetensors").exists()
    small_steps = dataclasses.replace(QUICK, batch_size=16)
    with pytest.raises(InterruptedEarlyError):
        train(dataset, small_steps, name="a", run_folder=tmp_path, listener=Listener(on_step=_interrupt))
    assert (tmp_path / "teacher-1.safetensors").exists(), "not before it has something of its own"
    train(dataset, QUICK, name="a", run_folder=tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["checkpoint.safetensors"]


def _interrupt(_what: str, _share: float) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("images", [256, 257, 258])
@pytest.mark.parametrize("size", [1, 2])
def test_there_are_as_many_steps_as_batches(images: int, size: int) -> None:
    one = World(device=torch.device("cpu"), size=size)
    recipe = dataclasses.replace(QUICK, augment=False)
    batches = Labelled(torch.zeros(images, 28, 28), torch.zeros(images), recipe, one)
    assert batches.steps == len(list(batches.epoch(1)))


@pytest.mark.parametrize("keep", ["best", "last"])
def test_ctrl_c_keeps_whole_epochs_and_resuming_goes_on_from_there(dataset: Dataset, tmp_path: Path, keep: str) -> None:
    recipe = dataclasses.replace(QUICK, keep=keep, batch_size=16)
    steps: list[float] = []

    def stop(_what: str, share: float) -> None:
        steps.append(share)
        if share > 0.6:  # in the middle of the third epoch
            raise KeyboardInterrupt

    early = train(dataset, recipe, name="a", run_folder=tmp_path, listener=Listener(on_step=stop))
    assert early.record.interrupted
    assert early.record.epochs_run == 2
    told: list[int] = []
    listener = Listener(on_epoch=lambda done: told.append(done.epoch))
    resumed = train(dataset, recipe, name="a", run_folder=tmp_path, resume=True, listener=listener)
    assert told == [3, 4]
    assert weights(resumed) == weights(train(dataset, recipe, name="a"))

    def stop_between(done: Epoch) -> None:
        if done.epoch == 2:
            raise KeyboardInterrupt

    between = train(dataset, recipe, name="a", listener=Listener(on_epoch=stop_between))
    assert weights(early) == weights(between), "nothing of the epoch that was cut short"


def test_a_loss_that_is_no_number_is_an_error(dataset: Dataset) -> None:
    with pytest.raises(DivergedError) as caught:
        train(dataset, Recipe(model="mlp-8", optimizer="sgd", lr=1e30), name="a")
    assert "--lr" in caught.value.hint


def test_batches_too_small_to_learn_from_are_refused_before_the_work(dataset: Dataset) -> None:
    with pytest.raises(UsageError, match="2 images or more"):
        train(dataset, dataclasses.replace(QUICK, batch_size=1), name="a")
    single = train(dataset, Recipe(model="mlp-8", batch_size=1, epochs=1, lr=1e-3), name="a")
    assert single.record.validation is not None
    assert single.record.validation.value > 0.3, "batches of one are all used"


def test_probabilities_at_the_edges() -> None:
    right = np.tile(np.array([[4.0, 0.0]], np.float32), (10, 1))
    assert confidence.fit(right, np.zeros(10, np.int64))[:2] == (1.0, None)
    same = np.tile(np.array([[2.0, 0.0]], np.float32), (2000, 1))
    labels = np.zeros(2000, np.int64)
    labels[::6] = 1
    _, _, found = confidence.fit(same, labels)
    assert found.answered == 1.0


def test_the_record_recipe_claims_only_what_was_found_for_it() -> None:
    assert recipes.recipe("record", dataset="mnist").confidence is not None
    assert recipes.recipe("record", dataset="fashion-mnist").confidence is None
    with pytest.raises(UsageError, match="nothing to learn from"):
        dataclasses.replace(recipes.recipe("record", dataset="mnist"), augment=False)


def test_an_interrupted_teacher_leaves_nothing_to_publish(dataset: Dataset, tmp_path: Path) -> None:
    def stop(epoch: Epoch) -> None:
        if epoch.phase == "teacher-1":
            raise KeyboardInterrupt

    with pytest.raises(InterruptedEarlyError) as caught:
        train(dataset, TAUGHT, name="a", run_folder=tmp_path, listener=Listener(on_epoch=stop))
    assert "--resume" in caught.value.hint


@pytest.mark.slow
def test_a_student_learns_from_its_teachers(dataset: Dataset) -> None:
    teacher = Recipe(model="cnn-8-16-16", epochs=6, batch_size=64)
    recipe = dataclasses.replace(TAUGHT, epochs=20, lr=0.01, teaching=Teaching(teacher=teacher, count=1, views=4))
    result = train(dataset, recipe, name="a")
    assert result.record.validation is not None
    assert result.record.validation.value > 0.9
    assert result.record.recipe["teaching.teacher.model"] == "cnn-8-16-16"
    with pytest.raises(UsageError):
        Teaching(teacher=TAUGHT)


def test_batch_normalisation_is_folded_away(dataset: Dataset) -> None:
    trained = models.build("mlp-16-8", shape=(28, 28), outputs=10, batch_norm=True)
    images = torch.randn(256, 28, 28)
    for _ in range(5):
        trained(images)
    plain = models.folded(trained.eval())
    assert not any(isinstance(layer, torch.nn.BatchNorm1d) for layer in plain.modules())
    assert torch.allclose(trained(images), plain(images), atol=1e-5)
    assert train(dataset, QUICK, name="a").module.state_dict().keys() == plain.state_dict().keys() - {
        "layers.5.weight",
        "layers.5.bias",
    }


def test_all_images_may_be_trained_on(dataset: Dataset) -> None:
    recipe = dataclasses.replace(QUICK, val_fraction=0.0, confidence=(1.2, 0.5))
    result = train(dataset, recipe, name="a")
    assert result.record.validation is None
    assert result.record.best_epoch == QUICK.epochs
    assert (result.blueprint.temperature, result.blueprint.abstain_below) == (1.2, 0.5)


def test_a_temperature_mends_probabilities_that_are_too_sure() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, (4000, 10)).astype(np.float32)
    cumulative = probabilities(true, 1.0).cumsum(axis=1)
    labels = (rng.random((4000, 1)) > cumulative).sum(axis=1).clip(0, 9).astype(np.int64)
    temperature, threshold, found = confidence.fit(true * 3, labels)
    assert temperature == pytest.approx(3.0, rel=0.1)
    assert found.expected_error < 0.03 < found.expected_error_raw
    assert threshold is not None
    assert found.answered == pytest.approx(0.95, abs=0.001)


def test_the_abstain_threshold_silences_the_doubtful_and_few_others() -> None:
    labels = np.zeros(2000, np.int64)
    logits = np.tile(np.array([[8.0, 0.0]], np.float32), (2000, 1))
    logits[:40] = [0.0, 0.5]  # wrong, and not sure of it
    _, threshold, found = confidence.fit(logits, labels)
    assert threshold is not None
    assert (found.answered, found.answered_top1) == (0.98, 1.0)
    _, never, _ = confidence.fit(logits[40:], labels[40:])
    assert never is None


def test_what_a_run_leaves_can_be_looked_at(dataset: Dataset, tmp_path: Path) -> None:
    result = train(dataset, QUICK, name="a")
    files = figures.save(result, tmp_path)
    assert {path.name for path in files} == {
        "curve.json",
        "curve.png",
        "confusion.png",
        "calibration.png",
        "misread.png",
    }
    assert len(json.loads((tmp_path / "curve.json").read_text())) == QUICK.epochs
    for path in files:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert min(picture.size) > 50


def test_a_device_that_is_not_there_is_an_error() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ProviderUnavailable, match="no CUDA"), world("cuda"):
        pass


@pytest.mark.gpu
def test_training_stays_on_the_gpu(dataset: Dataset) -> None:
    with world("cuda") as gpu:
        result = train(dataset, dataclasses.replace(TAUGHT, epochs=6), name="a", world=gpu)
    assert result.record.device.startswith("cuda")
    assert result.record.validation is not None
    assert result.record.validation.value > 0.5


SHORT = ("--dataset", "digits", "--model", "mlp-64-64", "--epochs", "3", "--batch-size", "64")


def test_the_command_leaves_a_bundle_a_run_folder_and_events(kit_inside: Kit, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    made = kit_inside("train", *SHORT, "--out", "a", "--log-dir", "events")
    assert made.returncode == 0, made.stderr
    assert "calibration error" in made.stderr
    assert list((tmp_path / "events").glob("events.out.tfevents.*"))
    assert (tmp_path / "a.run" / "misread.png").exists()
    assert find(str(tmp_path / "a")).manifest.task.options["temperature"] != 1.0
    again = kit_inside("train", *SHORT, "--out", "a", "--resume")
    assert again.returncode == 0, again.stderr
    assert "epoch   1/3" not in again.stderr, "nothing was left to do"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="gloo between processes is proved on Linux")
def test_two_processes_share_the_work(tmp_path: Path) -> None:
    torchrun, kit = (str(Path(sys.executable).with_name(name)) for name in ("torchrun", "kit"))
    line = [torchrun, "--standalone", "--nproc-per-node=2", "--no-python", kit, "train", *SHORT]
    epochs = ["--epochs", "12", "--out", "two"]
    done = subprocess.run(
        [*line, *epochs, "--device", "cpu"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    bundle = find(str(tmp_path / "two"))
    record = training_record(bundle)
    assert record is not None
    assert record.validation is not None
    assert record.validation.value > 0.9
    assert done.stderr.count("epoch   1/12") == 1, "one of them speaks"
    assert load_file(bundle.path(bundle.manifest.original.weights))["layers.1.weight"].shape == (64, 784)  # type: ignore[arg-type]
