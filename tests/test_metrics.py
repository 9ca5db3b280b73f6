"""Metrics and fidelity: right values, whatever the layout, and no comparison that is blind."""

from __future__ import annotations

import dataclasses
import math
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kit import metrics
from kit.choices import Precision
from kit.errors import UsageError
from kit.metrics import fidelity, intervals
from kit.samples import Samples
from kit.tensors import Signature, TensorSpec

SCORES = np.array([[2.0, 1.0], [3.0, 0.0], [0.0, 5.0], [4.0, 1.0]], np.float32)


def value(name: str, outputs: dict[str, Any], **given: Any) -> metrics.Values:
    context = {key: given.pop(key) for key in ("signature", "output") if key in given}
    rows = len(next(iter(outputs.values())))
    samples = Samples(inputs=given.pop("inputs", {"x": np.zeros(rows)}), **given)
    return metrics.evaluate(metrics.find(name), [outputs], [samples], **context)


def like(*outputs: TensorSpec, batch: str | None = "batch", inputs: tuple[int | str, ...] = ("batch",)) -> Signature:
    return Signature(inputs=(TensorSpec(name="x", dtype="float64", shape=inputs),), outputs=outputs, batch=batch)


def spec(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)


def test_labels_of_any_shape_that_means_the_same_give_the_same_score() -> None:
    right = np.array([0, 0, 1, 0])
    for labels in (right, right[:, np.newaxis], right.astype(np.int32)):
        assert value("top-1", {"logits": SCORES}, targets={"labels": labels}).each.tolist() == [1, 1, 1, 1]
    with pytest.raises(UsageError, match=r"labels have the shape \[4, 2\]"):
        value("top-1", {"logits": SCORES}, targets={"labels": np.zeros((4, 2))})


@pytest.mark.parametrize(
    "labels", [np.array([0.5, 0, 1, 0]), np.array([np.nan, 0, 1, 0]), np.array(["a", "b", "a", "b"])]
)
def test_labels_that_are_no_whole_numbers_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(UsageError, match="labels that are whole numbers"):
        value("top-1", {"logits": SCORES}, targets={"labels": labels})
    assert value("top-1", {"logits": SCORES}, targets={"labels": [0.0, 0.0, 1.0, 0.0]}).whole == 1.0


def test_scores_that_are_no_numbers_are_wrong() -> None:
    spoilt = SCORES.copy()
    spoilt[:2] = np.nan
    assert value("top-1", {"logits": spoilt}, targets={"labels": np.array([0, 0, 1, 0])}).whole == 0.5
    assert value("agreement", {"logits": spoilt}, expected={"logits": SCORES}).whole == 0.5
    assert value("agreement", {"logits": spoilt}, expected={"logits": spoilt}).whole == 0.5


def test_the_output_that_the_task_reads_is_the_one_that_counts() -> None:
    outputs = {"features": -SCORES, "scores": SCORES}
    labels = {"labels": np.array([0, 0, 1, 0])}
    assert value("top-1", outputs, targets=labels, output="scores").whole == 1.0
    assert value("top-1", {"features": -SCORES, "logits": SCORES}, targets=labels).whole == 1.0


def test_pictures_of_labels_have_their_classes_along_the_channels() -> None:
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    labels = maps.argmax(axis=1)
    assert value("top-1", {"out": maps}, targets={"labels": labels}).whole == 1.0
    assert value("agreement", {"out": maps}, expected={"out": maps * 2}).whole == 1.0
    labels[0, 0, 0] = (labels[0, 0, 0] + 1) % 3
    assert value("top-1", {"out": maps}, targets={"labels": labels}).each.tolist() == [0.95, 1.0]


