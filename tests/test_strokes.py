"""Digits drawn by strokes: in which shape they come, that training takes them, and signs that are no digits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from kit.errors import UsageError
from kit.lab.data.sets import Split
from kit.lab.data.strokes import FORMS, NO_DIGIT, draw_digits
from kit.lab.training.batches import Labelled
from kit.lab.training.loop import with_drawings
from kit.lab.training.recipe import Recipe, recipe
from kit.lab.training.world import World


def test_drawings_lie_in_their_picture_as_digits_of_mnist_do() -> None:
    drawn = draw_digits(200, signs=40, seed=0)
    assert drawn.images.shape == (240, 28, 28)
    assert drawn.images.dtype == np.uint8
    assert [int((drawn.labels == digit).sum()) for digit in range(10)] == [20] * 10
    assert (drawn.labels[200:] == NO_DIGIT).all()
    for image in drawn.images:
        rows, columns = np.nonzero(image > 40)
        assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
        assert image.max() > 200
        weights = image / image.sum()
        middle = [float((weights.sum(axis=axis) * np.arange(28)).sum()) for axis in (0, 1)]
        assert np.allclose(middle, 13.5, atol=1.1)


def test_the_same_seed_draws_the_same_and_another_one_others() -> None:
    one, same, other = (draw_digits(30, signs=3, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.images, same.images)
    assert not np.array_equal(one.images, other.images)
    assert len(draw_digits(0, signs=0, seed=0)) == 0
    assert all(len({image.tobytes() for image in drawn.images}) == 33 for drawn in (one, other))


def test_every_form_can_be_drawn() -> None:
    assert sorted(FORMS) == list(range(10))
    for seed in range(4):
        drawn = draw_digits(10 * max(map(len, FORMS.values())), signs=60, seed=seed)
        ink = drawn.images.astype(float).sum(axis=(1, 2)) / 255
        assert 10 < ink.min() < ink.max() < 320


def test_the_record_recipe_trains_on_drawings_of_digits_alone() -> None:
    chosen = recipe("record", dataset="mnist")
    assert chosen.drawn > 0 < chosen.signs
    for name, dataset in (("record", "fashion-mnist"), ("default", "mnist"), ("article", "mnist")):
        other = recipe(name, dataset=dataset)
        assert other.drawn == other.signs == 0
    own = Split(np.zeros((5, 28, 28), np.uint8), np.arange(5))
    learnt = with_drawings(own, dataclasses.replace(chosen, drawn=20, signs=3))
    assert len(learnt) == 5 + 20 + 3
    assert np.array_equal(learnt.labels[:5], own.labels)
    assert with_drawings(own, Recipe()) is own
    with pytest.raises(UsageError, match="28x28"):
        with_drawings(Split(np.zeros((5, 8, 8), np.uint8), np.arange(5)), Recipe(drawn=10))


def test_of_a_sign_training_asks_that_every_digit_be_as_likely() -> None:
    batches = Labelled(torch.zeros(4, 28, 28), torch.zeros(4), Recipe(), World(device=torch.device("cpu")))
    sure, unsure = torch.tensor([[9.0, 0.0, 0.0]]), torch.zeros(1, 3)
    sign, second = torch.tensor([NO_DIGIT]), torch.tensor([1])
    assert batches.loss(unsure, sign) < batches.loss(sure, sign)
    both = batches.loss(torch.cat([sure, unsure]), torch.cat([second, sign]))
    assert torch.isclose(both, (batches.loss(sure, second) + batches.loss(unsure, sign)) / 2)
