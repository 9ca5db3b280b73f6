"""Where training runs: the device, and the processes that share the work (torchrun)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from kit.errors import ProviderUnavailable, UsageError
from kit.system.machine import this_machine


@dataclass(frozen=True, kw_only=True)
class World:
    """The device of this process, and its place among the `size` processes that share every batch; 0 is the first."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and tells the user."""
        return self.rank == 0

    def has_fast_bf16(self) -> bool:
        """Whether the processor multiplies bfloat16 faster than float32."""
        if self.device.type == "cuda":
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        able = torch.cpu.get_capabilities()
        return any(bool(able.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))

    def shared(self, module: nn.Module) -> nn.Module:
        """Return the module so that its gradients are averaged over all processes."""
        if self.size == 1:
            return module
        return DistributedDataParallel(module)

    def wait(self) -> None:
        """Wait for the others."""
        if self.size > 1:
            distributed.barrier()

    def take_from_first(self, module: nn.Module) -> None:
        """Give every process the first one's weights and buffers: batch statistics are each process's own."""
        if self.size > 1:
            for value in module.state_dict().values():
                distributed.broadcast(value, 0)

    def mean(self, value: float) -> float:
        """Return the mean over all processes."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return float(total) / self.size


def seeded(device: torch.device, *parts: int) -> torch.Generator:
    """Return a generator whose numbers depend on the parts and on nothing that came before; zeros at the end do not count."""
    seed = np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed >> 1))


@contextlib.contextmanager
def world(device: str = "auto", *, threads: int | None = None) -> Iterator[World]:
    """Join the processes that torchrun started, if it did, and choose the device.

    Args:
        device: `cpu`, `cuda`, or `auto`: CUDA where PyTorch has it.
        threads: Of each process; None for the CPUs it may use, or fewer if the environment says so.

    Raises:
        ProviderUnavailable: CUDA was asked for and PyTorch has none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ProviderUnavailable(
            "PyTorch finds no CUDA here to train on", hint="run kit doctor to see why, or train with --device cpu"
        )
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if on_gpu and local >= torch.cuda.device_count():
        raise ProviderUnavailable(
            f"process {local + 1} on this machine has no GPU: there are {torch.cuda.device_count()}",
            hint="start fewer with --nproc-per-node, or train with --device cpu",
        )
    chosen = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    # torch counts the CPUs it may run on, but not the share of them that a container's quota allows
    here = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    torch.set_num_threads(threads or max(min(torch.get_num_threads(), this_machine().cpus_to_use // here), 1))
    if size == 1:
        yield World(device=chosen)
        return
    if on_gpu:
        torch.cuda.set_device(chosen)
    try:
        distributed.init_process_group("nccl" if on_gpu else "gloo")
    except ValueError as error:  # one of torchrun's variables is set, and another is not
        raise UsageError(
            f"WORLD_SIZE is {size}, but the processes do not find each other: {error}",
            hint="start them with torchrun --no-python, or unset WORLD_SIZE",
        ) from error
    try:
        yield World(device=chosen, rank=rank, size=size)
    finally:
        distributed.destroy_process_group()
