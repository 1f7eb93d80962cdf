"""A team's servers on the loopback, set up as the README says: PostgreSQL, S3, MLflow."""

import os
import resource
import shutil
import signal
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path

import boto3
import psutil
from mlflow import MlflowClient

from helpers.project import Project
from helpers.readme import code_block
from helpers.servers import Server, free_port
from helpers.waiting import wait_for

README_ADDRESS = "http://localhost:5000"  # on the server
README_PROXY = "https://mlflow.example.org"  # elsewhere
README_DATABASE = "postgresql://lineup:secret@localhost/lineup"
ADMIN = ("admin", "long-and-secret")  # of the README


class Postgres:
    """A PostgreSQL server with a new cluster; it refuses root, so root starts it as `postgres`."""

    def __init__(self, folder: Path) -> None:
        installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        assert installed, "PostgreSQL is missing: apt-get install postgresql"
        self.programs, self.folder, self.port = installed[-1], folder, free_port()
        self.process = None
        self.user = "postgres" if os.geteuid() == 0 else None
        self.uri = f"postgresql://lineup@127.0.0.1:{self.port}"
        if self.user:
            shutil.chown(folder, self.user)
        self._run("initdb", "--no-sync", "--username", "lineup", "--pgdata", folder / "data")

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = ["-D", self.folder / "data", "-p", str(self.port), "-c", "fsync=off"]
        options += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        with (self.folder / "postgres.log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.programs / "postgres", *options], user=self.user, stdout=log, stderr=log
            )
        wait_for(lambda: self._run("pg_isready", "--dbname", f"{self.uri}/postgres"))

    def create(self, name: str) -> str:
        """Make a database; return its address."""
        self._run("createdb", "--maintenance-db", f"{self.uri}/postgres", name)
        return f"{self.uri}/{name}"

    def stop(self, number: int = signal.SIGKILL) -> None:
        """End it and all its processes."""
        if self.process is None or self.process.poll() is not None:
            return
        processes = psutil.Process(self.process.pid).children()
        self.process.send_signal(number)
        self.process.wait(60)
        psutil.wait_procs(processes, 60)

    def _run(self, program: str, *options: object) -> bool:
        command = [self.programs / program, *options]
        subprocess.run(command, user=self.user, check=True, capture_output=True, cwd="/")
        return True


class Bucket:
    """moto's server with the bucket `lineup`; it holds all in memory, larger objects on disk."""

    def __init__(self, folder: Path) -> None:
        self.server = Server(folder, module="moto.server", health="/moto-api/")
        self.environment = {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.server.address,
            "AWS_MAX_ATTEMPTS": "1",  # an outage is an outage at once
        }

    def start(self) -> None:
        """Start it with an empty bucket."""
        self.server.start(os.environ | {"MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": "1"})  # all on disk
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
        client = boto3.client(
            "s3", endpoint_url=self.server.address, region_name="us-east-1", **keys
        )
        client.create_bucket(Bucket="lineup")

    @contextmanager
    def gone(self):
        """Let it be dead for a while, and come back empty."""
        self.server.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def full(self):
        """Let no file of more than a few bytes fit into it for a while."""
        pid = self.server.process.pid
        soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (500, hard))
        try:
            yield
        finally:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


class Team:
    """The servers, and the accounts of ann and bob, who write, and of eve, who reads."""

    def __init__(self, folder: Path, postgres: Postgres, bucket: Bucket) -> None:
        self.postgres, self.bucket = postgres, bucket
        self.server = Server(folder)
        block = code_block("**A team**", "bash").replace(README_DATABASE, postgres.create("runs"))
        place = f"--host 127.0.0.1 --port {self.server.port} --workers 2"
        block = block.replace("mlflow server", f"exec mlflow server {place}")
        block = block.replace(":5000", f":{self.server.port}")
        self.server.command = ["bash", "-euc", block]

    def start(self) -> None:
        """Start MLflow and make the accounts."""
        environment = Project(Path.cwd()).environment | self.bucket.environment
        environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # seven processes, unused
        self.server.start(environment)
        program = code_block("**A team**", "python").replace(README_ADDRESS, self.server.address)
        exec(program, {})
        exec(program.replace("ann", "bob"), {})
        exec(program.split("for kind")[0].replace("ann", "eve"), {})

    def account(self, name: str, password: str = "") -> dict[str, str]:
        """Return the environment of a member."""
        return {
            "MLFLOW_TRACKING_URI": self.server.address,
            "MLFLOW_TRACKING_USERNAME": name,
            "MLFLOW_TRACKING_PASSWORD": password or f"password-of-{name}",
        }

    def client(self) -> MlflowClient:
        """Return a client for the user whom the environment names."""
        return MlflowClient(self.server.address, self.server.address)


@contextmanager
def started_team(folder: Path):
    """Yield a team's servers, started; stop them all at the end."""
    with ExitStack() as stack:
        names = ("postgres", "bucket", "mlflow")
        folders = [folder / name for name in names]
        for each in folders:
            each.mkdir()
        postgres, bucket = Postgres(folders[0]), Bucket(folders[1])
        stack.callback(postgres.stop)
        postgres.start()
        stack.callback(bucket.server.stop)
        bucket.start()
        team = Team(folders[2], postgres, bucket)
        stack.callback(team.server.stop)
        team.start()
        yield team
