"""Made-up noise in the shape of real recordings, fixed by seeds: what a timing series looks like without any clock.

A series is the logarithm of per-round medians of two contestants, `[rounds, 2]`. Most noise belongs to the machine and
goes on in time (`mood`): both contestants meet it, one after the other, in an order that changes from round to round. Some
is a contestant's own. The magnitudes follow recordings of one file opened twice on shared virtual machines: a core of
0.3 %, episodes of some ten turns in which everything takes a third to a half longer, single turns that are hit, drift.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.float64]
Rng = np.random.Generator


def _quiet(_rng: Rng, turns: int) -> Series:
    return np.zeros(turns)


def _drift(rng: Rng, turns: int) -> Series:
    return np.cumsum(rng.normal(0, 0.01, turns))


def _spikes(rng: Rng, turns: int) -> Series:
    return (rng.random(turns) < 0.05) * rng.uniform(0.1, 0.5, turns)


def _two_modes(rng: Rng, turns: int) -> Series:
    """Fast and slow, in episodes of 25 and 10 turns on average."""
    slow, mode = rng.random() < 0.3, np.zeros(turns)
    for turn, chance in enumerate(rng.random(turns)):
        slow = slow != (chance < (0.1 if slow else 0.04))
        mode[turn] = slow
    return 0.35 * mode


def _autocorrelated(rng: Rng, length: int, rho: float, spread: float = 0.02) -> Series:
    steps = rng.normal(0, spread * math.sqrt(1 - rho**2), length)
    values = np.empty(length)
    last = rng.normal(0, spread)
    for index, step in enumerate(steps):
        last = values[index] = rho * last + step
    return values


def _all_at_once(rng: Rng, turns: int) -> Series:
    return _drift(rng, turns) + _spikes(rng, turns) + _two_modes(rng, turns)


MOODS: dict[str, Callable[[Rng, int], Series]] = {
    "quiet": _quiet,
    "drift": _drift,
    "spikes": _spikes,
    "two modes": _two_modes,
    "autocorrelation": lambda rng, turns: _autocorrelated(rng, turns, 0.9, 0.05),
    "all at once": _all_at_once,
}
OWN: dict[str, float] = {"own noise": 0.0, "own autocorrelation 0.5": 0.5, "own autocorrelation 0.8": 0.8}
"""Noise that interleaving cannot share out: 2 % for each contestant by itself, and how much of it stays from round to round."""

_PLACES = "places in memory"
_OPENING = 4  # rounds
_PLACE = 0.028
"""Spread of what the place in memory costs, drawn anew at each opening: fp32 of 2.3 MB on a second-level cache of 2 MB."""

KINDS = (*MOODS, *OWN, _PLACES)


def series(kind: str, seed: int, rounds: int) -> Series:
    """Return the logarithms of two equal contestants' medians, `[rounds, 2]`."""
    rng = np.random.default_rng((KINDS.index(kind), seed))
    own = rng.normal(0, 0.004, (rounds, 2))
    if kind in OWN:
        return own + np.stack([_autocorrelated(rng, rounds, OWN[kind]) for _ in range(2)], axis=1)
    if kind == _PLACES:
        return own + rng.normal(0, _PLACE, (-(-rounds // _OPENING), 2)).repeat(_OPENING, axis=0)[:rounds]
    mood = MOODS[kind](rng, 2 * rounds).reshape(rounds, 2)
    swapped = rng.random(rounds) < 0.5
    return own + np.where(swapped[:, np.newaxis], mood[:, ::-1], mood)
