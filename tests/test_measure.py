"""Rounds, warm-up, budgets and load shapes, by a clock that only moves when a contestant works: nothing here waits."""

from __future__ import annotations

import gc
import itertools

import numpy as np
import pytest

from kit.bench.measure import (
    MOST_ROUNDS,
    ROUNDS_PER_OPENING,
    ClosedLoop,
    Plan,
    expected_seconds,
    measure,
    wait_until_quiet,
)
from kit.bench.meters import steady_energy_uj
from kit.bench.scenarios import LEAST_QUERIES, Load, OpenLoop, Scenario
from kit.errors import BadInput, KitError, UsageError

MICROSECOND = 1_000


class World:
    """A clock and the work that moves it."""

    def __init__(self) -> None:
        self.now = 0
        self.order: list[str] = []

    def clock(self) -> int:
        self.now += 20  # reading a clock takes time as well
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)

    def works(self, name: str, *microseconds: float):
        """Return a call that takes these times in turn, the last one from then on."""
        made = iter(microseconds)
        last = microseconds[-1]

        def call() -> None:
            nonlocal last
            self.order.append(name)
            last = next(made, last)
            self.now += round(last * MICROSECOND)

        return call


QUICK = Plan(rounds=20, turn_ms=1.0, warmup_ms=4.0)


def test_contestants_take_turns_in_every_round_in_changing_order() -> None:
    world = World()
    found = measure([world.works("a", 100), world.works("b", 200)], QUICK, clock=world.clock)
    assert [len(timings.turns) for timings in found] == [20, 20]
    turns = [name for index, name in enumerate(world.order) if index == 0 or world.order[index - 1] != name]
    assert "".join(turns).count("ab") > 2
    assert "".join(turns).count("ba") > 2


def test_latencies_are_those_of_the_calls() -> None:
    world = World()
    one, other = measure([world.works("a", 100), world.works("b", 200)], QUICK, clock=world.clock)
    assert np.median(one.pooled_us()) == pytest.approx(100, abs=0.1)
    assert np.median(other.medians_us()) == pytest.approx(200, abs=0.1)
    assert one.calls == 20 * 5  # half of the ten that fill a turn; the others are timed in one go
    assert one.mean_us() == pytest.approx(100, abs=0.1)


def test_calls_timed_in_one_go_know_of_a_stall_between_calls() -> None:
    """A rare stall is in the mean of a turn, whether or not the median sees it."""
    world = World()
    stalls = [100.0] * 400
    stalls[::10] = [1100.0] * 40
    (found,) = measure([world.works("a", *stalls)], Plan(rounds=10, turn_ms=2.0, warmup_ms=4.0), clock=world.clock)
    assert np.median(found.pooled_us()) == pytest.approx(100, abs=0.1)
    assert found.mean_us() > 120


def test_a_turn_has_the_least_number_of_calls_however_slow() -> None:
    world = World()
    plan = Plan(rounds=10, turn_ms=1.0, warmup_ms=1.0, least_calls=3)
    (found,) = measure([world.works("a", 50_000)], plan, clock=world.clock)
    assert found.calls == 30


def test_the_collector_is_off_while_the_clock_runs_and_on_again_afterwards() -> None:
    seen = []
    measure([lambda: seen.append(gc.isenabled())], Plan(rounds=10, turn_ms=0.01, warmup_ms=0.0))
    assert not seen[-1]
    assert gc.isenabled()


def test_the_warm_up_goes_on_until_the_latency_has_settled() -> None:
    world = World()
    falling = [5000.0 * 0.97**index for index in range(100)]
    (found,) = measure([world.works("a", *falling)], Plan(warmup_ms=4.0, warmup_limit_ms=10_000), clock=world.clock)
    assert found.warmup.settled
    assert found.warmup.spent_ms > 100
    assert found.pooled_us().max() == pytest.approx(found.pooled_us().min(), rel=0.01)


