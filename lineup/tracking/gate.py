"""The gate before @champion: a version passes that is not significantly worse on the same validation examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lineup.errors import UserError
from lineup.tracking.journal import Event
from lineup.tracking.registry import aliased, describe_version, registry_lock
from lineup.tracking.runs import Context

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from torch import Tensor

PROMOTED_AT = "lineup.promoted_at"  # the tag with the time, in milliseconds, of the export that made a champion


def handle_promote(context: Context, events: list[Event]) -> None:
    """Let the gate decide whether this training's version becomes the champion or the challenger."""
    client, event = context.client, events[0]
    if event.get("once") and (decision := context.version.tags.get("gate")):
        context.journal.decision = (
            f"version {context.version.version} was decided about before: {decision}"
        )
        return
    with registry_lock():
        version = context.version
        champion = aliased(client, version.name, "champion")
        if (
            champion and int(champion.tags.get(PROMOTED_AT, 0)) > event["time"]
        ):  # this event waited for the store
            context.journal.decision = (
                f"version {champion.version} became the champion after this export"
            )
            return
        passed, why = decide(context, version, champion, event)
        alias = "champion" if passed else "challenger"
        client.set_registered_model_alias(version.name, alias, version.version)
        if (
            passed
            and (other := aliased(client, version.name, "challenger"))
            and other.version == version.version
        ):
            client.delete_registered_model_alias(version.name, "challenger")
        if not (champion and champion.version == version.version) or "gate" not in version.tags:
            client.set_model_version_tag(version.name, version.version, "gate", f"{alias}: {why}")
        if passed:
            client.set_model_version_tag(
                version.name, version.version, PROMOTED_AT, str(event["time"])
            )
        if passed and "val_accuracy" in version.tags:
            best = max(best_champion(client, version), float(version.tags["val_accuracy"]))
            client.set_registered_model_tag(
                version.name, f"best_champion.{version.tags['split'][:12]}", str(best)
            )
        if aliased(client, version.name, alias).version != version.version:
            raise ConnectionError(f"another process moved @{alias} at the same time")
    describe_version(context)
    context.journal.decision = f"{version.name} version {version.version} is the {alias}: {why}"


def decide(
    context: Context, version: ModelVersion, champion: ModelVersion | None, settings: dict[str, Any]
) -> tuple[bool, str]:
    """Return whether `version` may be champion, and why, with the numbers."""
    if champion and champion.version == version.version:
        return True, "it was the champion already"
    if settings["promote"] != "gate":
        return settings["promote"] == "always", f"export.promote is '{settings['promote']}'"
    if champion is None:
        return True, "there was no champion"
    if champion.tags.get("split") != version.tags["split"]:
        return (
            False,
            f"champion version {champion.version} was trained on another split, so they can't be compared; "
            "to replace it: dvc exp run -S export.promote=always",
        )
    hits, champion_hits = compare(context, champion)
    from lineup.evaluation.metrics import mcnemar

    test = mcnemar(hits, champion_hits)
    numbers = (
        f"of {len(hits)} validation examples only it gets {test['only_a']} right, only champion version "
        f"{champion.version} {test['only_b']}, p = {test['p_one_sided']:.3g}"
    )
    if test["p_one_sided"] < settings["level"]:
        return False, f"significantly worse: {numbers}"
    best, accuracy = (
        best_champion(context.client, version),
        float(version.tags.get("val_accuracy", "nan")),
    )
    if accuracy < best - settings["margin"]:
        far = f"more than {settings['margin']} below the best champion's {best:.4f}"
        return False, f"validation accuracy {accuracy:.4f} is {far}"
    return (
        True,
        f"{'better' if test['only_a'] > test['only_b'] else 'not significantly worse'}: {numbers}",
    )


def compare(context: Context, champion: ModelVersion) -> tuple[Tensor, Tensor]:
    """Return for each validation example whether this model, and whether the champion, is right (or nearer)."""
    import mlflow

    from lineup.data import dataset as datasets
    from lineup.serving import deployable as deployment

    split = datasets.load_split()
    inputs, targets = (tensor[split.validation] for tensor in datasets.load("train"))
    if context.version.tags["split"] != split.digest:
        raise UserError("data/split is not the split of this training; run: dvc repro")
    path = mlflow.artifacts.download_artifacts(f"models:/{champion.name}/{champion.version}")
    models = (
        deployment.load(context.file("model")),
        deployment.read_pt2(Path(path) / "data" / "model.pt2"),
    )
    answers = [deployment.predict(model, inputs) for model in models]
    if targets.is_floating_point():
        mine, other = ((answer - targets).square().mean(1) for answer in answers)
        return mine < other, other < mine
    mine, other = (answer.argmax(1) == targets for answer in answers)
    return mine, other


def best_champion(client: MlflowClient, version: ModelVersion) -> float:
    """Return the highest validation accuracy of any champion so far on this version's split."""
    tags = client.get_registered_model(version.name).tags
    return float(tags.get(f"best_champion.{version.tags['split'][:12]}", "-inf"))
