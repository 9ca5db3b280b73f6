"""What a contestant takes besides time: memory and energy, where the machine tells."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psutil

from kit.choices import Provider

_POWERCAP = Path("/sys/class/powercap")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_STEADY_NS = 1_000_000_000


class PeakMemory:
    """The most that a block of code adds to this process's resident memory, in bytes: a lower bound.

    Memory that was freed before and is used again does not count. Where Linux's high-water mark cannot be reset
    (proc(5), clear_refs), and elsewhere, it is what the block has added at its end.

    ```python
    with PeakMemory() as memory:
        ...
    print(memory.added_bytes)
    ```
    """

    def __init__(self) -> None:
        self.added_bytes = 0

    def __enter__(self) -> Self:
        return_freed_memory()
        self._marks = _reset_high_water()
        self._before = psutil.Process().memory_info().rss
        return self

    def __exit__(self, *_: object) -> None:
        now = psutil.Process().memory_info().rss
        if self._marks:
            now = max(now, high_water_bytes() or 0)
        self.added_bytes = max(now - self._before, 0)


def _reset_high_water() -> bool:
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def return_freed_memory() -> None:
    """Have the C library give freed memory back to the system (glibc, malloc_trim(3)): what is used next is new memory."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def high_water_bytes(pid: int | None = None) -> int | None:
    """Return the most memory a process ever held, this one or another; None where the system does not tell."""
    # Not by getrusage: on Linux a child inherits its parent's maximum across exec.
    try:
        status = Path(f"/proc/{pid or 'self'}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        try:
            peak = getattr(psutil.Process(pid).memory_info(), "peak_wset", None)  # Windows
        except psutil.Error:  # it has ended
            return None
        return int(peak) if peak is not None else None
    return int(line.split()[1]) * 1024


EnergyMeter = Callable[[], float | None]


def energy_meter(provider: Provider, device_id: int = 0) -> EnergyMeter:
    """Return a function that reads the energy drawn so far, in microjoules; it gives None where the machine does not tell.

    On the CPU: all packages by Intel's RAPL, which Linux shows for AMD as well (usually to root only). On a GPU: NVML's
    counter, from Volta on, which is brought up to date only some ten times a second (`steady_energy_uj`). Both count the
    whole chip, idle power and neighbours included.
    """
    return Rapl.here() if provider is Provider.CPU else _nvml_meter(device_id)


def steady_energy_uj(
    call: Callable[[], object], meter: EnergyMeter, *, clock: Callable[[], int] = time.perf_counter_ns
) -> float | None:
    """Return the energy of one call, in microjoules, from calls for a second on end: for counters too slow for a turn."""
    before = meter()
    if before is None:
        return None
    until = clock() + _STEADY_NS
    calls = 0
    while calls == 0 or clock() < until:
        call()
        calls += 1
    after = meter()
    return None if after is None else (after - before) / calls


class Rapl:
    """The energy counters of the CPU packages, unwrapped: each starts anew at a maximum of its own."""

    def __init__(self, counters: tuple[tuple[Path, int], ...]) -> None:
        self._counters = counters
        self._last = [0] * len(counters)
        self._total = 0.0
        self._started = False

    @classmethod
    def here(cls, root: Path = _POWERCAP) -> Rapl:
        """Find the packages under the kernel's powercap folder."""
        found = []
        for zone in sorted(root.glob("intel-rapl:[0-9]*")):
            if zone.name.count(":") == 1:  # a package; deeper zones are parts of one
                with contextlib.suppress(OSError, ValueError):
                    found.append((zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())))
        return cls(tuple(found))

    def __call__(self) -> float | None:
        """Return microjoules since the first reading."""
        try:
            now = [int(path.read_text()) for path, _ in self._counters]
        except (OSError, ValueError):
            return None
        if not now:
            return None
        if self._started:
            spans = (span for _, span in self._counters)
            self._total += sum(
                new - old if new >= old else new - old + span
                for new, old, span in zip(now, self._last, spans, strict=True)
            )
        self._last, self._started = now, True
        return self._total


def _nvml_meter(device_id: int) -> EnergyMeter:
    handle = nvml_handle(device_id)
    if handle is None:
        return lambda: None
    nvml, device = handle

    def read() -> float | None:
        try:
            return float(nvml.nvmlDeviceGetTotalEnergyConsumption(device)) * 1e3  # it counts millijoules
        except nvml.NVMLError:
            return None

    return read


def nvml_handle(device_id: int) -> tuple[Any, Any] | None:
    """Return NVML and its handle of a GPU, counted as CUDA counts; None where there is no NVML or no such GPU."""
    try:
        import pynvml
    except ImportError:
        return None
    name = physical_gpu(device_id, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if name is None:
        return None
    try:
        pynvml.nvmlInit()
        if isinstance(name, int):
            return pynvml, pynvml.nvmlDeviceGetHandleByIndex(name)
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(name)
    except pynvml.NVMLError:
        return None


def physical_gpu(device_id: int, visible: str | None) -> int | str | None:
    """Return the index or the UUID by which the system knows CUDA's device `device_id`; None where it is hidden.

    `visible` is CUDA_VISIBLE_DEVICES, None where it is not set. CUDA stops reading it at the first entry it cannot use.
    """
    if visible is None:
        return device_id
    names = [name.strip() for name in visible.split(",")]
    if device_id >= len(names) or not all(name.isdecimal() or "-" in name[1:] for name in names[: device_id + 1]):
        return None
    name = names[device_id]
    return int(name) if name.isdecimal() else name
