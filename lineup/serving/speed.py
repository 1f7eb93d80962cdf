"""How fast an ONNX file is on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lineup.evaluation.inference import evaluation_batch
from lineup.other_load import watch_others
from lineup.serving.deployable import read_onnx

TIMEOUT_SECONDS = 10  # of one measurement
BATCH_SIZE = 256  # of images that are not large


def measure_speed(path: Path, inputs: Tensor) -> dict[str, float]:
    """Return milliseconds for one input on one thread, inputs per second in batches, and how many
    cores other programs used meanwhile.
    """
    single, parallel = read_onnx(path, threads=1), read_onnx(path)
    name = single.get_inputs()[0].name
    count = min(BATCH_SIZE, evaluation_batch(inputs.shape[1:]))
    one, batch = (inputs[torch.arange(n) % len(inputs)].numpy() for n in (1, count))
    with watch_others() as others:
        latency = durations(lambda: single.run(None, {name: one}), 1000)
        single_batches = durations(lambda: single.run(None, {name: batch}), 20)
        parallel_batches = durations(lambda: parallel.run(None, {name: batch}), 20)
    if others.is_notable:
        print(f"the export's speed was measured {others}")
    speed = {
        "latency_ms_p50": 1000 * np.percentile(latency, 50),
        "latency_ms_p99": 1000 * np.percentile(latency, 99),
        "images_per_second": count / np.median(parallel_batches),
        "images_per_second_1thread": count / np.median(single_batches),
        "cores_used_by_others": others.cores,
    }
    return {key: _three_digits(value) for key, value in speed.items()} | {"batch_size": count}


def durations(work: Callable[[], object], repetitions: int) -> np.ndarray:
    """Return the seconds of each repetition, of slow work fewer, without a tenth to warm up."""
    times = [time.perf_counter()]
    while len(times) <= 1.1 * repetitions:
        work()
        times.append(time.perf_counter())
        if len(times) > 2 and times[-1] - times[0] > TIMEOUT_SECONDS:
            break
    warm_up = len(times) // 11 or 1
    return np.diff(times)[warm_up:]


def _three_digits(value: float) -> float:
    rounded = float(f"{value:.3g}")
    return int(rounded) if rounded >= 100 else rounded