def test_a_latency_that_does_not_settle_is_measured_all_the_same_and_says_so() -> None:
    world = World()
    falling = [5000.0 * 0.97**index for index in range(2000)]
    (found,) = measure([world.works("a", *falling)], Plan(warmup_ms=4.0, warmup_limit_ms=50), clock=world.clock)
    assert not found.warmup.settled
    assert found.warmup.spent_ms < 70


@pytest.mark.parametrize("seconds", [0.05, 1.0, 5.0])
def test_a_budget_is_kept_and_used(seconds: float) -> None:
    world = World()
    calls = [world.works("a", 100), world.works("b", 900)]
    found = measure(calls, Plan(), deadline_ns=round(seconds * 1e9), clock=world.clock)
    assert world.now <= seconds * 1e9 * 1.02
    assert world.now >= seconds * 1e9 * 0.9
    assert len(found[0].turns) == len(found[1].turns) >= 10


def test_a_budget_too_short_for_two_rounds_still_gives_one() -> None:
    world = World()
    (found,) = measure([world.works("a", 100_000)], Plan(), deadline_ns=1000, clock=world.clock)
    assert len(found.turns) == 1


def test_contestants_are_renewed_every_few_rounds_and_all_of_them_at_the_same_ones() -> None:
    world = World()
    opened = {"a": 0, "b": 0}

    def renewal(name: str):
        def renew():
            opened[name] += 1
            return world.works(name, 100 * (1 + opened[name]))

        return renew

    plan = Plan(rounds=20, turn_ms=5.0, warmup_ms=4.0)
    calls = [world.works("a", 100), world.works("b", 100)]
    one, other = measure(calls, plan, renewals=[renewal("a"), renewal("b")], clock=world.clock)
    assert opened == {"a": 4, "b": 4}
    expected = np.repeat([100, 200, 300, 400, 500], ROUNDS_PER_OPENING)
    assert one.medians_us() == pytest.approx(expected, abs=0.1)
    assert other.medians_us() == pytest.approx(expected, abs=0.1)


def test_a_turn_begins_when_the_threads_of_the_last_one_have_stopped_spinning() -> None:
    glance_ns = 2_000_000
    spinning = iter([0, glance_ns, glance_ns, 2 * glance_ns, 2 * glance_ns, 2 * glance_ns + 1000])
    wait_until_quiet(lambda: next(spinning))
    assert not list(spinning)  # three glances, and the third was quiet


def test_a_turn_begins_in_the_end_if_the_threads_of_the_last_one_never_stop_spinning() -> None:
    asked = itertools.count(0, 2_000_000)
    wait_until_quiet(lambda: next(asked))
    assert next(asked) == 200 * 2_000_000


def test_it_says_how_long_it_will_take() -> None:
    world = World()
    plan = Plan()
    measure([world.works("a", 100), world.works("b", 20_000)], plan, clock=world.clock)
    assert expected_seconds([100, 20_000], plan, ClosedLoop()) == pytest.approx(world.now / 1e9, rel=0.15)


def test_energy_is_that_of_each_contestants_own_calls() -> None:
    world = World()
    calls = [world.works("a", 100), world.works("b", 300)]
    read = [lambda: world.now / 1000.0, lambda: None]  # one microjoule a microsecond
    one, other = measure(calls, QUICK, meters=read, clock=world.clock)
    # the call that warms the caches at the start of a turn draws power too, and is counted
    assert one.energy_uj() == pytest.approx(100, rel=0.02)
    assert other.energy_uj() is None
    (served,) = measure(
        [world.works("a", 100)],
        QUICK,
        shape=OpenLoop(rate=1e6, sleep=world.sleep),
        meters=[lambda: world.now / 1000.0],
        clock=world.clock,
    )
    assert served.energy_uj() == pytest.approx(100, rel=0.02)


def test_a_slow_counter_is_read_around_a_second_of_calls() -> None:
    world = World()
    call = world.works("a", 100)

    def coarse() -> float:
        return world.now // 100_000_000 * 100_000.0  # one microjoule a microsecond, told ten times a second

    assert steady_energy_uj(call, coarse, clock=world.clock) == pytest.approx(100, rel=0.11)
    assert steady_energy_uj(call, lambda: None, clock=world.clock) is None


