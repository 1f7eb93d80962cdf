"""What evaluate and export have recorded."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

from lineup.cli import progress
from lineup.files import read_json, sha256
from lineup.tracking.delivery import attempt
from lineup.tracking.journal import Journal
from lineup.tracking.lineage import dataset_facts, flattened
from lineup.tracking.store import enabled


def record_evaluations(architectures: list[str]) -> None:
    """Record evaluation/ on the run of each training, and what else the store lacks of it."""
    if enabled():
        with progress(unit="runs") as bar:
            pending = sum(map(record_evaluation, bar.track(architectures, description="Recording")))
        if pending:
            print(f"{pending} events are not in MLflow yet; later: make sync")


def record_evaluation(architecture: str) -> int:
    """Record evaluation/<architecture> and its pictures on the training's run; return how many events are pending."""
    folder, pictures = (
        Path("evaluation") / architecture,
        Path("evaluation") / "plots" / architecture,
    )
    files = [*sorted(folder.glob("*")), *sorted(pictures.glob("*"))]
    digest = hashlib.sha256("".join(sha256(path) for path in files).encode()).hexdigest()
    description = read_json(Path("models") / architecture / "model.json")
    scores = read_json(folder / "metrics.json")
    trained = description["validation"] | {"epoch": description["epoch"]}
    if any(scores.get(key) != value for key, value in trained.items()):
        print(f"evaluation/{architecture} is of another training; run: dvc repro evaluate")
        return 0
    with restoring_journal(architecture) as journal:
        journal.append(
            f"evaluation:{digest}",
            "evaluation",
            architecture=architecture,
            folder=journal.copy(folder, f"evaluation-{digest[:12]}"),
            pictures=journal.copy(pictures, f"pictures-{digest[:12]}"),
            digest=digest,
            test_name=f"{description['dataset']}-test",
            test_digest=description["data"]["test"][:32],
        )
        return attempt(journal)


def record_export(architecture: str, settings: dict[str, Any], once: bool = False) -> str:
    """Let the gate decide about the training's version, again unless `once`; return the decision in words."""
    if not enabled():
        return "tracking is off: no registered model was touched"
    with restoring_journal(architecture) as journal:
        journal.append(f"promote:{time.time_ns()}", "promote", once=once, **settings)
        attempt(journal)
        return (
            journal.decision
            or "the registry can't be reached: the gate decides at the next make sync"
        )


def restoring_journal(architecture: str) -> Journal:
    """Return the journal of the training in models/<architecture>, with all that is needed to record it anew."""
    folder = Path("models") / architecture
    description = read_json(folder / "model.json")
    journal = Journal(read_json(folder / "run.json")["training"])
    journal.copy(folder, "model")
    facts = {
        name: description[name]
        for name in ("architecture", "hyperparameters", "recipe", "seed", "dataset")
    }
    journal.append(
        "restore",
        "restore",
        experiment=description["dataset"],
        name=architecture,
        params=flattened(facts),
        tags={
            "lineup.restored": "true",
            "architecture": architecture,
            "sha256.split": description["split"],
            **{f"sha256.{part}": digest for part, digest in description["data"].items()},
        },
        datasets=dataset_facts(
            description["dataset"], description["split"], description["data"]["test"]
        ),
    )
    return journal