def test_a_batch_that_is_not_first_does_not_mix_samples_up() -> None:
    rng = np.random.default_rng(0)
    answers = rng.standard_normal((7, 4)).astype(np.float32)  # [sequence, batch]
    given = like(spec("y", "sequence", "batch"))
    exact = value("r2", {"y": answers}, expected={"y": answers}, signature=given, inputs={"x": np.zeros(4)})
    assert exact.each.tolist() == [1.0] * 4
    off = answers.copy()
    off[:, 2] += 1.0
    errors = value("max-error", {"y": off}, expected={"y": answers}, signature=given, inputs={"x": np.zeros(4)})
    assert errors.each.tolist() == pytest.approx([0, 0, 1, 0])


def test_what_belongs_to_the_whole_call_is_no_sample() -> None:
    given = like(spec("y", "batch", 2), spec("state", 3, 5))
    outputs = {"y": SCORES, "state": np.zeros((3, 5), np.float32)}
    found = value("cosine", outputs, expected=outputs, signature=given, inputs={"x": np.zeros(4)})
    assert found.each.tolist() == pytest.approx([1.0] * 4)
    alone = like(spec("y", 4, 2), batch=None, inputs=(4,))
    whole = value("cosine", {"y": SCORES}, expected={"y": SCORES}, signature=alone, inputs={"x": np.zeros(4)})
    assert whole.each.tolist() == pytest.approx([1.0])


def test_r2_sees_answers_that_hardly_vary_in_all_groups_together() -> None:
    exact = [np.array([[1.0]]), np.array([[2.0]]), np.array([[3.0]])]
    groups = [Samples(inputs={"x": np.zeros(1)}, expected={"y": one}) for one in exact]
    metric = metrics.find("r2")
    assert metrics.evaluate(metric, [{"y": one} for one in exact], groups).whole == 1.0
    constant = metrics.evaluate(metric, [{"y": np.array([[2.0]])}] * 3, groups)
    assert constant.whole == pytest.approx(0.0)
    with pytest.raises(UsageError, match="do not vary"):
        metrics.evaluate(metric, [{"y": exact[0]}], groups[:1])


def test_r2_leaves_out_a_column_whose_numbers_are_all_equal() -> None:
    theirs = np.column_stack([np.full(3, 0.1), [1.0, 2.0, 3.0]])  # the variance of the first is 1.9e-34
    ours = theirs + np.array([1e-6, 0.0])
    assert value("r2", {"y": ours}, targets={"y": theirs}).whole == 1.0


def test_r2_of_maps_weighs_each_place_by_how_much_it_varies_as_scikit_learn_has_it() -> None:
    from sklearn.metrics import r2_score

    rng = np.random.default_rng(0)
    theirs = (rng.normal(size=(32, 2, 3)) * [1.0, 1e-4, 3.0]).astype(np.float32)
    ours = theirs + rng.normal(0, 0.01, theirs.shape).astype(np.float32)  # a hundred times what one column varies
    found = value("r2", {"y": ours}, targets={"y": theirs})
    wanted = r2_score(theirs.reshape(32, -1), ours.reshape(32, -1), multioutput="variance_weighted")
    assert found.whole == pytest.approx(wanted)
    assert found.whole > 0.999


def test_r2_is_the_mean_over_columns_as_scikit_learn_has_it() -> None:
    from sklearn.metrics import r2_score

    rng = np.random.default_rng(0)
    theirs = rng.standard_normal((50, 3)) * [1.0, 100.0, 0.01]
    ours = theirs + rng.standard_normal((50, 3)) * 0.3
    found = value("r2", {"y": ours}, targets={"y": theirs})
    assert found.whole == pytest.approx(r2_score(theirs, ours))
    assert value("rmse", {"y": ours}, targets={"y": theirs}).whole == pytest.approx(
        np.sqrt(((ours - theirs) ** 2).mean())
    )


def test_targets_are_never_broadcast_nor_guessed() -> None:
    with pytest.raises(UsageError, match="its target"):
        value("rmse", {"y": np.zeros((4, 3))}, targets={"y": np.zeros((4, 1))})
    with pytest.raises(UsageError, match="the targets are called index, y2"):
        value("rmse", {"y": np.zeros((4, 1))}, targets={"index": np.arange(4), "y2": np.zeros(4)})
    two = value("rmse", {"a": np.ones((4, 1)), "b": np.zeros((4, 1))}, targets={"a": np.zeros(4), "b": np.zeros(4)})
    assert two.each.tolist() == [0.5] * 4, "every output that has a target counts"


