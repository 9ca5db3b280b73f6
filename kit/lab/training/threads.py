"""How many threads training takes, measured: beside a busy neighbour, threads that spin wait for each other.

found = quickest(rehearsal(images, recipe, world, outputs=10), most=8)
found.threads, found.remark()
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from kit.bench.conditions import Watch
from kit.lab import models
from kit.lab.blueprint import Normalization
from kit.lab.training.batches import Labelled
from kit.lab.training.recipe import Recipe
from kit.lab.training.trainer import Trainer
from kit.lab.training.world import World
from kit.system.machine import this_machine
from kit.system.wording import counted, times

_STEPS = 8  # of a rehearsal: a fifth of a second for a small network
_ROUNDS = 3
_HOPELESS = 1.5  # times as long as the quickest so far: more threads are not tried
_GAIN = 0.05  # share by which more threads must be quicker: they are somebody else's as well
_BUSY = 0.3  # CPUs


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a measurement found.

    Attributes:
        threads: As many as were quickest, or fewer that were as quick.
        seconds: Of the rehearsal, by the number of threads.
        others: CPUs' worth of time that other processes used meanwhile; None if the system does not tell.
    """

    threads: int
    seconds: dict[int, float]
    others: float | None = None

    @property
    def is_busy(self) -> bool:
        """Whether other processes use CPUs that training could have."""
        return self.others is not None and this_machine().logical_cpus - self.others < max(self.seconds) - _BUSY

    def remark(self) -> str:
        """Return what a person should know: that the machine is busy, or why not all CPUs are used; else nothing."""
        most = max(self.seconds)
        said = f"training takes {counted(self.threads, 'thread')}"
        if self.threads != most:
            said += f", {times(self.seconds[most] / self.seconds[self.threads])} as fast as {most}"
        if self.is_busy and self.others is not None:
            cpus = this_machine().logical_cpus
            return f"This machine is busy, other processes use {self.others:.1f} of {cpus} CPUs: {said}."
        return "" if self.threads == most else f"{said[0].upper()}{said[1:]} here."


def rehearsal(
    images: torch.Tensor, recipe: Recipe, world: World, *, outputs: int, normalization: Normalization
) -> Callable[[], object]:
    """Return a function that takes a few steps of training, with weights of its own, on the first of the images.

    They are uint8 `[N, height, width]`. Random numbers go on as if the weights had not been drawn.
    """
    few = images[: _STEPS * recipe.batch_size]
    labels = torch.zeros(len(few), dtype=torch.int64)
    with torch.random.fork_rng(devices=[]):
        height, width = images.shape[1:]
        module = models.build(recipe.model, shape=(height, width), outputs=outputs, batch_norm=recipe.batch_norm)
    trainer = Trainer(module, recipe, Labelled(few, labels, recipe, world), normalization, world)
    return lambda: trainer.epoch(1)


def quickest(
    work: Callable[[], object],
    most: int,
    *,
    set_threads: Callable[[int], None] = torch.set_num_threads,
    clock: Callable[[], float] = time.perf_counter,
) -> Found:
    """Find how many threads, of 1, 2, 4, ... and `most`, do some work quickest; that many are set when it returns."""

    def seconds_of_work() -> float:
        started = clock()
        work()
        return clock() - started

    watch = Watch()
    taken: dict[int, list[float]] = {}
    for threads in _to_try(most):
        set_threads(threads)
        work()  # the first time, threads are started and memory is taken
        taken[threads] = [seconds_of_work()]
        if taken[threads][0] > _HOPELESS * min(first for first, *_ in taken.values()):
            break
    for _ in range(_ROUNDS - 1):
        for threads, seconds in taken.items():
            set_threads(threads)
            seconds.append(seconds_of_work())
    found = {threads: statistics.median(seconds) for threads, seconds in taken.items()}
    best = min(found.values())
    chosen = next(threads for threads, seconds in found.items() if seconds <= best * (1 + _GAIN))
    set_threads(chosen)
    return Found(threads=chosen, seconds=found, others=watch.conditions().other_cpus)


def _to_try(most: int) -> list[int]:
    return [*(2**power for power in range(most.bit_length()) if 2**power < most), most]
