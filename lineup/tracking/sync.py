"""What evaluate, export and sync record: files go into run folders, and these are mirrored."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from lineup.cli import progress
from lineup.errors import DamagedError, UserError
from lineup.files import read_json, sha256, write_json
from lineup.model_info import ModelInfo
from lineup.params import Params
from lineup.paths import (
    EVALUATION,
    EXPORT,
    HISTORY,
    MODEL_JSON,
    MODELS,
    ONNX,
    PICTURES,
    RUN_JSON,
    state_dir,
)
from lineup.tracking.lineage import dataset_names, name_params
from lineup.tracking.location import enabled, host, shown_uri
from lineup.tracking.mirror import Mirror, close_abandoned_runs
from lineup.tracking.names import RESTORED
from lineup.tracking.promotion import exported_at, promote
from lineup.tracking.registry import register
from lineup.tracking.run_log import RunLog, copy, next_ms, now_ms, run_logs
from lineup.tracking.store import client, summary

MAX_SECONDS_LOST = 4.0  # to a failing store, before nothing more is tried
Result = TypeVar("Result")


def record_evaluations(architectures: list[str]) -> None:
    """Put what evaluate wrote into the run folders, and record it."""
    if not enabled():
        return
    logs = []
    for name in architectures:
        log = _run_log(name)
        _add_evaluation(log, name)
        logs.append(log)
    _record_or_warn(logs)


def record_export(architecture: str, settings: dict[str, Any]) -> str:
    """Ask the gate whether the exported model becomes champion; return its decision in words."""
    if not enabled():
        return "tracking is off: no registered model was touched"
    log = _run_log(architecture)
    _add_evaluation(log, architecture)
    _ask_to_promote(log, settings, is_adopted=False)
    decisions, outage = _record([log])
    if outage:
        return f"{outage}; nothing is lost, make sync asks the gate later"
    nothing = f"nothing to decide: {architecture} was decided about just now, or its run deleted"
    return decisions.get(log.run_id, nothing)


def record_scores(trained: Sequence[Mapping[str, Any]]) -> None:
    """Add test scores to the runs of trainings that no stage evaluates: run_id, epoch, test_…"""
    logs = []
    for row in trained:
        log = RunLog(row["run_id"])
        if log.is_started:  # not where tracking was off
            scores = {name: value for name, value in row.items() if name.startswith("test_")}
            log.renew_point(row["epoch"], scores)
            logs.append(log)
    _record_or_warn(logs)


def sync() -> None:
    """Record what the store lacks of every run of this repository; UserError if it fails."""
    logs = run_logs()
    decisions, outage = _record(logs)
    for decision in decisions.values():
        print(decision)
    unmet = [log for log in logs if log.outputs.exists() and not _is_scored(log)]
    if unmet:
        names = ", ".join(sorted({log.start["name"] for log in unmet}))
        print(f"{len(unmet)} trainings were never evaluated, so they have no version: {names}")
    if outage:
        raise UserError(f"{outage}; nothing is lost, run make sync again later")
    exceptions = "those that were deleted there, and what was warned of above"
    print(f"{shown_uri()} has all {len(logs)} runs, but for {exceptions}")


def _is_scored(log: RunLog) -> bool:
    """Tell whether a training was evaluated, or was one of several seeds."""
    if log.evaluation.exists():
        return True
    try:
        points, _ = log.read_points()
    except DamagedError:  # it was said already
        return True
    return any(name.startswith("test_") for point in points for name in point["values"])


def adopt_outputs(params: Params) -> None:
    """Make run folders for results that came from elsewhere, say by `dvc pull`."""
    for name in params.architectures:
        if not all((MODELS / name / file).exists() for file in (RUN_JSON, MODEL_JSON, HISTORY)):
            continue
        log = _run_log(name)
        if not _is_same(EVALUATION / name, name):
            continue
        _add_evaluation(log, name)
        if _is_same(EXPORT, name) and not log.promotion_file.exists():
            _ask_to_promote(log, params.export.model_dump(), is_adopted=True)


def _is_same(folder: Path, architecture: str) -> bool:
    """Tell whether a folder holds the very model of models/<architecture>."""
    if not (folder / MODEL_JSON).exists():
        return False
    return ModelInfo.read(folder).digest == ModelInfo.read(MODELS / architecture).digest


def _ask_to_promote(log: RunLog, settings: dict[str, Any], is_adopted: bool) -> None:
    """Note an export; one that was adopted is not decided about again where it was once."""
    wish = {"time": next_ms(), "is_adopted": is_adopted}
    write_json(log.promotion_file, wish | settings)


class _Attempts:
    """Tries what a store may refuse; gives up on it when its failures have cost some seconds."""

    def __init__(self) -> None:
        self.error = ""  # the first one
        self.seconds_lost = 0.0

    def run(self, work: Callable[[], Result]) -> Result | None:
        """Return what `work` returns; None where the store fails, or has failed for too long."""
        if self.seconds_lost > MAX_SECONDS_LOST:
            return None
        start = time.monotonic()
        try:
            return work()
        except DamagedError as error:  # of one run
            print(f"warning: {error}")
            return None
        except UserError:
            raise
        except Exception as error:  # a store can fail in any way
            self.error = self.error or f"MLflow at {shown_uri()} fails ({summary(error)})"
            self.seconds_lost += time.monotonic() - start
            return None


def _record(logs: list[RunLog]) -> tuple[dict[str, str], str]:
    """Mirror runs, register what was evaluated, decide what was exported, in order of the exports.

    Returns the gate's new decisions by run id, and why the store failed, if it did. That costs
    seconds, and no data; a run that fails alone stops no other.
    """
    attempts = _Attempts()
    connected = attempts.run(_connect)
    if connected is None:
        return {}, attempts.error
    exported, decisions = [], {}
    with progress(unit="runs") as bar:
        for log in bar.track(logs, description="Recording"):
            found = attempts.run(partial(_mirror_and_register, log, connected))
            if found and log.promotion_file.exists():
                exported.append(found)
    for mirror, version in sorted(exported, key=lambda found: exported_at(found[0].log)):
        decision = attempts.run(partial(promote, mirror, version))
        if decision:
            decisions[mirror.log.run_id] = decision
    return decisions, attempts.error


def _record_or_warn(logs: list[RunLog]) -> None:
    _, outage = _record(logs)
    if outage:
        print(f"warning: {outage}; nothing is lost, later: make sync")


def _connect() -> MlflowClient:
    connected = client()
    close_abandoned_runs(connected, host())
    return connected


def _mirror_and_register(
    log: RunLog, connected: MlflowClient
) -> tuple[Mirror, ModelVersion] | None:
    mirror = Mirror(log, connected)
    if mirror.note:
        print(mirror.note)
    mirror.update()
    version = register(mirror) if log.evaluation.exists() else None
    return (mirror, version) if version else None


def _run_log(architecture: str) -> RunLog:
    """Return the log of the run that made models/<architecture>, made anew where it is not here."""
    folder = MODELS / architecture
    found = read_json(folder / RUN_JSON)
    if "run_id" not in found:
        raise UserError(f"{folder / RUN_JSON} is of another version of Lineup; run: dvc repro")
    log = RunLog(found["run_id"])
    with FileLock(state_dir() / "restore.lock"):
        if not (log.is_started and log.outputs.exists()):  # also of an end without tracking
            _restore(log, folder)
    return log


def _restore(log: RunLog, folder: Path) -> None:
    """Make a run log from a training's outputs; it begins when it is whole."""
    info = ModelInfo.read(folder)
    config = {
        "dataset": info.dataset,
        "seed": info.seed,
        "hyperparameters": info.hyperparameters,
        "pretrained": info.recipe.get("pretrained"),
        "recipe": {k: v for k, v in info.recipe.items() if k not in ("pretrained", "torch")},
    }
    tags = {RESTORED: "true", "architecture": info.architecture, "sha256.split": info.split}
    tags["sha256.train"] = info.data["train"]
    now = now_ms()
    for row in pd.read_csv(folder / HISTORY).to_dict("records"):
        log.add_point(int(row.pop("epoch")), row, now)
    copy(folder, log.outputs)
    log.set_status("FINISHED")
    log.begin(
        {
            "time": now,
            "experiment": info.dataset,
            "name": info.architecture,
            "params": name_params(info.architecture, config),
            "tags": tags,
            "datasets": dataset_names(info.dataset, info.split, info.data["test"]),
        }
    )


def _add_evaluation(log: RunLog, architecture: str) -> None:
    """Copy evaluation/<architecture> and its plots into the run folder, where they are new."""
    folder, plots = EVALUATION / architecture, PICTURES / architecture
    if not _is_same(folder, architecture):
        raise UserError(f"{folder} is of another training; run: dvc repro evaluate")
    digest = _digest(folder)
    note = log.evaluation_note
    is_known = note.exists() and read_json(note)["digest"] == digest
    if is_known and log.evaluation.exists() and _digest(log.evaluation) == digest:
        return
    copy(folder, log.evaluation)
    for path in sorted(folder.glob("*")):
        if path.name != ONNX:  # the registered model has it
            log.add_artifact(path, "evaluation")
    for path in sorted(plots.glob("*")):
        log.add_artifact(path, "plots")
    write_json(note, {"digest": digest, "time": now_ms()})


def _digest(folder: Path) -> str:
    digests = [sha256(path) for path in sorted(folder.glob("*"))]
    return hashlib.sha256("".join(digests).encode()).hexdigest()
