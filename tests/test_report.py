"""The report: the same figures as the results file, in words that the verdicts cover, on a page that needs nothing else."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest

from apps.cli.report import report
from kit.bench import results
from kit.bench.conditions import Conditions
from kit.bench.results import ColdStart, Control, Latency, NodeTime, Results, Row, Status, Verdict
from kit.bench.stats import Comparison, Outcome
from kit.choices import Precision, Provider
from kit.errors import BadInput, StorageUnavailable, UsageError
from kit.metrics import Better, Score
from kit.report import headline, tables
from kit.report.page import pareto, render
from kit.system.machine import Machine
from tests.conftest import CHROMIUM, ROOT, Kit

SHOTS = ROOT / "test-artifacts"
BASELINE = "fp32 onnxruntime cpu"
HOSTILE = '<script>alert(1)</script> | "x" & `--flag`'


def latency(p50_us: float, batch_size: int = 1, *, calls: int = 2000) -> Latency:
    percentiles = p50_us * np.exp(np.linspace(-0.2, 0.6, 101))
    return Latency(
        calls=calls,
        rounds=20,
        p50_us=p50_us,
        p90_us=float(percentiles[90]),
        p95_us=float(percentiles[95]),
        p99_us=float(percentiles[99]) if calls >= 1000 else None,
        max_us=float(percentiles[100]),
        low_us=0.98 * p50_us,
        high_us=1.02 * p50_us,
        samples_per_second=1e6 * batch_size / p50_us,
        medians_us=tuple(p50_us * (1 + 0.001 * (turn % 5)) for turn in range(20)),
        mean_us=p50_us,
        percentiles_us=tuple(percentiles.tolist()),
    )


def top1(correct: int, samples: int = 10_000, **other: object) -> Score:
    value = correct / samples
    return Score(metric="top-1", dataset="mnist", split="test", samples=samples, value=value, unit="%", **other)


def rmse(value: float, **other: object) -> Score:
    known = {"metric": "rmse", "dataset": "cars", "split": "test", "samples": 500, "better": Better.LOWER, "unit": "mm"}
    return Score(**known, value=value, **other)


def row(variant: str = "fp32", p50_us: float | None = 70.0, batch_size: int = 1, **other: object) -> Row:
    fields: dict[str, object] = {
        "bundle": "digits",
        "variant": variant,
        "precision": Precision.FP32 if variant == "fp32" else Precision.INT8,
        "sha256": variant.ljust(64, "0"),
        "size_bytes": 2_270_000 if variant == "fp32" else 587_000,
        "runtime": "onnxruntime",
        "provider": Provider.CPU,
        "ran_on": Provider.CPU,
        "placement": "cpu 9/9",
        "sizes": {"batch": batch_size},
        "samples": batch_size,
        "threads": 1,
        "mode": "host",
        "status": Status.OK,
        "latency": latency(p50_us, batch_size) if p50_us else None,
        "scores": (top1(9912),),
        "score_source": "live",
    }
    return Row(**{**fields, **other})


def verdict(outcome: Outcome, speedup: float = 1.0) -> Verdict:
    comparison = Comparison(speedup=speedup, low=0.95 * speedup, high=1.05 * speedup, p_value=0.01)
    return Verdict(outcome=outcome, baseline=BASELINE, comparison=None if outcome is Outcome.BASELINE else comparison)


def made(*rows: Row, cpu: str = "A CPU", **other: object) -> Results:
    machine = Machine(
        system="Linux 6",
        architecture="x86_64",
        cpu=cpu,
        cpu_flags=("avx2",),
        logical_cpus=4,
        usable_cpus=2,
        cpu_quota=1.5,
        memory_bytes=8_000_000_000,
        python="3.12.1",
    )
    fields: dict[str, object] = {
        "schema_version": results.SCHEMA_VERSION,
        "kind": results.KIND,
        "created": "2026-01-02T03:04:05+00:00",
        "machine": machine,
        "tools": {"onnxruntime": "1.31.1"},
        "seed": 0,
        "arguments": {"threads": "1"},
        "rows": rows,
    }
    return Results(**{**fields, **other})


def pair(outcome: Outcome = Outcome.FASTER, speedup: float = 2.0, batch_size: int = 1) -> tuple[Row, Row]:
    lossy = top1(9906, baseline=0.9912, worse=6, improved=0)
    us = 70.0 * batch_size**0.7
    return (
        row("fp32", us, batch_size, verdict=verdict(Outcome.BASELINE)),
        row("int8-qdq", us / speedup, batch_size, verdict=verdict(outcome, speedup), scores=(lossy,)),
    )


UNAVAILABLE = row(
    "fp32",
    None,
    provider=Provider.CUDA,
    ran_on=None,
    placement="",
    status=Status.UNAVAILABLE,
    reason="no NVIDIA driver",
    fix="install one, start with `--gpus all`",
    score_source="manifest",
)
COLD = row(
    "fp32",
    None,
    cold=ColdStart(
        processes=4,
        total_ms=400.0,
        low_ms=390.0,
        high_ms=410.0,
        stages_ms={"Python starts": 50.0, "import kit": 300.0, "open the model": 50.0},
        peak_memory_bytes=70_000_000,
    ),
)
PROFILE = row(
    "fp32",
    None,
    kernels="cpu 6/6",
    profile=tuple(
        NodeTime(node=f"node_{at}", operator="Gemm", provider="cpu", mean_us=50.0 / (at + 1), share=0.4 / (at + 1))
        for at in range(13)
    ),
)


def everything() -> Results:
    """A sweep with a row that could not run, a fallback, a cold start, a profile, controls and conditions."""
    swept = [one for size in (1, 8, 64, 512, 1024) for one in pair(batch_size=size)]
    fallback = row(
        "int8-qdq", 80.0, provider=Provider.CUDA, status=Status.FALLBACK, reason="CUDA gave up", fix="kit doctor"
    )
    control = Control(
        contestant=BASELINE,
        sizes={"batch": 1},
        outcome=Outcome.SAME,
        comparison=verdict(Outcome.SAME).comparison,
        drift=0.2,
    )
    conditions = Conditions(seconds=3.0, other_cpus=1.5, stolen_share=0.0)
    return made(*swept, UNAVAILABLE, fallback, COLD, PROFILE, controls=(control,), conditions=conditions)


def test_csv_has_one_line_for_each_row_and_empty_cells_for_what_is_not_there() -> None:
    run = made(*pair(), UNAVAILABLE, COLD)
    lines = list(csv.DictReader(io.StringIO(tables.to_csv([run, run], names=["here", "there"]))))
    assert [line["file"] for line in lines] == ["here"] * 4 + ["there"] * 4
    quick, missing, cold = lines[1:4]
    assert (float(quick["p50_us"]), quick["verdict"], quick["speedup"]) == (35.0, "FASTER", "2")
    assert (missing["p50_us"], missing["ran_on"], missing["status"]) == ("", "", "unavailable")
    assert missing["fix"] == UNAVAILABLE.fix
    assert (cold["cold_total_ms"], cold["cold_peak_memory_bytes"]) == ("400", "70000000")


def test_markdown_keeps_rows_that_did_not_run_with_their_reason_below() -> None:
    text = tables.to_markdown([made(*pair(), UNAVAILABLE)])
    assert "| int8-qdq | onnxruntime | cpu 9/9 | 1 | 35.0 |" in text
    assert "FASTER 2.00x [1.90, 2.10]" in text
    assert "cuda: unavailable, note 1" in text
    assert "1. no NVIDIA driver → install one, start with `--gpus all`" in text
    assert "A CPU, 2 of 4 CPUs" in text


def test_markdown_cells_survive_pipes_and_line_ends() -> None:
    text = tables.to_markdown([made(row("a|b\nc", 10.0))])
    header, rule, cells = text.splitlines()[:3]
    assert r"a\|b c" in cells
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in (header, rule, cells)}) == 1


def test_several_runs_have_tables_of_their_own() -> None:
    text = tables.to_markdown([made(*pair()), made(*pair(), cpu="Another CPU")], names=["here", "there"])
    assert text.index("### here") < text.index("A CPU") < text.index("### there") < text.index("Another CPU")


def test_cold_and_profile_tables_have_no_empty_latency_columns() -> None:
    assert "p50" not in tables.to_markdown([made(COLD)])
    assert "400 [390, 410]" in tables.to_markdown([made(COLD)])
    assert "Gemm 40 %" in tables.to_markdown([made(PROFILE)])


def test_the_headline_names_a_winner_its_score_and_what_was_lost() -> None:
    found = headline.headline(made(*pair()))
    assert found.title.startswith("int8-qdq in onnxruntime on cpu answers one sample in 35.0 µs, 2.00 times as fast")
    assert "99.06 %" in found.title
    assert any(
        "0.06 points worse" in one and "6 became wrong" in one and "mnist test" in one for one in found.sentences
    )


@pytest.mark.parametrize("outcome", [Outcome.SLOWER, Outcome.INCONCLUSIVE, Outcome.SAME])
def test_the_headline_names_no_winner_where_the_verdict_does_not(outcome: Outcome) -> None:
    found = headline.headline(made(*pair(outcome, 1.05)))
    assert found.title.startswith("Nothing was surely faster than fp32 in onnxruntime on cpu")
    assert any(str(outcome) in sentence for sentence in found.sentences)


def test_the_headline_says_where_the_winner_does_not_win() -> None:
    found = headline.headline(made(*pair(), *pair(Outcome.SLOWER, 0.8, batch_size=64)))
    assert any("not faster at every size: SLOWER 0.80x" in sentence for sentence in found.sentences)


def test_the_headline_bears_other_sizes_without_a_verdict() -> None:
    others = [dataclasses.replace(one, verdict=None) for one in pair(batch_size=64)]
    found = headline.headline(made(*pair(), *others))
    assert "2.00 times as fast" in found.title
    assert not any("as well" in sentence for sentence in found.sentences)


def test_the_headline_doubts_a_run_whose_baseline_differs_from_itself() -> None:
    doubtful = Control(
        contestant=BASELINE,
        sizes={"batch": 1},
        outcome=Outcome.FASTER,
        comparison=verdict(Outcome.FASTER, 1.3).comparison,
    )
    found = headline.headline(made(*pair(), controls=(doubtful,)))
    assert "differed from itself" in found.title
    assert any("do not trust" in caution for caution in found.cautions)


def test_a_fallback_wins_nothing_and_rows_that_did_not_run_are_counted() -> None:
    fallback = row("int8-qdq", 1.0, status=Status.FALLBACK, reason="gave up", verdict=verdict(Outcome.FASTER, 70.0))
    found = headline.headline(made(*pair(), fallback, UNAVAILABLE))
    assert "35.0 µs" in found.title
    assert [caution.split(":")[0] for caution in found.cautions] == ["1 of 4 rows did not run as asked"] * 2
    assert headline.headline(made(UNAVAILABLE)).title.startswith("Nothing could be measured")


def test_the_pareto_front_holds_what_nothing_beats_in_both() -> None:
    right, wrong = {"scores": (top1(99, 100),)}, {"scores": (top1(90, 100),)}
    quick, good, slow, tied = row("q", 10, **wrong), row("g", 20, **right), row("s", 30, **wrong), row("t", 20, **wrong)
    assert pareto([slow, tied, good, quick, row("n", 1.0, scores=())]) == (quick, good)
    near, far = row("n", 10, scores=(rmse(2.0),)), row("f", 20, scores=(rmse(1.0),))
    assert pareto([far, near, row("w", 30, scores=(rmse(3.0),))]) == (near, far), "less of an error is better"


def test_a_metric_keeps_its_name_unit_and_direction_everywhere() -> None:
    base = row("fp32", 70.0, scores=(rmse(1.25),), verdict=verdict(Outcome.BASELINE))
    loss = rmse(1.5, baseline=1.25, low=0.2, high=0.3)
    quick = row("int8", 35.0, scores=(loss,), verdict=verdict(Outcome.FASTER, 2.0))
    run = made(base, quick)
    text = tables.to_markdown([run])
    assert "| rmse |" in text
    assert "1.5 mm" in text
    assert "rmse in mm (lower is better): cars test, 500 samples." in text
    found = headline.headline(run)
    assert "with rmse 1.5 mm" in found.title
    assert any("0.25 mm worse than the baseline" in one for one in found.sentences)
    (_, line) = csv.DictReader(io.StringIO(tables.to_csv([run])))
    assert (line["metric"], line["score"], line["score_unit"], line["better"]) == ("rmse", "1.5", "mm", "lower")
    page = render([run], names=["a"])
    assert "rmse, mm" in page
    assert "as good in rmse" in page


def test_a_model_of_which_nothing_is_known_has_no_column_for_it_and_one_line() -> None:
    text = tables.to_markdown([made(row("model", 10.0, scores=(), score_source="", sizes={}))])
    assert "top-1" not in text
    assert "batch" not in text
    assert text.count("is not known") == 1


def test_every_axis_in_which_rows_differ_has_a_column() -> None:
    sizes = [{"batch": count, "sequence": length} for count in (1, 8) for length in (16, 128)]
    text = tables.to_markdown([made(*(row("fp32", 10.0, sizes=one) for one in sizes))])
    assert "| batch | sequence |" in text
    assert "| 8 | 128 |" in text


def test_the_page_escapes_what_a_results_file_says() -> None:
    bad = dataclasses.replace(UNAVAILABLE, reason=HOSTILE)
    page = render([made(row(HOSTILE, 10.0), bad, cpu=HOSTILE)], names=[HOSTILE])
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "<code>--flag</code>" in page


def test_the_page_has_a_section_for_what_is_there_and_none_for_what_is_not() -> None:
    def sections(run: Results) -> set[str]:
        found = set(re.findall(r'<section id="([a-z-]+)"', render([run], names=["a"])))
        return found - {"found", "figures", "placement", "environment"}

    assert sections(everything()) == {"latency", "score", "sweep", "cold", "profile"}
    assert sections(made(*pair())) == {"latency", "score"}
    assert sections(made(COLD)) == {"cold"}
    assert sections(made(PROFILE)) == {"profile"}
    assert sections(made(UNAVAILABLE)) == set()
    assert sections(made(row(scores=()))) == {"latency"}


def test_rows_of_two_files_stand_side_by_side_only_where_they_are_the_same() -> None:
    shared = render([made(*pair()), made(*pair(), cpu="Another CPU")], names=["here", "there"])
    assert 'id="side-by-side"' in shared
    assert "2 runs of kit bench on 2 machines" in shared
    other = tuple(dataclasses.replace(one, sha256="f" * 64) for one in pair())
    assert 'id="side-by-side"' not in render([made(*pair()), made(*other)], names=["here", "there"])
    with pytest.raises(UsageError):
        render([made(*pair())] * 2, names=["same", "same"])


def run_command(*arguments: object) -> object:
    return report.main([str(one) for one in arguments], standalone_mode=False)


def test_the_command_writes_what_the_suffix_or_the_format_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "run.json"
    made(*pair(), UNAVAILABLE).save(saved)
    for name, start in (("page.html", "<!doctype html>"), ("rows.csv", "file,machine"), ("new/table.md", "| variant")):
        assert run_command(saved, "-o", tmp_path / name) == 0
        assert (tmp_path / name).read_text(encoding="utf-8").startswith(start)
        assert f"Wrote {tmp_path / name}" in capsys.readouterr().err.replace("\n", "")
    assert run_command(saved, "-o", "-", "--format", "csv") == 0
    assert capsys.readouterr().out == (tmp_path / "rows.csv").read_text(encoding="utf-8")
    assert run_command(saved, saved, "-o", tmp_path / "two.txt", "--format", "markdown") == 0
    assert "### 1: " in (tmp_path / "two.txt").read_text(encoding="utf-8")


def test_the_command_refuses_in_words(tmp_path: Path) -> None:
    saved = tmp_path / "run.json"
    made(*pair()).save(saved)
    for arguments in (("-o", "-"), ("-o", tmp_path / "report.pdf")):
        with pytest.raises(UsageError, match="no suffix"):
            run_command(saved, *arguments)
    with pytest.raises(BadInput, match=r"gone\.json"):
        run_command(tmp_path / "gone.json")
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageUnavailable):
        run_command(saved, "-o", tmp_path / "file" / "report.csv")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "run.json"]


def test_a_missing_altair_is_named_with_the_line_that_installs_it(tmp_path: Path, python: Kit) -> None:
    made(*pair()).save(tmp_path / "run.json")
    program = (
        "import sys; sys.modules['altair'] = None\n"
        "from apps.cli.report import report\nfrom kit.errors import PackageMissing\n"
        "try: report.main(['run.json'], standalone_mode=False)\n"
        "except PackageMissing as error: print(error, error.hint)"
    )
    found = python(program)
    assert "pip install" in found.stdout, found.stderr
    assert "extra `report`" in found.stdout


@pytest.mark.slow
@pytest.mark.browser
def test_the_page_draws_itself_without_a_network_on_narrow_and_wide_windows(tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    path = tmp_path / "report.html"
    path.write_text(render([everything(), made(*pair(), cpu="Another CPU")], names=["here", "there"]), encoding="utf-8")
    SHOTS.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for width in (380, 1600):
            tab = browser.new_page(viewport={"width": width, "height": 900})
            asked: list[str] = []
            said: list[str] = []
            tab.on("request", lambda request, asked=asked: asked.append(request.url))
            tab.on("console", lambda message, said=said: said.append(message.text))
            tab.on("pageerror", lambda error, said=said: said.append(str(error)))
            tab.goto(path.as_uri())
            charts = tab.locator(".chart").count()
            tab.wait_for_function(f"document.querySelectorAll('.chart[data-drawn]').length === {charts}")
            drawn = tab.locator(".chart svg path").count()
            tab.screenshot(path=SHOTS / f"report-{width}.png", full_page=True)
            assert charts >= 10
            assert drawn > 10 * charts
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert said == []
            assert asked == [path.as_uri()]
            assert tab.locator(".chart:not([aria-label])").count() == 0
        browser.close()
