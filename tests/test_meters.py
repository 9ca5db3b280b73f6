"""Memory, energy and what else goes on, read from the system's own files; made-up ones where this machine has none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kit.bench import meters
from kit.bench.conditions import Conditions, Watch
from kit.bench.meters import PeakMemory, Rapl, high_water_bytes
from kit.choices import Provider
from kit.system import machine


def test_memory_that_a_block_takes_is_counted_at_its_peak() -> None:
    with PeakMemory() as memory:
        block = np.ones(50_000_000, np.uint8)
        del block
    assert memory.added_bytes >= (45_000_000 if sys.platform == "linux" else 0)
    with PeakMemory() as nothing:
        pass
    assert nothing.added_bytes < 5_000_000


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not tell")
def test_the_high_water_mark_is_more_than_an_interpreter() -> None:
    assert (high_water_bytes() or 0) > 5_000_000


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not tell")
def test_the_high_water_mark_of_a_child_is_its_own() -> None:
    block = np.ones(300_000_000, np.uint8)
    with subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1) as child:
        assert child.stdout
        child.stdout.readline()  # it runs
        found = high_water_bytes(child.pid)
        child.communicate(b"\n")
    assert 1_000_000 < (found or 0) < block.nbytes
    assert high_water_bytes(child.pid) is None


def powercap(root: Path, *values: int, limit: int = 1_000) -> None:
    for package, value in enumerate(values):
        for zone in (f"intel-rapl:{package}", f"intel-rapl:{package}:0"):
            (root / zone).mkdir(exist_ok=True)
            (root / zone / "energy_uj").write_text(f"{value}\n")
            (root / zone / "max_energy_range_uj").write_text(f"{limit}\n")


def test_energy_is_the_sum_of_the_packages_and_survives_their_wrapping(tmp_path: Path) -> None:
    powercap(tmp_path, 100, 990)
    meter = Rapl.here(tmp_path)
    assert meter() == 0
    powercap(tmp_path, 150, 10)  # the second has started anew at its maximum of 1,000
    assert meter() == 50 + 20
    powercap(tmp_path, 160, 30)
    assert meter() == 100


def test_a_machine_without_counters_gives_no_energy(tmp_path: Path) -> None:
    assert Rapl.here(tmp_path)() is None
    assert Rapl.here(tmp_path / "missing")() is None


@pytest.mark.usefixtures("no_cuda")
def test_a_machine_without_a_gpu_gives_no_energy_of_a_gpu() -> None:
    assert meters.energy_meter(Provider.CUDA)() is None


def test_this_machines_conditions_are_read() -> None:
    watch = Watch()
    found = watch.conditions()
    assert found.seconds >= 0
    assert found.other_cpus is None or found.other_cpus >= 0


def test_what_disturbs_a_run_is_said() -> None:
    assert Conditions(seconds=1.0).remarks() == ()
    assert Conditions(seconds=1.0, other_cpus=0.05, stolen_share=0.001, on_battery=False).remarks() == ()
    disturbed = Conditions(
        seconds=10.0,
        other_cpus=1.5,
        stolen_share=0.2,
        quota_throttled_seconds=0.5,
        thermal_throttles=3,
        on_battery=True,
        gpu_throttled=("power limit",),
    )
    said = " ".join(disturbed.remarks())
    for word in ("1.5 CPUs", "hypervisor gave 20 %", "quota", "heat", "battery", "power limit"):
        assert word in said


def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str) -> Path:
    (tmp_path / "own").write_text(own)
    root = tmp_path / "cgroup"
    root.mkdir()
    monkeypatch.setattr(machine, "_OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(machine, "_CGROUPS", root)
    return root


def test_the_tightest_quota_on_the_way_up_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = cgroup(tmp_path, monkeypatch, "0::/slice/job\n")
    (root / "slice" / "job").mkdir(parents=True)
    (root / "slice" / "cpu.max").write_text("150000 100000\n")
    (root / "slice" / "job" / "cpu.max").write_text("max 100000\n")
    (root / "slice" / "job" / "cpu.stat").write_text("usage_usec 5\nthrottled_usec 7000000\n")
    assert machine._cpu_quota() == 1.5
    assert "throttled_usec 7000000" in machine.cgroup_file("cpu.stat")


def test_a_quota_of_the_older_kind_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = cgroup(tmp_path, monkeypatch, "4:cpu,cpuacct:/not/to/be/seen/from/inside\n")
    (root / "cpu").mkdir()
    (root / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    (root / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert machine._cpu_quota() == 0.5
    (root / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert machine._cpu_quota() is None
