"""The device that computes, and the precision it computes in."""

import ctypes
import platform
import re
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

from lapo_cli.core import distributed
from lapo_cli.core.errors import DeviceError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


@dataclass(frozen=True)
class Compute:
    """Where and how networks run.

    Attributes:
        device: a CPU or CUDA device.
        bf16: whether convolutions and linear layers are autocast to bfloat16; the quantizer and losses never are.
    """

    device: torch.device
    bf16: bool

    @property
    def is_cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        """The device in words, or how many of them where several processes train one model."""
        count = distributed.world_size()
        times = f"{count} x " if count > 1 else ""
        if self.is_cuda:
            return times + torch.cuda.get_device_name(self.device)
        threads = torch.get_num_threads()
        return f"{times}{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"

    def autocast(self) -> AbstractContextManager[None]:
        """Context in which a forward pass runs."""
        context: AbstractContextManager[None] = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=torch.is_grad_enabled()
        )
        return context

    def place(self, module: torch.nn.Module) -> None:
        """Move a module to the device in channels-last layout, which convolutions run fastest in."""
        module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def resolve(device: str = "auto", precision: Literal["auto", "fp32", "bf16"] = "auto") -> Compute:
    """Choose the device and precision; for the CPU, let this process keep the memory that its tensors free.

    Args:
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``cuda:n``; of several processes that train
            one model each takes a GPU of its own.
        precision: ``auto`` takes bfloat16 where the hardware multiplies it.

    Raises:
        DeviceError: there is no such device here; the message lists what there is. Or several processes are to share
            one GPU.
    """
    if device.startswith("cuda:") and distributed.world_size() > 1:
        raise DeviceError(f"Several processes cannot share the GPU {device}: use --device cuda, or --devices 1.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = distributed.local_device()
    match = re.fullmatch(r"cpu|cuda(?::([0-9]{1,9}))?", device)
    if match is None:
        raise DeviceError(f"There is no device '{device}': use auto, cpu, cuda or cuda:N.")
    if device != "cpu":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(match[1] or 0) >= count:
            raise DeviceError(
                f"Device '{device}' was requested but this machine offers PyTorch {count or 'no'} CUDA device(s): "
                "use --device cpu, or install a CUDA build of PyTorch."
            )
    chosen = torch.device(f"cuda:{int(match[1])}" if match[1] else device)
    bf16 = _has_fast_bf16(chosen) if precision == "auto" else precision == "bf16"
    if chosen.type == "cpu":
        _keep_freed_memory()
    return Compute(chosen, bf16)


def _keep_freed_memory() -> None:
    """Have glibc reuse freed memory instead of returning it; other C libraries are left as they are.

    glibc maps each large tensor anew, and the kernel clears every page of it: up to half of the time of labelling with
    small networks, a tenth of a training step of stage 1 with the paper's.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