def test_padding_counts_nowhere() -> None:
    theirs = np.array([[[1.0, 0.0], [0.0, 1.0]]], np.float32)
    ours = theirs.copy()
    ours[0, 1] = [np.nan, 7.0]
    weights = {"y": np.array([[[1], [0]]], np.uint8)}
    for name, perfect in (("cosine", 1.0), ("max-error", 0.0), ("rmse", 0.0), ("agreement", 1.0)):
        assert value(name, {"y": ours}, expected={"y": theirs}, weights=weights).whole == perfect, name
    (found,) = fidelity.compare(
        [Samples(inputs={"x": np.zeros(1)}, expected={"y": theirs}, weights=weights)], [{"y": ours}]
    )
    assert (found.max_abs_error, found.agreement) == (0.0, 1.0)
    wrong = theirs.copy()
    wrong[0, 0] = [0.0, 1.0]
    (found,) = fidelity.compare(
        [Samples(inputs={"x": np.zeros(1)}, expected={"y": theirs}, weights=weights)], [{"y": wrong}]
    )
    assert found.agreement == 0.0
    assert found.rms_error == pytest.approx(1.0)


def test_a_users_metric_gives_a_value_for_each_sample_or_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_of_metrics.py").write_text(
        "import numpy as np\n"
        "def classes(outputs, samples): return np.zeros(2)\n"
        "def percent(outputs, samples): return np.full(4, 97.5)\n"
        "percent.unit = '%'\n"
        "def odd(outputs, samples): return 1.0\n"
        "odd.better = 'up'\n"
        "def whole(outputs, samples): return 0.5\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match="gives 2 values for 4 samples"):
        value("mine_of_metrics:classes", {"y": SCORES})
    found = value("mine_of_metrics:percent", {"y": SCORES})
    with pytest.raises(UsageError, match=r"has the unit % and is 97\.5"):
        metrics.score(metrics.find("mine_of_metrics:percent"), found, dataset="d", split="test")
    with pytest.raises(UsageError, match="attributes of the metric mine_of_metrics:odd"):
        metrics.find("mine_of_metrics:odd")
    one = value("mine_of_metrics:whole", {"y": SCORES}, inputs={"sr": np.array(16000), "x": np.zeros(4)})
    assert (one.whole, one.samples) == (0.5, 4)


DEAD = {
    "all zero": np.zeros_like(SCORES),
    "no numbers": np.full_like(SCORES, np.nan),
    "infinite": np.full_like(SCORES, np.inf),
    "another shape": SCORES[:1],
}


@pytest.mark.parametrize("what", DEAD)
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_dead_answers_are_refused_even_if_one_class_always_wins(what: str, precision: Precision) -> None:
    reference = np.abs(SCORES) * [[2.0, 0.1]]
    assert (reference.argmax(axis=1)[[0, 1, 3]] == 0).all()
    for expected in (reference, np.array([[2.0, 1.0], [3.0, 0.0]] * 2)):
        found = fidelity.compare([Samples(inputs={}, expected={"y": expected})], [{"y": DEAD[what]}])
        assert not fidelity.judge(found, precision, ()).passed
        quantized = fidelity.judge(
            found, Precision.INT8, fidelity.compare_tensors({"y": expected}, {"y": expected * 0.99})
        )
        assert not quantized.passed


