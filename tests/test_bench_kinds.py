"""Cold starts, profiles, sweeps and load shapes of a real bundle."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from kit.bench import sweep
from kit.bench.cases import every_case
from kit.bench.measure import LEAST_ROUNDS, Plan
from kit.bench.results import SCHEMA_FILE, Latency, Results, Row, Status, schema
from kit.bench.run import Request, advice, bench
from kit.bench.scenarios import Load, Scenario
from kit.bundle import Bundle
from kit.choices import Mode, Precision, Provider
from kit.errors import StorageUnavailable, UsageError
from kit.report import tables
from kit.runtime.base import RunnerOptions
from kit.system.machine import this_machine
from kit.tensors import Axis
from tests.conftest import Kit
from tests.helpers.bundles import overwrite
from tests.helpers.points import batch

QUICK = Plan(rounds=10, turn_ms=0.5, warmup_ms=1.0)
CPU = (Provider.CPU,)


def test_a_cold_start_is_split_into_its_stages(tiny: Bundle) -> None:
    plan = Plan(budget_seconds=1.0)
    (row,) = bench(tiny, Request(providers=CPU, cold=True, plan=plan)).rows
    assert row.status is Status.OK, row.reason
    assert row.latency is None
    assert row.cold is not None
    assert row.cold.processes == len(row.cold.totals_ms) >= 1
    assert row.cold.processes >= LEAST_ROUNDS or row.cold.low_ms is None
    assert list(row.cold.stages_ms) == [
        "start Python",
        "import kit",
        "read bundle",
        "open model",
        "first run",
    ]
    assert all(value > 0 for value in row.cold.stages_ms.values())
    assert row.placement.startswith("cpu ")


@pytest.mark.usefixtures("no_cuda")
def test_a_cold_start_that_fails_is_a_row_that_says_why(tiny: Bundle) -> None:
    overwrite(tiny.path(tiny.variant().graph), b"")
    found = bench(tiny, Request(providers=(Provider.CPU, Provider.CUDA), cold=True, plan=Plan(budget_seconds=0.1)))
    assert [row.status for row in found.rows] == [Status.FAILED, Status.FAILED]
    assert all("altered" in row.reason or "bytes" in row.reason for row in found.rows)


def test_a_profile_names_the_nodes_and_writes_a_trace(digits: Bundle, tmp_path: Path) -> None:
    found = bench(digits, Request(providers=CPU, points=batch(1, 4), profile=tmp_path / "traces"))
    assert [(row.variant, row.samples) for row in found.rows[:3]] == [
        ("fp32", 1),
        ("int8-qdq", 1),
        ("int8-dynamic", 1),
    ]
    for row in found.rows:
        assert row.status is Status.OK, row.reason
        assert 0 < sum(node.share for node in row.profile) <= 1.01
        assert row.kernels.startswith("cpu ")
        events = json.loads((tmp_path / "traces" / row.trace_file).read_text())
        assert {"ph", "ts", "dur", "name", "pid", "tid"} <= set(events[0])
    assert [node.operator for node in found.rows[1].profile].count("QGemm") == 4


def test_a_runtime_without_a_profiler_is_a_row_that_says_so(tiny: Bundle, tmp_path: Path) -> None:
    (row,) = bench(tiny, Request(providers=CPU, runtimes=("openvino",), points=batch(1), profile=tmp_path)).rows
    assert row.status is Status.UNAVAILABLE
    assert "profiler" in row.reason


def test_a_trace_that_cannot_be_written_is_an_error(tiny: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageUnavailable):
        bench(tiny, Request(providers=CPU, points=batch(1), profile=tmp_path / "file"))


def test_offline_serves_all_samples_in_batches(tiny: Bundle) -> None:
    load = Load(scenario=Scenario.OFFLINE, samples=100)
    (row,) = bench(tiny, Request(providers=CPU, load=load, points=batch(64), plan=QUICK)).rows
    assert (row.scenario, row.query_samples, row.samples) == (Scenario.OFFLINE, 100, 64)
    assert row.latency is not None
    assert row.latency.samples_per_second == pytest.approx(100e6 / (row.latency.mean_us or 0))


def test_multistream_puts_eight_samples_into_a_query(tiny: Bundle) -> None:
    (row,) = bench(tiny, Request(providers=CPU, load=Load(scenario=Scenario.MULTI_STREAM), plan=QUICK)).rows
    assert (row.scenario, row.samples) == (Scenario.MULTI_STREAM, 8)


def test_the_server_scenario_records_the_rate_it_was_offered(tiny: Bundle) -> None:
    load = Load(scenario=Scenario.SERVER, rate=2000.0)
    found = bench(tiny, Request(providers=CPU, load=load, plan=Plan(budget_seconds=0.3)))
    (row,) = found.rows
    assert row.offered_rate == 2000.0
    assert found.arguments["rate"] == "2000"


def test_a_flood_of_queries_is_said_to_be_one(tiny: Bundle) -> None:
    load = Load(scenario=Scenario.SERVER, rate=1e7)
    found = bench(tiny, Request(providers=CPU, load=load, plan=Plan(budget_seconds=0.1)))
    assert found.rows[0].saturated
    assert any("arrived" in remark for remark in found.remarks())


@pytest.mark.slow
def test_a_sweep_measures_growing_batches_and_finds_the_knee(tiny: Bundle) -> None:
    found = bench(tiny, Request(providers=CPU, sweep="batch", plan=Plan(budget_seconds=1.5)))
    batches = [row.sizes["batch"] for row in found.rows]
    assert batches == [2**power for power in range(len(batches))]
    assert len(batches) >= 3
    (knee,) = sweep.knees(found)
    assert knee.size in batches
    assert knee.axis == "batch"
    assert 0.9 <= knee.share <= 1


def test_a_sweep_stops_where_throughput_no_longer_grows() -> None:
    bends, flat, free = (lambda size: 10.0 + size), (lambda size: 10.0 * size), (lambda _: 10.0)
    every = sweep.doublings(Axis())
    assert sweep.sizes([bends], among=every) == ((1, 2, 4, 8, 16, 32, 64, 128, 256, 512),)
    assert sweep.sizes([flat], among=every) == ((1, 2, 4),)
    assert sweep.sizes([flat, free], among=every) == (tuple(2**power for power in range(15)),) * 2
    assert sweep.sizes([free], among=sweep.doublings(Axis(), largest=64)) == ((1, 2, 4, 8, 16, 32, 64),)
    assert sweep.sizes([], among=every) == ()
    assert sweep.sizes([flat], among=(1, 2, 4, 8, 16), until_flat=False) == ((1, 2, 4, 8, 16),)


def test_one_that_fails_or_crawls_ends_its_own_sweep_and_nobody_elses() -> None:
    def fails(size: int) -> float:
        return 10.0 if size < 8 else math.inf

    def crawls(size: int) -> float:
        return 200_000.0 * size

    bends = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    assert sweep.sizes([fails, lambda size: 10.0 + size, crawls], among=sweep.doublings(Axis())) == (
        (1, 2, 4, 8),
        bends,
        (1, 2, 4),
    )


def timed(provider: Provider, batch: int, microseconds: float) -> Row:
    return Row(
        bundle="b",
        variant="fp32",
        precision=Precision.FP32,
        sha256="",
        size_bytes=1,
        runtime="onnxruntime",
        provider=provider,
        ran_on=provider,
        sizes={"batch": batch},
        samples=batch,
        threads=1,
        mode="host",
        status=Status.OK,
        latency=Latency(
            calls=100,
            rounds=20,
            p50_us=microseconds,
            p90_us=microseconds,
            p95_us=microseconds,
            p99_us=None,
            max_us=microseconds,
            low_us=microseconds,
            high_us=microseconds,
            samples_per_second=batch * 1e6 / microseconds,
            medians_us=tuple(microseconds * (1 + 0.001 * (number % 3)) for number in range(20)),
        ),
    )


def swept(*rows: Row) -> Results:
    return Results(
        schema_version=3,
        kind="kit-bench",
        created="",
        machine=this_machine(),
        tools={},
        seed=0,
        arguments={},
        rows=rows,
    )


def test_the_batch_from_which_a_gpu_overtakes_the_cpu_is_found() -> None:
    batches = (1, 2, 4, 8, 16)
    found = swept(
        *(timed(Provider.CPU, batch, 10.0 * batch) for batch in batches),
        *(timed(Provider.CUDA, batch, 39.9 + 0.1 * batch) for batch in batches),
    )
    (crossing,) = sweep.crossovers(found)
    assert (crossing.overtakes, crossing.overtaken) == ("fp32 onnxruntime cuda", "fp32 onnxruntime cpu")
    assert (crossing.last_slower, crossing.size) == (4 - 2, 8)


def test_a_lead_that_larger_batches_leave_open_is_not_called_sure() -> None:
    cpu, cuda = (10.0, 20.0, 40.0, 80.0), (30.0, 10.0, 20.0, 80.0)
    found = swept(
        *(timed(Provider.CPU, 2**power, spent) for power, spent in enumerate(cpu)),
        *(timed(Provider.CUDA, 2**power, spent) for power, spent in enumerate(cuda)),
    )
    (crossing,) = sweep.crossovers(found)
    assert (crossing.size, crossing.ahead_at, crossing.last_slower) == (None, (2, 4), 1)
    assert "too small to tell" in crossing.describe()


def test_nobody_overtakes_who_is_ahead_all_along() -> None:
    found = swept(
        *(timed(Provider.CPU, batch, 10.0) for batch in (1, 2, 4)),
        *(timed(Provider.CUDA, batch, 5.0) for batch in (1, 2, 4)),
    )
    assert sweep.crossovers(found) == ()


def test_flags_that_would_change_nothing_are_refused() -> None:
    server = Load(scenario=Scenario.SERVER, rate=5.0)
    for wrong in (
        {"cold": True, "points": batch(1, 8)},
        {"cold": True, "sweep": "batch"},
        {"cold": True, "profile": Path()},
        {"cold": True, "load": server},
        {"cold": True, "data_dir": Path()},
        {"profile": Path(), "data_dir": Path()},
        {"profile": Path(), "plan": Plan(budget_seconds=1.0)},
        {"profile": Path(), "sweep": "batch"},
        {"sweep": "batch", "points": batch(1)},
        {"sweep": "batch", "load": server},
    ):
        with pytest.raises(UsageError):
            Request(**wrong)


def test_the_schema_in_the_package_is_that_of_the_classes() -> None:
    assert json.loads(SCHEMA_FILE.read_text()) == schema(), "python -m kit.bench.results writes it anew"


@pytest.mark.slow
def test_the_command_line_asks_for_each_kind(tiny: Bundle, kit_inside: Kit) -> None:
    here = ("bench", str(tiny.folder), "--provider", "cpu")
    cold = kit_inside(*here, "--cold", "--budget", "500ms")
    assert cold.returncode == 0, cold.stderr
    assert "open model" in cold.stdout
    profile = kit_inside(*here, "--profile", "--batch-size", "1")
    assert profile.returncode == 0, profile.stderr
    assert "between the nodes" in profile.stdout
    assert list(tiny.folder.parent.glob("tiny.*.trace.json"))
    swept_line = kit_inside(*here, "--batch-size", "sweep", "--budget", "1s")
    assert swept_line.returncode == 0, swept_line.stderr
    assert "knee at batch" in swept_line.stdout
    assert "Measuring takes about" in swept_line.stderr
    server = kit_inside(*here, "--scenario", "server", "--rate", "1000", "--budget", "300ms")
    assert server.returncode == 0, server.stderr
    assert "1,000 queries/s arrive" in server.stdout
    for wrong in (
        ("--budget", "soon"),
        ("--batch-size", "0"),
        ("--batch-size", "1", "--batch-size", "sweep"),
        ("--rate", "5"),
    ):
        assert kit_inside(*here, *wrong).returncode == 2


def test_int8_on_cuda_is_said_to_be_no_integer_arithmetic_before_it_is_measured(
    quantized: Bundle, digits: Bundle
) -> None:
    on_cuda = Request(providers=(Provider.CUDA,))
    said = " ".join(advice(quantized, on_cuda))
    assert "no integer arithmetic" in said
    assert "--variant fp16" in said
    assert "--provider tensorrt" in said
    assert "int8-pixel" in said
    assert "kit export digits-mlp --precision fp16" in " ".join(advice(digits, on_cuda))
    assert advice(quantized, Request(providers=(Provider.CPU,))) == ()
    assert advice(quantized, Request(providers=(Provider.CUDA,), variants=("fp16",))) == ()


def test_formats_for_the_cpu_alone_are_not_measured_on_a_gpu_unless_it_was_named(quantized: Bundle) -> None:
    both = (Provider.CPU, Provider.CUDA)
    able = every_case(quantized.variants, ("onnxruntime",), both, only_able=True)
    on_gpu = [one.variant for one in able if one.options.provider is Provider.CUDA]
    assert on_gpu == ["fp32", "int8-qdq", "fp16", "int4", "int8-qdq-per-tensor"]
    assert len(every_case(quantized.variants, ("onnxruntime",), both)) == 2 * len(quantized.variants)


def test_what_only_cuda_knows_is_left_out_elsewhere(tiny: Bundle) -> None:
    options = RunnerOptions(provider=Provider.CUDA, tf32=True, threads=2)
    cpu, cuda = every_case(tiny.variants, ("onnxruntime",), (Provider.CPU, Provider.CUDA), options=options)
    assert cpu.options == RunnerOptions(threads=2)
    assert cuda.options == options


def test_device_mode_is_a_row_of_its_own_and_counts_no_copies(tiny: Bundle) -> None:
    asked = Request(
        providers=(Provider.CPU,),
        runtimes=("onnxruntime", "onnxruntime-plain"),
        modes=(Mode.HOST, Mode.DEVICE),
        points=batch(1, 4),
        plan=Plan(rounds=10, turn_ms=1),
    )
    found = bench(tiny, asked)
    assert [(row.runtime, row.mode) for row in found.rows if row.samples == 4] == [
        ("onnxruntime", Mode.HOST),
        ("onnxruntime-plain", Mode.HOST),
        ("onnxruntime", Mode.DEVICE),
        ("onnxruntime-plain", Mode.DEVICE),
    ]
    assert all(row.status is Status.OK and row.latency for row in found.rows)
    assert {row.verdict.baseline for row in found.rows if row.verdict} == {"fp32 onnxruntime cpu"}
    assert found.rows[2].place == "onnxruntime cpu, device"
    assert "copies not counted" in tables.measured(found)


def test_modes_and_options_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="one bound batch"):
        Request(modes=(Mode.DEVICE,), load=Load(scenario=Scenario.OFFLINE))
    with pytest.raises(UsageError, match="host memory"):
        Request(modes=(Mode.DEVICE,), cold=True)
    for changes in ({"tf32": True}, {"cuda_graph": True}, {"gpu_memory_limit_bytes": 2**30}):
        (name,) = changes
        options = RunnerOptions(provider=Provider.CUDA, **changes)
        for asked in ((Provider.CPU,), None):
            with pytest.raises(UsageError, match=f"{name} changes nothing"):
                Request(providers=asked, runner=options)


def test_errors_name_options_as_they_are_typed(tiny: Bundle, kit_inside: Kit) -> None:
    wrong = kit_inside("bench", str(tiny.folder), "--provider", "cpu", "--cuda-graph")
    assert wrong.returncode == 2
    assert "--cuda-graph changes nothing" in wrong.stderr


def test_a_sweep_goes_over_any_axis_up_to_its_largest(duo: Bundle) -> None:
    asked = Request(providers=CPU, sweep="sequence", points=({"batch": 2},), plan=Plan(budget_seconds=0.5))
    found = bench(duo, asked)
    assert [(row.sizes["sequence"], row.samples) for row in found.rows] == [(2**power, 2) for power in range(7)]
    assert sweep.swept_axis(found.rows) == "sequence"
    assert sweep.knees(found) == ()


def test_sizes_to_look_at_keep_to_the_bounds_of_their_axis() -> None:
    assert sweep.doublings(Axis(least=3, most=40, multiple_of=4)) == (4, 8, 16, 32)
    assert sweep.doublings(Axis(least=0, most=1)) == (1,)


def test_a_cold_start_is_of_one_sample_at_one_size(duo: Bundle, tiny: Bundle) -> None:
    with pytest.raises(UsageError, match="one sample"):
        bench(tiny, Request(providers=CPU, cold=True, points=batch(8)))
    plan = Plan(budget_seconds=0.1)
    (row,) = bench(duo, Request(providers=CPU, cold=True, points=({"sequence": 16},), plan=plan)).rows
    assert (row.status, row.sizes) == (Status.OK, {"batch": 1, "sequence": 16})


def test_samples_per_second_have_an_interval_and_a_mean_far_from_the_median_is_said(tiny: Bundle) -> None:
    found = bench(tiny, Request(providers=(Provider.CPU,), points=({"batch": 1},), plan=Plan(rounds=10)))
    latency = found.rows[0].latency
    assert latency is not None
    assert latency.samples_per_second_low is not None
    assert latency.samples_per_second_high is not None
    assert latency.samples_per_second_low <= latency.samples_per_second <= latency.samples_per_second_high
    for mean, is_said in ((1.1, False), (2.8, True)):
        row = dataclasses.replace(found.rows[0], latency=dataclasses.replace(latency, mean_us=mean * latency.p50_us))
        remarks = dataclasses.replace(found, rows=(row,)).remarks()
        assert any("some are much slower" in remark for remark in remarks) == is_said
