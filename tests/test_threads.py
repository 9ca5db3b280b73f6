"""How many threads training takes: as a short trial finds them, however many CPUs there are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kit.lab import data, models
from kit.lab.training.loop import blueprint_for, train
from kit.lab.training.recipe import Recipe
from kit.lab.training.threads import Found, quickest, rehearsal
from kit.lab.training.world import World
from kit.system.machine import this_machine
from tests.conftest import Kit

QUICK = Recipe(model="mlp-32", epochs=1, batch_size=128)


class Machine:
    """A clock, and work that takes as long as its threads need.

    Args:
        seconds: Of the work, by threads.
    """

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds, self.now, self.threads = seconds, 0.0, 0
        self.tried: list[int] = []

    def set_threads(self, threads: int) -> None:
        self.threads = threads
        self.tried.append(threads)

    def work(self) -> None:
        self.now += self.seconds[self.threads]

    def quickest(self, most: int) -> Found:
        return quickest(self.work, most, set_threads=self.set_threads, clock=lambda: self.now)


@pytest.mark.parametrize(
    ("seconds", "threads"),
    [
        ({1: 1.0, 2: 0.6}, 2),
        ({1: 1.0, 2: 4.3}, 1),
        ({1: 1.0, 2: 0.97}, 1),
        ({1: 1.0, 2: 0.6, 4: 0.4, 6: 0.39}, 4),
        ({1: 1.0}, 1),
    ],
)
def test_the_fewest_threads_win_that_are_about_as_quick(seconds: dict[int, float], threads: int) -> None:
    machine = Machine(seconds)
    found = machine.quickest(max(seconds))
    assert found.threads == threads
    assert machine.threads == threads
    assert found.seconds == pytest.approx(seconds)


def test_what_became_hopeless_is_tried_no_further() -> None:
    machine = Machine({1: 1.0, 2: 3.0, 4: 9.0, 8: 27.0})
    assert machine.quickest(8).threads == 1
    assert 4 not in machine.tried


def test_a_busy_machine_is_said_to_be_busy() -> None:
    cpus = this_machine().logical_cpus
    busy = Found(threads=1, seconds={1: 1.0, max(cpus, 2): 4.3}, others=cpus - 0.5)
    assert f"other processes use {cpus - 0.5:.1f} of {cpus} CPUs" in busy.remark()
    assert f"1 thread, 4.30x as fast as {max(cpus, 2)}" in busy.remark()
    idle = Found(threads=1, seconds={1: 1.0, max(cpus, 2): 4.3}, others=None)
    assert idle.remark() == f"Training takes 1 thread, 4.30x as fast as {max(cpus, 2)} here."
    assert Found(threads=2, seconds={1: 1.0, 2: 0.6}, others=0.0 if cpus > 1 else None).remark() == ""


@pytest.mark.slow
def test_a_rehearsal_changes_nothing_of_what_comes_after() -> None:
    dataset = data.load("digits")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    images = torch.from_numpy(dataset.train.images)
    normalization = blueprint_for(dataset, QUICK).normalization
    work = rehearsal(images, QUICK, World(device=torch.device("cpu")), outputs=10, normalization=normalization)
    plain = models.save_weights(train(dataset, QUICK, name="plain").module)
    torch.set_rng_state(before)
    work()
    work()
    assert torch.equal(torch.get_rng_state(), before)
    assert models.save_weights(train(dataset, QUICK, name="again").module) == plain


@pytest.mark.slow
def test_those_who_know_name_the_threads_and_a_run_goes_on_with_those_it_began_with(
    kit_inside: Kit, tmp_path: Path
) -> None:
    line = ("train", "--dataset", "digits", "--model", "mlp-64-64")
    before = torch.get_num_threads()
    try:
        assert kit_inside(*line, "--epochs", "2", "--threads", "2").returncode == 0
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        done = kit_inside(*line, "--epochs", "2", "--resume")
        assert done.returncode == 0, done.stderr
        assert torch.get_num_threads() == 2
        assert kit_inside(*line, "--threads", "0").returncode == 2
    finally:
        torch.set_num_threads(before)
    assert (tmp_path / "artifacts" / "my-digits-mlp-64-64.run").is_dir()