def test_close_calls_may_be_decided_anew_on_another_machine() -> None:
    """Highest values along the rows of PP-OCR's map of text: OpenVINO is closer to the original, and agrees less."""
    was = fidelity.compare_tensors({"map": SCORES}, {"map": SCORES * 0.99})[0]
    was = dataclasses.replace(was, places=1920, agreement=0.4724, rms_error=0.0289)
    assert fidelity.judge_quantized((dataclasses.replace(was, agreement=0.4047, rms_error=0.0276),), (was,)).passed
    assert not fidelity.judge_quantized((dataclasses.replace(was, agreement=0.33),), (was,)).passed
    sure = dataclasses.replace(was, agreement=0.99)
    assert not fidelity.judge_quantized((dataclasses.replace(sure, agreement=0.975),), (sure,)).passed


def test_one_place_may_have_another_highest_value_than_at_export_where_so_few_were_seen() -> None:
    expected = np.eye(20, dtype=np.float32)
    found = {}
    for flips in (0, 1, 2):
        answers = expected.copy()
        answers[:flips] = 0.99 * answers[:flips] + np.roll(expected, 1, axis=1)[:flips]
        found[flips] = fidelity.compare_tensors({"y": expected}, {"y": answers})
    before = (dataclasses.replace(found[0][0], rms_error=found[2][0].rms_error),)
    assert fidelity.judge_quantized(found[1], before).passed
    assert "agreement 90.00 % is under 95.00 %" in fidelity.judge_quantized(found[2], before).reason
    for places in range(3, 400):  # whatever the fractions round to
        was = dataclasses.replace(found[0][0], places=places, agreement=(places - 1) / places, rms_error=1.0)
        one, two = (dataclasses.replace(was, agreement=(places - flips - 1) / places) for flips in (1, 2))
        assert fidelity.judge_quantized((one,), (was,)).passed
        assert fidelity.judge_quantized((two,), (was,)).passed is (places >= 200)
    many = np.eye(20, dtype=np.float32)[np.newaxis]  # one sample, a row for each of its words
    words = many.copy()
    words[0, :2] = 0.99 * words[0, :2] + np.roll(many, 1, axis=2)[0, :2]
    seen = fidelity.compare_tensors({"y": many}, {"y": words})
    assert (seen[0].samples, seen[0].places) == (1, 20)
    assert not fidelity.judge_quantized(seen, before).passed


def quantized(**about: Any) -> fidelity.Fidelity:
    figures = {"output": "y", "samples": 4, "max_abs_error": 1.0, "rms_error": 0.1, "agreement": 1.0, "places": 4}
    return fidelity.Fidelity(**{**figures, **about})


@pytest.mark.parametrize(
    ("promise", "said"),
    [
        ({"rms_error": 1e300}, "promises an rms error of 1e"),
        ({"rms_error": 5.0}, "promises an rms error of 5, and the answers themselves have 2.65"),
        ({"rms_error": float("inf")}, "promises an rms error of inf"),
        ({"agreement": None}, "promises nothing of its agreement"),
        ({"output": "z"}, "promises nothing"),
    ],
)
def test_a_promise_that_anything_would_keep_is_none(promise: dict[str, Any], said: str) -> None:
    stored = [Samples(inputs={}, expected={"y": SCORES})]
    here = (quantized(),)
    assert fidelity.judge(here, Precision.INT8, (quantized(),), stored=stored).passed
    verdict = fidelity.judge(here, Precision.INT8, (quantized(**promise),), stored=stored)
    assert not verdict.passed
    assert said in verdict.reason
    exact = quantized(is_exact=True, rms_error=5.0)
    assert fidelity.judge_quantized((exact,), (exact,), stored=stored).passed, "an index may be far off"
    never = dataclasses.replace(exact, agreement=0.0)
    assert not fidelity.judge_quantized((never,), (never,), stored=stored).passed


@pytest.mark.parametrize(
    "figure",
    [
        {"rms_error": -1.0},
        {"max_abs_error": -1.0},
        {"max_rel_error": float("nan")},
        {"agreement": 1.5},
        {"agreement": -0.1},
        {"cosine": -1.1},
        {"cosine": float("nan")},
    ],
)
def test_figures_that_no_comparison_gives_are_refused(figure: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(figure))):
        quantized(**figure)


