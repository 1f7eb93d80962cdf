"""Resume after a kill, bit for bit: where a training stands, bound to all that shapes its result.

.lineup/checkpoints/<fingerprint>/ holds progress.json, which names the tensor file that belongs to
it, and that file.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock, Timeout
from torch import Tensor

from lineup.errors import UserError, lacks_memory
from lineup.files import read_json, sha256, write_json
from lineup.paths import CODE, RUN_JSON, state_dir
from lineup.tensors import read_tensors, write_tensors

if TYPE_CHECKING:  # evaluate, which removes checkpoints, depends on no training code
    from lineup.training.trainer import Trainer

_first_digest = cache(sha256)  # of code: a process goes on with what it has loaded
SECONDS_BETWEEN_SAVES = 6.0  # with the time of a save, less than ten seconds of work can be lost
State = tuple[dict[str, Any], dict[str, Tensor]]


def fingerprint(config: dict[str, Any]) -> str:
    """Return 32 hexadecimal digits that stand for `config`, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:32]


class Checkpoint:
    """The saved state of one training; to be used inside `lock()`."""

    def __init__(self, fingerprint: str) -> None:
        self.folder = state_dir() / "checkpoints" / fingerprint
        self.lock_file = self.folder.with_suffix(".lock")
        self.progress_file = self.folder / "progress.json"
        self.log_file = self.folder / "train.log"
        self.saved_at = time.monotonic()
        self.saved_file: str | None = None
        self.run_id = ""
        self.warning = ""

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the fingerprint's lock; say so where another process holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.lock_file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print("another process trains just this; waiting", flush=True)
            lock.acquire()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            yield
        finally:
            lock.release()

    def resume(self, trainer: Trainer) -> bool:
        """Continue `trainer` from the last save; tell whether there was one."""
        saved = self.load()
        if saved:
            trainer.restore(*saved)
        return saved is not None

    def load(self) -> State | None:
        """Return the state of the last save, or None; sets `run_id`, and `warning` on damage."""
        try:
            return self._read()
        except FileNotFoundError as error:
            if self.progress_file.exists():
                self._warn(f"incomplete ({error})")
        except Exception as error:  # damaged bytes may fail anywhere
            if lacks_memory(error):
                raise
            if isinstance(error, OSError):  # of a disk or a network, and may pass
                hint = f"try again; if it stays so, remove {self.folder}: training starts again"
                raise UserError(f"the checkpoint can't be read ({error}); {hint}") from None
            self._warn(f"damaged ({getattr(error, 'problem', error)})")
        self.discard()
        self.run_id = self.run_id or uuid.uuid4().hex
        write_json(self.progress_file, {"run_id": self.run_id})
        return None

    def _read(self) -> State | None:
        progress = read_json(self.progress_file)
        if not re.fullmatch(r"[0-9a-f]{32}", str(progress["run_id"])):
            raise ValueError("its run_id is none")
        self.run_id = progress["run_id"]
        if "file" not in progress:
            return None
        path = self.folder / progress["file"]
        if sha256(path) != progress["sha256"]:
            raise ValueError(f"{path.name} is not what was written")
        self.saved_file = progress["file"]
        return progress["state"], read_tensors(path)

    def _warn(self, what: str) -> None:
        self.warning = f"the checkpoint in {self.folder} is {what}; training starts again"

    def should_save(self) -> bool:
        """Tell whether it is time to save again."""
        return time.monotonic() - self.saved_at > SECONDS_BETWEEN_SAVES

    def save(self, state: State) -> None:
        """Save a state; progress.json moves last, so a kill leaves the old save or the new."""
        progress, tensors = state
        path = self.folder / f"state-{uuid.uuid4().hex[:8]}.safetensors"
        write_tensors(path, tensors)
        content = {"run_id": self.run_id, "file": path.name, "sha256": sha256(path)}
        write_json(self.progress_file, content | {"state": progress})
        if self.saved_file:
            (self.folder / self.saved_file).unlink(missing_ok=True)
        self.saved_file = path.name
        self.saved_at = time.monotonic()

    def discard(self) -> None:
        """Remove what is saved, leftovers of interrupted saves included."""
        leftovers = [*self.folder.glob("state-*"), *self.folder.glob(".*.tmp"), self.progress_file]
        for path in leftovers:
            path.unlink(missing_ok=True)
        self.saved_file = None


def checkpoint_dir(run_id: str) -> Path | None:
    """Return the folder of a run's checkpoint, if there is one."""
    for progress_file in (state_dir() / "checkpoints").glob("*/progress.json"):
        with suppress(FileNotFoundError, ValueError, KeyError):
            if read_json(progress_file)["run_id"] == run_id:
                return progress_file.parent
    return None


def remove_finished(outputs: Path) -> None:
    """Remove the checkpoint of the run that wrote `outputs`, now safe in DVC, if none uses it."""
    if not (outputs / RUN_JSON).exists():
        return
    folder = checkpoint_dir(read_json(outputs / RUN_JSON)["run_id"])
    if folder:
        with suppress(Timeout), FileLock(folder.with_suffix(".lock"), timeout=0):
            shutil.rmtree(folder)


def code_digests(stage: str, item: str) -> dict[str, str]:
    """Return the SHA-256 of each source file that dvc.yaml names as a dep of a `foreach` stage."""
    pipeline = yaml.safe_load((CODE / "dvc.yaml").read_text(encoding="utf-8"))
    names = [name.replace("${item}", item) for name in pipeline["stages"][stage]["do"]["deps"]]
    return {name: _first_digest(CODE / name) for name in names if name.endswith(".py")}
