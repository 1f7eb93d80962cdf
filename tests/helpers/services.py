"""A team's servers on the loopback: PostgreSQL, a store that speaks S3, MLflow with passwords."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil

from helpers.servers import free_port
from helpers.waiting import wait_for

BUCKET = "lineup"
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


class Postgres:
    """A PostgreSQL server with a new cluster; it refuses root, so root starts it as `postgres`."""

    def __init__(self, folder: Path) -> None:
        installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        assert installed, "PostgreSQL is missing: apt-get install postgresql"
        self.programs, self.folder, self.port = installed[-1], folder, free_port()
        self.user = "postgres" if os.geteuid() == 0 else None
        self.uri = f"postgresql://lineup@127.0.0.1:{self.port}/postgres"
        if self.user:
            shutil.chown(folder, self.user)
        self._run("initdb", "--no-sync", "--username", "lineup", "--pgdata", folder / "data")

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = ["-D", self.folder / "data", "-p", str(self.port), "-c", "fsync=off"]
        options += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        log = (self.folder / "postgres.log").open("ab")
        self.process = subprocess.Popen(
            [self.programs / "postgres", *options], user=self.user, stdout=log, stderr=log
        )
        wait_for(lambda: self._run("pg_isready", "--dbname", self.uri))

    def stop(self, number: int = signal.SIGKILL) -> None:
        """End it and all its processes."""
        processes = psutil.Process(self.process.pid).children()
        self.process.send_signal(number)
        self.process.wait(60)
        psutil.wait_procs(processes, 60)

    def _run(self, program: str, *options: object) -> bool:
        command = [self.programs / program, *options]
        subprocess.run(command, user=self.user, check=True, capture_output=True, cwd="/")
        return True