def test_squares_that_overflow_are_no_agreement() -> None:
    large = np.array([[1e200, -1e200]])
    (found,) = fidelity.compare_tensors({"y": large}, {"y": -large})
    assert found.cosine == -1
    assert found.rms_error == np.inf
    assert not fidelity.judge_quantized((found,), (found,)).passed


def test_masked_values_are_equal_if_both_are_infinite() -> None:
    expected = np.array([[1.0, -np.inf, 2.0], [3.0, 1.0, -np.inf]], np.float32)
    nearly = expected + np.float32(0.25)
    assert value("cosine", {"y": expected}, expected={"y": expected}).each.tolist() == pytest.approx([1, 1])
    assert value("max-error", {"y": nearly}, expected={"y": expected}).each.tolist() == [0.25, 0.25]
    assert value("cosine", {"y": nearly}, expected={"y": expected}).whole > 0.99
    unmasked = np.where(np.isfinite(expected), expected, 0)
    assert value("max-error", {"y": unmasked}, expected={"y": expected}).each.tolist() == [np.inf, np.inf]


def test_an_index_may_differ_where_its_scores_tie_and_no_further() -> None:
    expected = {"index": np.arange(200)}
    one_off = {"index": np.where(np.arange(200) == 7, 8, np.arange(200))}
    assert fidelity.judge_float(fidelity.compare_tensors(expected, one_off), 1e-4).passed
    assert not fidelity.judge_float(fidelity.compare_tensors(expected, {"index": np.zeros(200, int)}), 1e-4).passed
    assert not fidelity.judge_float(fidelity.compare_tensors(expected, {"index": np.arange(3)}), 1e-4).passed


def test_lists_of_fractions_are_no_ids_and_pieces_fit_the_axis() -> None:
    from kit.tensors import Axis

    given = Signature(
        inputs=(TensorSpec(name="ids", dtype="int64", shape=("batch",)),),
        outputs=(spec("y", "batch"),),
        axes={"batch": Axis(least=4, multiple_of=4)},
    )
    with pytest.raises(UsageError, match="ids must be int64"):
        given.arrays({"ids": [1.7, 2.9, 3.0, 4.0]})
    assert given.arrays({"ids": [1, 2, 3, 4]})["ids"].dtype == np.int64
    sizes = [len(piece["ids"]) for piece in given.split({"ids": np.arange(52)}, 16)]
    assert sum(sizes) == 52
    assert all(size % 4 == 0 and 4 <= size <= 16 for size in sizes)
    assert given.rows_within(1, {}) == 4


def test_the_bound_of_a_batch_is_a_bound_of_a_call_and_not_of_a_data_set() -> None:
    from kit import samples as sampling
    from kit.tensors import Axis

    given = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 2)),),
        outputs=(spec("y", "batch", 1),),
        axes={"batch": Axis(most=64)},
    )
    many = Samples(inputs={"x": np.zeros((200, 2), np.float32)})
    sampling.check([many], given)
    assert [len(piece["x"]) for piece in sampling.batches([many], given, 2**30)] == [50, 50, 50, 50]
    with pytest.raises(UsageError, match="200 is more than 64"):
        given.check(many.inputs)


def _limits_by_sums(count: int, total: int, tail: float) -> tuple[float, float]:
    """The limits of Clopper and Pearson by adding every probability up."""

    def at_most(most: int, share: float) -> float:
        return math.fsum(math.comb(total, k) * share**k * (1 - share) ** (total - k) for k in range(most + 1))

    def root(rising: Callable[[float], float]) -> float:
        low, high = 0.0, 1.0
        for _ in range(45):
            middle = (low + high) / 2
            low, high = (low, middle) if rising(middle) > 0 else (middle, high)
        return low

    low = 0.0 if count == 0 else root(lambda share: 1 - at_most(count - 1, share) - tail)
    return low, 1.0 if count == total else root(lambda share: tail - at_most(count, share))


