"""Train several architectures at a time, each with its share of the machine."""

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Annotated

import psutil
import typer

from lineup.cli import run
from lineup.errors import UserError
from lineup.params import load_params

DVC = [sys.executable, "-m", "dvc"]


def main(
    jobs: Annotated[int, typer.Argument(min=1, help="How many at a time.")],
) -> None:
    """Train the architectures of params.yaml, JOBS at a time; `dvc repro` does the rest.

    Each has as many threads as there are cores for it (OMP_NUM_THREADS at most), and a GPU of its
    own as far as there are GPUs, unless params.yaml names one. The number of threads is part of a
    result: other JOBS give other weights.
    """
    params = load_params()
    names = params.architectures
    jobs = min(jobs, len(names))
    if subprocess.run([*DVC, "repro", "split"]).returncode != 0:
        raise UserError("the data are not ready, see above")
    names_a_gpu = any(":" in params.recipe(name)[0].device for name in names)  # such as cuda:1
    shares = _shares(jobs, [] if names_a_gpu else _gpus())

    def train(name: str) -> bool:
        share = shares.pop()
        command = [*DVC, "--wait-for-lock", "repro", "--single-item", f"train@{name}"]
        process = subprocess.Popen(  # no terminal, which several bars would share
            command, env=os.environ | share, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for line in process.stdout:
            sys.stdout.buffer.write(line)
            sys.stdout.flush()
        shares.append(share)
        return process.wait() == 0

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ThreadPoolExecutor(jobs) as pool:
        try:
            trained = list(pool.map(train, names))
        except BaseException:  # Ctrl-C, or nobody reads what is printed
            pool.shutdown(wait=False, cancel_futures=True)
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess, ProcessLookupError):
                    if os.getsid(process.pid) == os.getsid(0):  # else the mirror of a training
                        process.send_signal(signal.SIGINT)
            raise
    failed = [name for name, is_trained in zip(names, trained, strict=True) if not is_trained]
    if failed:
        raise UserError(f"{', '.join(failed)} failed, see above; the others are trained")


def _shares(jobs: int, gpus: list[str]) -> list[dict[str, str]]:
    """Return the environment of each of the trainings that run at the same time."""
    share, asked = max(1, _cores() // jobs), os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal():
        share = max(1, min(share, int(asked)))
    threads = {"OMP_NUM_THREADS": str(share)}
    if not gpus:
        return [threads] * jobs
    return [threads | {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} for number in range(jobs)]


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _gpus() -> list[str]:
    """Return the names by which CUDA knows this machine's GPUs, as far as they may be used."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True).stdout.split()


if __name__ == "__main__":
    run(main)
