"""What evaluate, export and sync record: files go into run folders, and these are mirrored."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pandas as pd

from lineup.cli import progress
from lineup.errors import UserError
from lineup.files import read_json, sha256, write_json
from lineup.model_info import ModelInfo
from lineup.params import Params
from lineup.paths import EVALUATION, EXPORT, HISTORY, MODEL_JSON, MODELS, ONNX, PLOTS, RUN_JSON
from lineup.tracking.lineage import dataset_names, flatten
from lineup.tracking.location import enabled, store_uri
from lineup.tracking.mirror import Mirror
from lineup.tracking.promotion import promote
from lineup.tracking.registry import register
from lineup.tracking.run_log import RunLog, copy, now_ms, run_logs
from lineup.tracking.store import client, summary


def record_evaluations(architectures: list[str]) -> None:
    """Put what evaluate wrote into the run folders, and record it."""
    if not enabled():
        return
    logs = []
    for name in architectures:
        log = _run_log(name)
        _add_evaluation(log, name)
        logs.append(log)
    record(logs)


def record_export(architecture: str, settings: dict[str, Any]) -> str:
    """Ask the gate whether the exported model becomes champion; return its decision in words."""
    if not enabled():
        return "tracking is off: no registered model was touched"
    log = _run_log(architecture)
    _add_evaluation(log, architecture)
    _ask_to_promote(log, settings, is_adopted=False)
    decisions = record([log])
    return decisions.get(log.run_id, "the registry can't be reached: make sync asks the gate later")


def sync() -> None:
    """Record what the store lacks of every run of this repository; UserError if it fails."""
    logs = run_logs()
    decisions = record(logs)
    for decision in decisions.values():
        print(decision)
    unmet = [log for log in logs if log.outputs.exists() and not log.evaluation.exists()]
    if unmet:
        names = ", ".join(sorted({log.start["name"] for log in unmet}))
        print(f"{len(unmet)} trainings were never evaluated, so they have no version: {names}")
    if _Outage.message:
        raise UserError(f"{_Outage.message}; nothing is lost, run make sync again later")
    print(f"{len(logs)} runs are in {store_uri()}")


def adopt_outputs(params: Params) -> None:
    """Make run folders for results that came from elsewhere, say by `dvc pull`."""
    for name in params.architectures:
        if not (MODELS / name / RUN_JSON).exists():
            continue
        log = _run_log(name)
        if not (EVALUATION / name / MODEL_JSON).exists():
            continue
        _add_evaluation(log, name)
        if _is_exported(name) and not log.promotion_file.exists():
            _ask_to_promote(log, params.export.model_dump(), is_adopted=True)


def _is_exported(name: str) -> bool:
    if not (EXPORT / MODEL_JSON).exists():
        return False
    exported, trained = ModelInfo.read(EXPORT), ModelInfo.read(MODELS / name)
    return exported.weights_sha256 == trained.weights_sha256


def _ask_to_promote(log: RunLog, settings: dict[str, Any], is_adopted: bool) -> None:
    """Note an export; one that was adopted is not decided about again where it was once."""
    wish = {"time": now_ms(), "is_adopted": is_adopted}
    write_json(log.promotion_file, wish | settings)


class _Outage:
    """Why the store failed in this process; after one failure nothing more is tried."""

    message = ""


def record(logs: list[RunLog]) -> dict[str, str]:
    """Mirror runs, register what was evaluated, decide what was exported.

    Returns the gate's decisions by run id. A store that fails costs seconds, once, and no data.
    """
    decisions: dict[str, str] = {}
    with progress(unit="runs") as bar:
        for log in bar.track(logs, description="Recording"):
            if _Outage.message:
                continue
            try:
                decision = _record_one(log)
            except UserError:
                raise
            except Exception as error:  # a store can fail in any way
                _Outage.message = f"MLflow at {store_uri()} fails ({summary(error)})"
                print(f"warning: {_Outage.message}; nothing is lost, later: make sync")
                continue
            if decision:
                decisions[log.run_id] = decision
    return decisions


def _record_one(log: RunLog) -> str:
    mirror = Mirror(log, client())
    mirror.update()
    if mirror.note:
        print(f"{log.start['name']}: {mirror.note}")
    if not log.evaluation.exists():
        return ""
    version = register(mirror)
    if version is None or not log.promotion_file.exists():
        return ""
    return promote(mirror, version)


def _run_log(architecture: str) -> RunLog:
    """Return the log of the run that made models/<architecture>, made anew where it is not here."""
    folder = MODELS / architecture
    log = RunLog(read_json(folder / RUN_JSON)["run_id"])
    if log.is_started:
        return log
    info = ModelInfo.read(folder)
    config = {
        "architecture": info.architecture,
        "hyperparameters": info.hyperparameters,
        "recipe": info.recipe,
        "seed": info.seed,
        "dataset": info.dataset,
    }
    tags = {"lineup.restored": "true", "architecture": architecture, "sha256.split": info.split}
    tags |= {f"sha256.{split}": digest for split, digest in info.data.items()}
    log.begin(
        {
            "experiment": info.dataset,
            "name": architecture,
            "params": flatten(config),
            "tags": tags,
            "datasets": dataset_names(info.dataset, info.split, info.data["test"]),
        }
    )
    for row in pd.read_csv(folder / HISTORY).to_dict("records"):
        log.add_point(int(row.pop("epoch")), row, log.start["time"])
    copy(folder, log.outputs)
    log.set_status("FINISHED")
    return log


def _add_evaluation(log: RunLog, architecture: str) -> None:
    """Copy evaluation/<architecture> and its plots into the run folder, where they are new."""
    folder, plots = EVALUATION / architecture, PLOTS / architecture
    evaluated, trained = ModelInfo.read(folder), ModelInfo.read(MODELS / architecture)
    if evaluated.weights_sha256 != trained.weights_sha256:
        raise UserError(f"{folder} is of another training; run: dvc repro evaluate")
    digest = _digest(folder)
    note = log.evaluation_note
    if note.exists() and read_json(note)["digest"] == digest:
        return
    copy(folder, log.evaluation)
    copy(folder, log.artifacts / "evaluation")
    (log.artifacts / "evaluation" / ONNX).unlink()  # the registered model has it
    for path in sorted(plots.glob("*")):
        log.add_artifact(path, "plots")
    write_json(note, {"digest": digest, "time": now_ms()})


def _digest(folder: Path) -> str:
    digests = [sha256(path) for path in sorted(folder.glob("*"))]
    return hashlib.sha256("".join(digests).encode()).hexdigest()
