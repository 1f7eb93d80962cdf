"""A real Ray cluster on one machine, in a network of its own: nothing outside can reach it."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from helpers.waiting import wait_for

HEAD = "ray start --head --port 6379 --num-cpus 0"  # as the README has it
NODE = "ray start --address HEAD:6379"
ADDRESS = "127.0.0.1:6379"
RAY = str(Path(sys.executable).with_name("ray"))
UNSHARE = ("unshare", "--map-root-user", "--net")
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-the-tests-0123456789abcdef"}
WORKER = "ray::Worker"  # how Ray names the process of a training


def is_possible() -> bool:
    """Tell whether this machine can make a network of its own."""
    return (
        Path(RAY).exists()
        and shutil.which("unshare") is not None
        and subprocess.run([*UNSHARE, "ip", "link"], capture_output=True).returncode == 0
    )


class RayCluster:
    """A head without cores, and the nodes that are added; `environment` and `inside` lead there."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: sockets' names are
        script = "ip link set lo up && echo up && exec sleep infinity"
        command = [*UNSHARE, "sh", "-c", script]
        self.network = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.network.stdout.readline() == "up\n"
        self.environment = {"LINEUP_RAY": ADDRESS} | TOKEN
        self._start(f"{HEAD} --include-dashboard=false --temp-dir {self.folder}")

    def inside(self, *command: str) -> tuple[str, ...]:
        """Return a command that runs in the cluster's network."""
        enter = ("nsenter", "--user", "--preserve-credentials", "--net")
        return (*enter, "-t", str(self.network.pid), *command)

    def _start(self, line: str, **environment: str) -> None:
        command = self.inside(RAY, *line.split()[1:], "--disable-usage-stats")
        environment = os.environ | TOKEN | environment
        environment.pop("OMP_NUM_THREADS", None)  # Ray sets it, to the cores of a training
        subprocess.run(command, env=environment, check=True, capture_output=True)

    def add_node(self, cores: int = 1, **environment: str) -> psutil.Process:
        """Start a node; return its raylet, with which it lives and dies."""
        before = set(self._processes("raylet"))
        line = NODE.replace("HEAD:6379", ADDRESS)
        self._start(f"{line} --num-cpus={cores} --num-gpus=0", **environment)
        (raylet,) = set(self._processes("raylet")) - before
        return raylet

    def _processes(self, name: str = "") -> list[psutil.Process]:
        """Return the cluster's own processes; those that compute are children of raylets."""
        return [
            process
            for process in psutil.process_iter(["name", "cmdline"])
            if name in process.info["name"]
            and any(str(self.folder) in word for word in process.info["cmdline"] or [])
        ]

    def workers(self) -> list[psutil.Process]:
        """Return the processes of the trainings that run."""
        return [
            child
            for raylet in self._processes("raylet")
            for child in raylet.children()
            if WORKER in " ".join(child.cmdline())
        ]

    def worker(self) -> psutil.Process:
        """Wait for the one training that runs; return its process, whose parent is its raylet."""
        (worker,) = wait_for(self.workers)
        return worker

    def kill_head(self) -> None:
        """Kill the head's server, which knows all nodes."""
        for process in self._processes("gcs_server"):
            process.kill()

    def close(self) -> None:
        """End every process, and remove the files."""
        processes = self._processes()
        for process in processes:
            processes += process.children(recursive=True)
        for process in processes:
            process.kill()
        psutil.wait_procs(processes)
        self.network.kill()
        self.network.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