def test_one_that_fails_takes_no_further_turns_and_the_others_go_on() -> None:
    world = World()
    works = world.works("a", 100)
    calls = iter(range(200))

    def breaks() -> None:
        world.now += 100_000
        if next(calls, None) is None:
            raise BadInput("no more")

    failures: dict[int, KitError] = {}
    found = measure([breaks, works, broken_at_once], QUICK, clock=world.clock, on_failure=failures.__setitem__)
    assert {index: str(error) for index, error in failures.items()} == {0: "no more", 2: "never ran"}
    assert [len(one.turns) for one in found][1:] == [QUICK.rounds, 0]
    assert 0 < len(found[0].turns) < QUICK.rounds
    with pytest.raises(BadInput, match="never ran"):
        measure([works, broken_at_once], QUICK, clock=world.clock)


def broken_at_once() -> None:
    raise BadInput("never ran")


def test_a_long_budget_is_used_up_by_longer_turns() -> None:
    world = World()
    (found,) = measure([world.works("a", 100_000)], Plan(), deadline_ns=3600 * 10**9, clock=world.clock)
    assert world.now / 1e9 == pytest.approx(3600, rel=0.05)
    assert 1000 < len(found.turns) <= MOST_ROUNDS


def arrived(rate: float, *service_us: float, calls: int = 1000) -> np.ndarray:
    world = World()
    shape = OpenLoop(rate=rate, sleep=world.sleep)
    return shape.turn(world.works("a", *service_us), calls, 0, world.clock).latencies_us


def test_in_the_server_scenario_every_query_that_waits_is_charged_for_a_stall() -> None:
    """One stall of 100 ms at 1,000 queries a second: a closed loop would report one slow call of 1,000."""
    stalled = arrived(1000, *[100.0] * 300, 100_000.0, 100.0)
    assert (stalled > 10_000).mean() == pytest.approx(0.1, abs=0.03)
    assert np.percentile(stalled, 99) > 80_000


def test_in_the_server_scenario_an_idle_server_answers_in_its_own_time() -> None:
    calm = arrived(1000, 50.0, calls=300)
    assert np.median(calm) == pytest.approx(50, rel=0.05)


def test_in_the_server_scenario_queries_that_come_faster_than_they_are_answered_queue_up() -> None:
    flooded = arrived(2000, 1000.0)
    assert flooded[-100:].mean() > 10 * flooded[:100].mean()


def test_queries_come_at_the_given_rate_and_at_the_same_moments_for_all() -> None:
    shape = OpenLoop(rate=500)
    moments = shape.arrivals(10_000, 3)
    assert np.diff(moments).mean() == pytest.approx(2e6, rel=0.05)
    assert np.diff(moments).std() == pytest.approx(2e6, rel=0.05)  # exponential gaps: a Poisson process
    assert np.array_equal(moments, OpenLoop(rate=500).arrivals(10_000, 3))
    assert not np.array_equal(moments, shape.arrivals(10_000, 4))
    assert shape.calls(Plan(turn_ms=100), 10) == 50
    assert OpenLoop(rate=1).calls(Plan(), 10) == LEAST_QUERIES


def test_a_rate_belongs_to_the_server_scenario() -> None:
    with pytest.raises(UsageError, match="rate"):
        Load(scenario=Scenario.SERVER)
    with pytest.raises(UsageError, match="rate"):
        Load(rate=100.0)
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(UsageError):
            Load(scenario=Scenario.SERVER, rate=wrong)


def test_a_plan_that_measures_nothing_is_refused() -> None:
    for wrong in ({"rounds": 1}, {"least_calls": 0}, {"budget_seconds": 0.0}, {"budget_seconds": float("nan")}):
        with pytest.raises(UsageError):
            Plan(**wrong)
