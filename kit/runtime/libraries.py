"""Why CUDA cannot run here: the package, the driver, the device or a library, in the order a person would check them.

Asks the loader itself, because lists of what was compiled in (`get_available_providers`) say nothing about what can run.
Imports no onnxruntime: the caller says what its build offers.
"""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kit.system import packages

CPU_PACKAGE = "onnxruntime"
GPU_PACKAGE = "onnxruntime-gpu"
_LEAST_CUDA = 13  # onnxruntime-gpu 1.27 and later are built for CUDA 13 and cuDNN 9
_TENSORRT_LINE = "pip install tensorrt-cu13   (kit loads its libraries itself)"
_DRIVER_LINE = "install an NVIDIA driver of series 580 or newer; in a container start it with `--gpus all`"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A cause in one clause, and the next thing to type or do."""

    reason: str
    fix: str


def installed_packages() -> dict[str, str]:
    """Return the ONNX Runtime packages installed here, with their versions; two of them overwrite each other."""
    names = (CPU_PACKAGE, GPU_PACKAGE, "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn")
    found = {name: packages.version(name) for name in names}
    return {name: version for name, version in found.items() if version is not None}


def double_install() -> Problem | None:
    """Notice two ONNX Runtime packages that own the same files (microsoft/onnxruntime#26996)."""
    found = installed_packages()
    if len(found) < 2:
        return None
    both = " and ".join(f"{name} {version}" for name, version in found.items())
    return Problem(
        reason=f"{both} are both installed and overwrite each other's files",
        fix=f"pip uninstall -y {' '.join(found)} && {packages.install_line(GPU_PACKAGE)}",
    )


def cuda_problem(*, compiled_in: bool, library_folder: Path, device_id: int = 0) -> Problem | None:
    """Return what keeps the CUDA provider from running, or None.

    `compiled_in`: the installed build lists the provider; `library_folder`: where it keeps its provider libraries.
    """
    if not compiled_in:
        package, driver = _package_problem(), _driver_problem(device_id)
        if driver is None or sys.platform == "darwin":
            return package
        return Problem(reason=f"{package.reason}, and {driver.reason}", fix=f"{driver.fix}; then: {package.fix}")
    return _driver_problem(device_id) or _library_problem(library_folder)


def tensorrt_problem(*, compiled_in: bool, library_folder: Path, device_id: int = 0) -> Problem | None:
    """Return what keeps the TensorRT provider from running, or None; it needs all that CUDA needs, and TensorRT's own."""
    if not compiled_in and sys.platform != "darwin" and GPU_PACKAGE in installed_packages():
        return Problem(reason="the installed onnxruntime-gpu has no TensorRT provider", fix="use --provider cuda")
    problem = cuda_problem(compiled_in=compiled_in, library_folder=library_folder, device_id=device_id)
    if problem is not None:
        return problem
    name = "onnxruntime_providers_tensorrt.dll" if sys.platform == "win32" else "libonnxruntime_providers_tensorrt.so"
    error = _load_error(str(library_folder / name))
    return Problem(reason=f"TensorRT does not load: {error}", fix=_TENSORRT_LINE) if error else None


def _package_problem() -> Problem:
    if sys.platform == "darwin":
        return Problem(reason="there is no CUDA on macOS", fix="use --provider cpu")
    doubled = double_install()
    if doubled is not None:
        return doubled
    found = ", ".join(f"{name} {version}" for name, version in installed_packages().items()) or "this onnxruntime"
    return Problem(
        reason=f"the installed package ({found}) is built for the CPU only",
        fix=f"pip uninstall -y {CPU_PACKAGE} && {packages.install_line(GPU_PACKAGE)}",
    )


def _driver_problem(device_id: int) -> Problem | None:
    """Ask the driver library itself (CUDA driver API: cuInit, cuDriverGetVersion, cuDeviceGetCount)."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return Problem(reason=f"no NVIDIA driver is installed here ({name} cannot be loaded)", fix=_DRIVER_LINE)
    status = driver.cuInit(0)
    if status == 100:  # CUDA_ERROR_NO_DEVICE
        return Problem(reason="the NVIDIA driver sees no GPU", fix="check `nvidia-smi` and CUDA_VISIBLE_DEVICES")
    if status != 0:
        return Problem(reason=f"the NVIDIA driver does not start (cuInit gives error {status})", fix=_DRIVER_LINE)
    version, count = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGetCount(ctypes.byref(count))
    if version.value // 1000 < _LEAST_CUDA:
        supported = f"{version.value // 1000}.{version.value % 1000 // 10}"
        return Problem(reason=f"the NVIDIA driver supports CUDA {supported}, kit needs {_LEAST_CUDA}", fix=_DRIVER_LINE)
    if device_id >= count.value:
        return Problem(
            reason=f"there is no GPU {device_id}: the driver sees {count.value}",
            fix=f"use --device-id 0{f' to {count.value - 1}' if count.value > 1 else ''}",
        )
    return None


def _library_problem(folder: Path) -> Problem | None:
    """Load the CUDA provider as ONNX Runtime would; the loader's error names the first library that is missing."""
    names = ("libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so")
    if sys.platform == "win32":
        names = ("onnxruntime_providers_shared.dll", "onnxruntime_providers_cuda.dll")
    for name in names:
        error = _load_error(str(folder / name))
        if error:
            missing = re.match(r"([\w.+-]+\.so[\w.]*): cannot open", error)
            what = f"the library {missing[1]} is missing" if missing else f"{name} does not load: {error}"
            return Problem(reason=what, fix=packages.install_line(GPU_PACKAGE))
    return None


@cache
def _load_error(path: str) -> str:
    try:
        ctypes.CDLL(path)
    except OSError as error:
        return str(error)
    return ""
