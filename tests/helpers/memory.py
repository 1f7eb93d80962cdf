"""What a command takes: seconds, and memory that no file on the disk stands for."""

import time
from pathlib import Path

from helpers.project import Project


def seconds_and_megabytes(
    project: Project, *command: str, **environment: str
) -> tuple[float, float]:
    """Run a command; return its seconds, and the most anonymous memory it had at a time."""
    start = time.perf_counter()
    running = project.start(*command, **environment)
    status, most = Path(f"/proc/{running.process.pid}/status"), 0
    while running.process.poll() is None:
        lines = [line for line in status.read_text().splitlines() if line.startswith("RssAnon")]
        most = max([most, *(int(line.split()[1]) for line in lines)])
        time.sleep(0.01)
    seconds = time.perf_counter() - start
    running.output()
    return seconds, most / 1024
