"""How busy the machine is while it trains, by the names under which MLflow shows it."""

from __future__ import annotations

import time

import psutil
import torch

SECONDS_BETWEEN_SAMPLES = 5.0
MEGABYTE = 1e6


class SystemMetrics:
    """Samples processor and memory now and then."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # it counts from one call to the next
        self.sampled_at = time.monotonic()

    def sample(self) -> dict[str, float]:
        """Return the use of the machine since the last sample; nothing if that is not long ago."""
        if time.monotonic() - self.sampled_at < SECONDS_BETWEEN_SAMPLES:
            return {}
        self.sampled_at = time.monotonic()
        memory = psutil.virtual_memory()
        values = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system/system_memory_usage_percentage": memory.percent,
        }
        if torch.cuda.is_initialized():
            free, total = torch.cuda.mem_get_info()
            values["system/gpu_0_memory_usage_megabytes"] = (total - free) / MEGABYTE
            values["system/gpu_0_memory_usage_percentage"] = 100 * (1 - free / total)
        return values
