"""What another package registers may be broken: that is said with the package's name, and everything else goes on."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kit import datasets
from kit.bench.measure import Plan
from kit.bench.request import Request
from kit.bench.results import Status
from kit.bench.run import bench
from kit.bundle import Bundle
from kit.errors import Unavailable, UsageError
from kit.runtime import registry
from kit.runtime.base import RunnerOptions
from kit.tasks.tensors import PlainTensors
from kit.verify import verify
from tests import graphs
from tests.helpers.plugs import install

Registered = Callable[[str, str], None]

BROKEN = {
    "does not load": "raise AttributeError('module numpy has no attribute float_')\n",
    "fails when called": """
def open_broken(*arguments):
    raise ZeroDivisionError("a defect")

rebuild = load = of = names = open_broken
""",
}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return graphs.bundle(graphs.two_by_two(), tmp_path / "two")


@pytest.fixture(params=BROKEN)
def register(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registered]:
    """Install a package that is broken in one of the ways, under a group of entry points."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "broken_plug.py").write_text(BROKEN[request.param])

    def registered(group: str, target: str) -> None:
        install(site, monkeypatch, group=group, name="broken", target=target)
        importlib.invalidate_caches()

    yield registered
    sys.modules.pop("broken_plug", None)


def test_a_broken_runtime_is_unavailable_and_named(bundle: Bundle, register: Registered) -> None:
    register("kit.runtimes", "broken_plug:open_broken")
    variant = bundle.variant()
    assert registry.can_run("broken", variant)
    with pytest.raises(Unavailable, match="package plug-broken"):
        registry.open_runner("broken", bundle, variant, RunnerOptions())


def test_a_broken_runtime_stops_no_check_of_all(bundle: Bundle, register: Registered) -> None:
    register("kit.runtimes", "broken_plug:open_broken")
    result = verify(bundle, runtimes=("all",))
    assert result.ok
    assert any("plug-broken" in remark for remark in result.remarks)


def test_a_broken_runtime_costs_a_bench_its_own_rows(bundle: Bundle, register: Registered) -> None:
    register("kit.runtimes", "broken_plug:open_broken")
    found = bench(bundle, Request(runtimes=("onnxruntime", "broken"), plan=Plan(rounds=10, turn_ms=0.5, warmup_ms=1.0)))
    statuses = {row.runtime: row.status for row in found.rows}
    assert statuses["onnxruntime"] is Status.OK
    assert statuses["broken"] is not Status.OK


def test_broken_data_sets_leave_the_others_readable(bundle: Bundle, register: Registered) -> None:
    before = datasets.names()
    register("kit.datasets", "broken_plug")
    assert datasets.names() == before
    assert datasets.of(bundle) is None
    assert datasets.at_hand("digits-of-nobody", PlainTensors(), bundle.signature) is None
    with pytest.raises(Unavailable, match="package plug-broken"):
        datasets.load("digits-of-nobody", PlainTensors(), bundle.signature)


def test_an_unknown_data_set_is_a_slip_if_every_plug_works(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="digits-of-nobody"):
        datasets.load("digits-of-nobody", PlainTensors(), bundle.signature)


def test_a_broken_architecture_is_told_and_verify_goes_on(digits: Bundle, register: Registered) -> None:
    register("kit.architectures", "broken_plug:rebuild")
    original = digits.manifest.original
    assert original is not None
    strange = dataclasses.replace(
        digits, manifest=dataclasses.replace(digits.manifest, original=dataclasses.replace(original, name="nobody's"))
    )
    with pytest.raises(Unavailable, match="package plug-broken"):
        registry.rebuilt(strange)
    result = verify(strange)
    assert result.ok
    assert any("plug-broken" in remark for remark in result.remarks)
