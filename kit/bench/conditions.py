"""What else went on while the bench ran: neighbours, stolen time, a spent quota, heat, a battery.

Compares the system's counters before and after. What a system does not tell is None, and nothing is said about it.
"""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from kit.bench.meters import nvml_handle
from kit.system.machine import cgroup_file
from kit.system.wording import percent

_THROTTLE_COUNTS = Path("/sys/devices/system/cpu")
_BUSY_NEIGHBOUR = 0.2  # CPUs' worth of time
_STOLEN = 0.02
_NVML_REASONS = {
    0x8: "slowed by hardware",
    0x20: "too hot (software limit)",
    0x40: "too hot (hardware limit)",
    0x80: "power brake",
    0x4: "power limit",
}


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What disturbed a run; None where the system does not tell.

    Attributes:
        other_cpus: CPUs' worth of time that other processes used.
        stolen_share: Share of all CPU time that the hypervisor gave to other machines.
        quota_throttled_seconds: Time in which the container's quota was spent and threads had to wait.
        thermal_throttles: How often the CPU slowed itself down for heat.
        on_battery: Whether the machine ran on its battery at the end.
    """

    seconds: float
    other_cpus: float | None = None
    stolen_share: float | None = None
    quota_throttled_seconds: float | None = None
    thermal_throttles: int | None = None
    on_battery: bool | None = None
    gpu_throttled: tuple[str, ...] = ()

    def remarks(self) -> tuple[str, ...]:
        """Return what a reader of the figures must know, in sentences."""
        said = []
        if self.other_cpus is not None and self.other_cpus > _BUSY_NEIGHBOUR:
            said.append(f"a busy neighbour: other processes used {self.other_cpus:.1f} CPUs while the bench ran")
        if self.stolen_share is not None and self.stolen_share > _STOLEN:
            said.append(f"the hypervisor gave {percent(self.stolen_share)} of the CPU time to other machines")
        if self.quota_throttled_seconds:
            said.append(f"the container's CPU quota was spent: threads waited {self.quota_throttled_seconds:.2g} s")
        if self.thermal_throttles:
            said.append(f"the CPU slowed down for heat {self.thermal_throttles} times")
        if self.on_battery:
            said.append("the machine ran on its battery")
        said += [f"the GPU was held back: {reason}" for reason in self.gpu_throttled]
        return tuple(said)


@dataclass(frozen=True)
class _Reading:
    at: float
    busy: float
    stolen: float
    all_cpus: float
    own: float
    throttled_seconds: float | None
    thermal: int | None


class Watch:
    """Reads the counters when it is made, and tells what has happened since.

    `gpu` is the one to ask about; with `children` child processes do the work, whose time only some systems tell.
    """

    def __init__(self, gpu: int | None = None, *, children: bool = False) -> None:
        self._gpu = None if gpu is None else nvml_handle(gpu)
        self._gpu_reasons = 0
        self._knows_own = not children or sys.platform == "linux"
        self._start = _read()

    def sample(self) -> None:
        """Look whether the GPU is held back now; it has nothing to say once it is idle again."""
        if self._gpu is None:
            return
        nvml, device = self._gpu
        with contextlib.suppress(nvml.NVMLError):
            self._gpu_reasons |= int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(device))

    def conditions(self) -> Conditions:
        """Return what went on since the watch was made."""
        start, now = self._start, _read()
        spent = now.at - start.at
        capacity = now.all_cpus - start.all_cpus
        throttled = None
        if now.throttled_seconds is not None and start.throttled_seconds is not None:
            throttled = now.throttled_seconds - start.throttled_seconds
        others = now.busy - start.busy - (now.own - start.own)
        knows_others = self._knows_own and capacity > 0 and spent > 0
        return Conditions(
            seconds=round(spent, 3),
            other_cpus=round(max(others, 0.0) / spent, 3) if knows_others else None,
            stolen_share=round((now.stolen - start.stolen) / capacity, 4) if capacity > 0 else None,
            quota_throttled_seconds=throttled,
            thermal_throttles=now.thermal - start.thermal
            if now.thermal is not None and start.thermal is not None
            else None,
            on_battery=_on_battery(),
            gpu_throttled=tuple(words for bit, words in _NVML_REASONS.items() if self._gpu_reasons & bit),
        )


def _read() -> _Reading:
    times = psutil.cpu_times()
    own = psutil.Process().cpu_times()
    stolen = float(getattr(times, "steal", 0.0))
    # guest time is part of user time
    working = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
    return _Reading(
        at=time.perf_counter(),
        busy=working,
        stolen=stolen,
        all_cpus=working + stolen + times.idle + getattr(times, "iowait", 0.0),
        own=own.user + own.system + own.children_user + own.children_system,
        throttled_seconds=_quota_throttled(),
        thermal=_thermal_throttles(),
    )


def _quota_throttled() -> float | None:
    """Return the seconds in which the cgroup had spent its quota (version 2 counts microseconds, 1 nanoseconds)."""
    for line in cgroup_file("cpu.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in {"throttled_usec", "throttled_time"}:
            return int(value) / (1e6 if name == "throttled_usec" else 1e9)
    return None


def _thermal_throttles() -> int | None:
    """Return how often the cores have slowed down since boot; Intel's counters, absent in most virtual machines."""
    counts = []
    for file in _THROTTLE_COUNTS.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"):
        with contextlib.suppress(OSError, ValueError):
            counts.append(int(file.read_text()))
    return sum(counts) if counts else None


def _on_battery() -> bool | None:
    if not hasattr(psutil, "sensors_battery"):
        return None
    try:
        battery = psutil.sensors_battery()
    except (OSError, RuntimeError, ValueError):  # what odd firmware makes of it
        return None
    return None if battery is None or battery.power_plugged is None else not battery.power_plugged
