"""Trainings of one recipe with other seeds, each kept for the next time under its fingerprint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from lineup.files import read_json, write_json
from lineup.model_info import ModelInfo
from lineup.params import Params
from lineup.paths import RUN_JSON, state_dir
from lineup.training.checkpoints import fingerprint, remove_finished
from lineup.training.device import reset_threads
from lineup.training.run import run_training
from lineup.training.setup import set_up

DONE = "done.json"  # written last: how long the loop took


@dataclass(frozen=True)
class Trained:
    """A training that is finished."""

    folder: Path  # with what stages.train writes
    info: ModelInfo
    row: dict[str, Any]  # setting, architecture, seed, processor, run_id, seconds, epoch, scores


def train_seed(params: Params, architecture: str, seed: int, setting: str) -> Trained:
    """Train with `seed` in place of that of params.yaml, unless that is done already.

    `setting` is the name of these params.
    """
    seeded = params.model_copy(update={"seed": seed})
    reset_threads()
    setup = set_up(seeded, architecture)
    folder = state_dir() / "seeds" / fingerprint(setup.config)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / DONE).exists():
            print(f"\n{architecture}, seed {seed}, {setting}")
            seconds = run_training(setup, seeded, folder)
            write_json(folder / DONE, {"seconds": seconds})
            if seed != params.seed:  # else dvc repro may want to go on with it
                remove_finished(folder)
    info, done, run = ModelInfo.read(folder), _read(folder, DONE), _read(folder, RUN_JSON)
    row = {"setting": setting, "architecture": architecture, "seed": seed}
    row |= {"processor": setup.machine.processor} | run | done
    return Trained(folder, info, row | {"epoch": info.epoch} | info.validation)


def _read(folder: Path, name: str) -> dict[str, Any]:
    return read_json(folder / name, f"remove {folder}, and it is trained again")