@pytest.mark.parametrize(
    ("count", "total"), [(0, 1), (1, 1), (0, 50), (1, 50), (25, 50), (50, 50), (3, 200), (199, 200)]
)
def test_limits_of_a_share_are_those_of_the_sum(count: int, total: int) -> None:
    found = intervals.proportion(count, total, 0.0125)
    assert found == pytest.approx(_limits_by_sums(count, total, 0.0125), abs=1e-9)


@pytest.mark.parametrize(
    ("count", "total", "limits"),
    [  # by adding up 20,000 and 7,000 probabilities
        (5_000, 20_000, (0.24315882218, 0.25693369049)),
        (3_500, 7_000, (0.48653654698, 0.51346345302)),
    ],
)
def test_limits_of_many_are_those_of_the_sum(count: int, total: int, limits: tuple[float, float]) -> None:
    assert intervals.proportion(count, total, 0.0125) == pytest.approx(limits, abs=1e-9)


def test_limits_of_very_many_are_quick_and_those_of_the_normal_law() -> None:
    n = 10**8
    started = time.perf_counter()
    found = intervals.loss_of_counts(n // 2, n // 2, n)
    assert time.perf_counter() - started < 0.1
    z = 2.2414027276  # 1.25 % lie beyond
    assert found == pytest.approx((-2 * z * math.sqrt(0.25 / n), 2 * z * math.sqrt(0.25 / n)), rel=1e-4)
    assert intervals.loss_of_counts(n, 0, n)[1] == 1.0


@pytest.mark.parametrize(
    "change",
    [
        {"worse": -1, "improved": 2},
        {"worse": 6, "improved": 5},
        {"samples": 0},
        {"samples": 10**13},
        *({name: math.inf} for name in ("value", "baseline", "low", "high")),
        *({name: math.nan} for name in ("value", "baseline", "low", "high")),
    ],
)
def test_scores_that_cannot_be_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"score|became wrong"):
        metrics.Score(**{"metric": "m", "dataset": "d", "split": "test", "samples": 10, "value": 0.5, **change})


@pytest.mark.parametrize("compared", ["fidelity", "r2"])
def test_large_outputs_are_gone_through_in_pieces(compared: str) -> None:
    """A reader of text gives a hundred megabytes for a few lines: what is computed of each value takes many times its room."""
    exact = np.random.default_rng(0).standard_normal((16, 40, 10_000)).astype(np.float32)
    groups = [Samples(inputs={}, expected={"y": exact})]
    answers = [{"y": exact + np.float32(0.01)}]
    tracemalloc.start()
    try:
        if compared == "fidelity":
            (found,) = fidelity.compare(groups, answers)
            assert found.rms_error == pytest.approx(0.01, rel=1e-3)
        else:
            assert value("r2", answers[0], expected={"y": exact}).whole == pytest.approx(1 - 1e-4, abs=1e-5)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * exact.nbytes


def test_pieces_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    exact = random.standard_normal((9, 7, 5)).astype(np.float32)
    noisy = exact + random.standard_normal(exact.shape).astype(np.float32) * 0.1
    shown = (random.random((9, 7, 1)) > 0.3).astype(np.float32)
    groups = [
        Samples(inputs={}, expected={"y": exact}, weights={"y": shown}),
        Samples(inputs={}, expected={"y": exact}),
    ]
    (whole,) = fidelity.compare(groups, [{"y": noisy}, {"y": noisy}])
    explained = value("r2", {"y": noisy}, expected={"y": exact}).each
    monkeypatch.setattr("kit.tensors._VALUES_AT_ONCE", 36)
    (found,) = fidelity.compare(groups, [{"y": noisy}, {"y": noisy}])
    for name, figure in dataclasses.asdict(whole).items():
        assert getattr(found, name) == (pytest.approx(figure, rel=1e-12) if isinstance(figure, float) else figure), name
    assert value("r2", {"y": noisy}, expected={"y": exact}).each == pytest.approx(explained, rel=1e-12)
