"""Memory and utilization of this rank's GPU, through NVML where there is one."""

import os
from collections.abc import Callable
from typing import Any

from launcher.metrics import Metric
from launcher.metrics import definitions as m


def gpu_gauges(local_rank: int) -> dict[Metric[Any], Callable[[], float]]:
    """What to read for each gauge; empty without an NVIDIA GPU or without nvidia-ml-py."""
    try:
        import pynvml
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
        device = _device(pynvml, local_rank)
    except (pynvml.NVMLError, IndexError):
        return {}
    return {
        m.GPU_MEMORY: lambda: float(pynvml.nvmlDeviceGetMemoryInfo(device).used),
        m.GPU_UTILIZATION: lambda: pynvml.nvmlDeviceGetUtilizationRates(device).gpu / 100,
    }


def _device(pynvml: Any, local_rank: int) -> Any:
    """The device that syncbn.init pins: the visible one with the index of the local rank."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return pynvml.nvmlDeviceGetHandleByIndex(local_rank)
    names = [name.strip() for name in visible.split(",") if name.strip()]
    name = names[local_rank % max(1, len(names))]
    if name.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    return pynvml.nvmlDeviceGetHandleByUUID(name)
