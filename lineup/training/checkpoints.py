"""Resume after a kill, bit for bit: where a training stands, bound to everything that shapes its result.

.lineup/checkpoints/<fingerprint>/ holds progress.json, which names the tensor file that belongs to it, and that file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml

from lineup.files import read_json, read_tensors, sha256, write_json, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).parents[2]
SECONDS_BETWEEN = 6.0  # with the time of a save, less than ten seconds of work can be lost
SHELLS = {"sh", "bash", "dash", "zsh", "fish", "ksh", "busybox"}
REAPERS = {
    "systemd",
    "init",
    "launchd",
    "tini",
    "dumb-init",
    "docker-init",
}  # adopt the children of the dead


def private_folder() -> Path:
    """Return .lineup/ of the repository, also from DVC's temporary workspaces, as an absolute path."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve() / ".lineup"


def fingerprint(facts: dict[str, Any]) -> str:
    """Return 32 hexadecimal digits that stand for `facts`, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


class Checkpoint:
    """The saved state of one training; to be used inside `lock()`."""

    def __init__(self, fingerprint: str) -> None:
        self.folder = private_folder() / "checkpoints" / fingerprint
        self.lock_file = self.folder.with_suffix(".lock")
        self.saved_at = time.monotonic()
        self.saved_file: str | None = None
        self.training = ""
        self.warning = ""

    @contextmanager
    def lock(self, on_wait: Any = None) -> Iterator[None]:  # noqa: ANN401
        """Hold the fingerprint's lock; call `on_wait` once if another process holds it."""
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.lock_file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if on_wait:
                on_wait()
            lock.acquire()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            yield
        finally:
            lock.release()

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Return progress and tensors of the last save, or None; sets `training` (its id) and `warning`."""
        progress_file = self.folder / "progress.json"
        try:
            progress = read_json(progress_file)
            self.training = progress["training"]
            if "file" not in progress:
                return None
            path = self.folder / progress["file"]
            if sha256(path) != progress["sha256"]:
                raise ValueError(f"{path.name} is not what was written")
            self.saved_file = progress["file"]
            return progress["state"], read_tensors(path)
        except FileNotFoundError as error:
            if progress_file.exists():
                self.warning = f"the checkpoint in {self.folder} is incomplete ({error}); training starts again"
        except Exception as error:
            self.warning = (
                f"the checkpoint in {self.folder} is damaged ({error}); training starts again"
            )
        finally:
            self.training = self.training if is_id(self.training) else uuid.uuid4().hex
        self.discard()
        write_json(progress_file, {"training": self.training})
        return None

    def due(self) -> bool:
        """Tell whether it is time to save again."""
        return time.monotonic() - self.saved_at > SECONDS_BETWEEN

    def save(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Save `state` (JSON) and `tensors`; progress.json moves last, so a kill leaves the old save or the new."""
        name = f"state-{uuid.uuid4().hex[:8]}.safetensors"
        path = self.folder / name
        write_tensors(path, tensors)
        progress = {"training": self.training, "file": name, "sha256": sha256(path), "state": state}
        write_json(self.folder / "progress.json", progress)
        if self.saved_file:
            (self.folder / self.saved_file).unlink(missing_ok=True)
        self.saved_file = name
        self.saved_at = time.monotonic()

    def discard(self) -> None:
        """Remove what is saved, leftovers of interrupted saves included; kept epochs and the log stay."""
        for path in [
            *self.folder.glob("state-*"),
            *self.folder.glob(".*.tmp"),
            self.folder / "progress.json",
        ]:
            path.unlink(missing_ok=True)
        self.saved_file = None


def is_id(text: Any) -> bool:  # noqa: ANN401
    """Tell whether `text` is a training's id: 32 hexadecimal digits."""
    return isinstance(text, str) and len(text) == 32 and set(text) <= set("0123456789abcdef")


def checkpoint_of(training: str) -> Path | None:
    """Return the folder of a training's checkpoint, if there is one."""
    for progress_file in (private_folder() / "checkpoints").glob("*/progress.json"):
        with suppress(FileNotFoundError, ValueError, KeyError):
            if read_json(progress_file)["training"] == training:
                return progress_file.parent
    return None


def remove_finished(outputs: Path) -> None:
    """Remove the checkpoint of the training that wrote `outputs`, now safe in DVC, unless a process is using it."""
    from filelock import FileLock, Timeout

    if not (outputs / "run.json").exists():
        return
    folder = checkpoint_of(read_json(outputs / "run.json")["training"])
    if folder:
        with suppress(Timeout), FileLock(folder.with_suffix(".lock"), timeout=0):
            shutil.rmtree(folder)


def end_with_parent() -> None:
    """Under DVC, end this process as soon as the `dvc` that started it is gone, so that no orphan writes later."""
    if "DVC_STAGE" not in os.environ:
        return
    ancestors = []
    for ancestor in psutil.Process().parents():
        ancestors.append(ancestor)
        if ancestor.name() not in SHELLS:
            break
    if ancestors[-1].name() in REAPERS or (
        ancestors[-1].pid == 1 and "dvc" not in " ".join(ancestors[-1].cmdline())
    ):
        os._exit(143)  # dvc died while this process was starting

    def watch() -> None:
        while all(map(is_alive, ancestors)):
            time.sleep(0.3)
        os._exit(143)

    threading.Thread(target=watch, daemon=True).start()


def is_alive(process: psutil.Process) -> bool:
    """Tell whether a process lives: its id not used by another, itself no zombie that nobody has waited for."""
    try:
        return process.is_running() and process.status() != "zombie"
    except psutil.NoSuchProcess:
        return False


def code_digests(stage: str, item: str) -> dict[str, str]:
    """Return the SHA-256 of each source file that dvc.yaml names as a dependency of a `foreach` stage."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    names = [name.replace("${item}", item) for name in stages[stage]["do"]["deps"]]
    return {name: sha256(ROOT / name) for name in names if name.endswith(".py")}
