"""The machine a figure was measured on: recorded beside every figure, so that it can be read elsewhere.

Reads /proc and the cgroup files on Linux and falls back to what Python knows; asks `nvidia-smi` about GPUs. Never raises
for something it cannot find out: the field is then None or empty.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kit.system import packages

# The instructions that decide how fast, and how exactly, integer kernels run (facts: microsoft/onnxruntime#14642).
_TELLING_FLAGS = ("avx2", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16", "asimddp", "i8mm")
_OWN_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
_TOOLS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnx",
    "onnxscript",
    "openvino",
    "ai-edge-litert",
    "mnn",
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "streamlit",
)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One NVIDIA GPU as `nvidia-smi` names it."""

    name: str
    driver: str
    memory_mib: int
    sm_clock_mhz: int | None = None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What decides how fast a model runs here.

    Attributes:
        cpu_flags: Of the CPU's instruction sets, those that decide how integer kernels run.
        logical_cpus: CPUs of the machine.
        usable_cpus: Those this process may run on (affinity).
        cpu_quota: CPUs' worth of time the container allows; None without a limit.
    """

    system: str
    architecture: str
    cpu: str
    cpu_flags: tuple[str, ...]
    logical_cpus: int
    usable_cpus: int
    cpu_quota: float | None
    memory_bytes: int | None
    python: str
    gpus: tuple[Gpu, ...] = ()

    @property
    def cpus_to_use(self) -> int:
        """How many threads can run at once: affinity and quota together, 1 at least."""
        return max(1, min(self.usable_cpus, math.ceil(self.cpu_quota) if self.cpu_quota else self.usable_cpus))

    @property
    def fingerprint(self) -> str:
        """Short hash of the hardware, equal for machines whose figures may be compared."""
        parts = (self.architecture, self.cpu, *self.cpu_flags, str(self.usable_cpus), str(self.cpu_quota))
        return hashlib.sha256("|".join([*parts, *(gpu.name for gpu in self.gpus)]).encode()).hexdigest()[:12]

    def describe(self) -> str:
        """Return one line: CPU, cores, flags, GPUs, system."""
        cores = f"{self.usable_cpus} of {self.logical_cpus} CPUs"
        if self.cpu_quota is not None:
            cores += f" (quota {self.cpu_quota:g})"
        gpus = ", ".join(f"{gpu.name} (driver {gpu.driver})" for gpu in self.gpus) or "no GPU"
        flags = " ".join(self.cpu_flags) or "no known vector flags"
        return f"{self.cpu}, {cores}, {flags}; {gpus}; {self.system}, Python {self.python}"


@cache
def this_machine() -> Machine:
    """Look at this machine, once."""
    cpuinfo = _cpuinfo()
    flags = set(cpuinfo.get("flags", cpuinfo.get("Features", "")).split())
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        cpu=_cpu_name(cpuinfo),
        cpu_flags=tuple(flag for flag in _TELLING_FLAGS if flag in flags),
        logical_cpus=os.cpu_count() or 1,
        usable_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        cpu_quota=_cpu_quota(),
        memory_bytes=_memory_bytes(),
        python=platform.python_version(),
        gpus=_gpus(),
    )


@cache
def tool_versions() -> dict[str, str]:
    """Return the versions of kit and of the packages that decide a figure, those that are installed."""
    found = {name: packages.version(name) for name in (packages.DISTRIBUTION, *_TOOLS)}
    return {name: version for name, version in found.items() if version is not None}


def _cpuinfo() -> dict[str, str]:
    text = _read("/proc/cpuinfo").split("\n\n", maxsplit=1)[0]
    pairs = (line.split(":", maxsplit=1) for line in text.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _cpu_name(cpuinfo: dict[str, str]) -> str:
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    name = cpuinfo.get("model name") or platform.processor() or platform.machine()
    if "model" in cpuinfo and "cpu family" in cpuinfo:
        # Virtual machines hide the model's name; family and model still tell Zen 3 from Zen 4.
        name += f" (family {cpuinfo['cpu family']} model {cpuinfo['model']})"
    return name


def _cpu_quota() -> float | None:
    """Return the CPUs' worth of time the container may use: the tightest limit on the way up from its cgroup."""
    limits = []
    for folder in _cgroup_folders():
        limit, _, period = _read(folder / "cpu.max").strip().partition(" ")  # version 2
        if not limit:
            limit = _read(folder / "cpu.cfs_quota_us").strip()  # version 1
            period = _read(folder / "cpu.cfs_period_us").strip()
        if limit.isdigit() and period.isdigit() and int(period):
            limits.append(int(limit) / int(period))
    return min(limits, default=None)


def cgroup_file(name: str) -> str:
    """Return the text of a CPU accounting file of this process's cgroup; empty where there is none."""
    return next((text for folder in _cgroup_folders() if (text := _read(folder / name))), "")


def _cgroup_folders() -> list[Path]:
    """Return the folders of this process's cgroup and its parents, the innermost first (version 2, then 1)."""
    folders = []
    for line in _read(_OWN_CGROUP).splitlines():
        _, controllers, path = line.split(":", maxsplit=2)
        if controllers == "" or "cpu" in controllers.split(","):
            root = _CGROUPS if controllers == "" else _CGROUPS / "cpu"
            own = root / path.strip("/")
            folders += [own, *(parent for parent in own.parents if parent.is_relative_to(root))]
    return [*folders, _CGROUPS, _CGROUPS / "cpu"]  # a container may see its own folder as the root


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _gpus() -> tuple[Gpu, ...]:
    fields = "name,driver_version,memory.total,clocks.sm"
    rows = (
        line.split(", ")
        for line in _output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits").splitlines()
    )
    return tuple(
        Gpu(
            name=row[0],
            driver=row[1],
            memory_mib=int(row[2]) if row[2].isdigit() else 0,
            sm_clock_mhz=int(row[3]) if row[3].isdigit() else None,
        )
        for row in rows
        if len(row) == 4
    )


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _output(*command: str) -> str:
    program = shutil.which(command[0])
    if program is None:
        return ""
    try:
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
