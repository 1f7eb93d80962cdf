"""The gate before @champion: a candidate passes that is not significantly worse on validation."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from torch import Tensor

from lineup.errors import DamagedError
from lineup.evaluation.comparisons import mcnemar
from lineup.files import read_json
from lineup.paths import VALIDATION
from lineup.tensors import read_tensors
from lineup.tracking.mirror import Mirror
from lineup.tracking.names import MODEL_TAG
from lineup.tracking.registry import (
    MAX_ROUNDS,
    aliased,
    describe_version,
    is_model_deleted,
    set_alias,
)
from lineup.tracking.run_log import RunLog, now_ms
from lineup.tracking.store import registry_lock

_ROUNDING = 1e-5  # of a version's tags, which have six digits
MOST_AHEAD = 3_600_000  # milliseconds, of another machine's clock
PROMOTED_AT = "lineup.promoted_at"  # milliseconds, of the export that made a champion
FORCED_AT = "lineup.forced_at"  # the same, where `export.promote: always` did
WISH = "lineup.promotion"  # milliseconds, of the export that was decided about last


@dataclass(frozen=True)
class Decision:
    """What the gate decided, and why, with the numbers."""

    passed: bool
    reason: str
    is_forced: bool = False

    @property
    def alias(self) -> str:
        """Return the alias that the candidate gets."""
        return "champion" if self.passed else "challenger"


def exported_at(log: RunLog) -> int:
    """Return when a run's model was exported, in milliseconds."""
    return read_json(log.promotion_file)["time"]


def promote(mirror: Mirror, version: ModelVersion) -> str:
    """Let the gate decide about an exported version; return what it decided, "" where it had."""
    wish, client = read_json(mirror.log.promotion_file), mirror.client
    with registry_lock():
        version = client.get_model_version(version.name, version.version)
        is_decided = WISH in version.tags and wish["is_adopted"]
        if is_decided or int(version.tags.get(WISH, 0)) >= wish["time"]:
            return ""
        decision = _settle(client, version, wish, mirror.log.evaluation / VALIDATION)
    describe_version(client, client.get_model_version(version.name, version.version), mirror.log)
    return f"{version.name} version {version.version} is the {decision.alias}: {decision.reason}"


def _settle(
    client: MlflowClient, version: ModelVersion, wish: dict[str, Any], validation: Path
) -> Decision:
    """Decide and move the alias; once more where another machine moved @champion meanwhile.

    MLflow has no compare-and-set, so the alias is read just before it is moved, and at the end.
    """
    for _ in range(MAX_ROUNDS):
        champion = aliased(client, version.name, "champion")
        decision = decide(client, version, champion, wish, validation)
        if not _is_held_by(client, version.name, champion):
            continue
        _move_aliases(client, version, champion, decision)
        _write_decision(client, version, champion, decision, wish["time"])
        if not decision.passed or _is_held_by(client, version.name, version):
            client.set_model_version_tag(version.name, version.version, WISH, str(wish["time"]))
            return decision
    raise ConnectionError(f"other machines moved @champion {MAX_ROUNDS} times meanwhile")


def _is_held_by(client: MlflowClient, name: str, version: ModelVersion | None) -> bool:
    """Tell whether a version is the champion; None is no version."""
    champion = aliased(client, name, "champion")
    numbers = [found.version if found else None for found in (champion, version)]
    return numbers[0] == numbers[1]


def decide(
    client: MlflowClient,
    candidate: ModelVersion,
    champion: ModelVersion | None,
    wish: dict[str, Any],
    validation: Path,
) -> Decision:
    """Return whether the candidate may be champion; `validation` holds its correctness.

    `wish` holds export's settings at the time of the export.
    """
    if champion and champion.version == candidate.version:
        is_forced = wish["promote"] == "always"
        return Decision(True, "it was the champion already", is_forced)
    if champion and _has_replaced(client, candidate, champion):
        return Decision(True, f"it is version {champion.version}, whose model was deleted, anew")
    promoted_at = _promoted_at(champion.tags) if champion else 0
    if wish["time"] < promoted_at < now_ms() + MOST_AHEAD:  # else another machine's clock is wrong
        return _decide_late(client, candidate, champion, wish, validation)
    if wish["promote"] != "gate":
        is_forced = wish["promote"] == "always"
        return Decision(is_forced, f"export.promote is '{wish['promote']}'", is_forced)
    if champion is None:
        return Decision(True, "there was no champion")
    obstacle, theirs = _read_champion(client, candidate, champion)
    if obstacle:
        hint = "so they can't be compared; to replace it: dvc exp run -S export.promote=always"
        return Decision(False, f"champion version {champion.version} {obstacle}, {hint}")
    return _compare(client, candidate, champion, wish, read_tensors(validation), theirs)


def _has_replaced(client: MlflowClient, candidate: ModelVersion, champion: ModelVersion) -> bool:
    """Tell whether a version was made because the files of the champion, the same, are gone."""
    is_same = champion.tags.get(MODEL_TAG) == candidate.tags[MODEL_TAG]
    return is_same and is_model_deleted(client, champion)


def _obstacle(client: MlflowClient, candidate: ModelVersion, champion: ModelVersion) -> str:
    """Return why two versions can't be compared, if so."""
    if "verified" not in champion.tags:
        return "was registered by an older Lineup, without its validation answers"
    if champion.tags.get("split") != candidate.tags["split"]:
        return "was trained on another split, or on other data"
    is_deleted = is_model_deleted(client, champion)
    return "has lost its files: somebody deleted its model" if is_deleted else ""


def _decide_late(
    client: MlflowClient,
    candidate: ModelVersion,
    champion: ModelVersion,
    wish: dict[str, Any],
    validation: Path,
) -> Decision:
    """Decide about an export that waited while a later one became champion.

    It would have been the champion before, so it takes the alias from one that is worse.
    """
    order = f"champion version {champion.version} was exported after it"
    if FORCED_AT in champion.tags or wish["promote"] == "never":
        return Decision(False, order)
    obstacle, theirs = _read_champion(client, candidate, champion)
    if obstacle:
        return Decision(False, order)
    answers = read_tensors(validation)
    if far := _far_off(answers, [_mean_error(theirs)], wish["margin"]):
        return Decision(False, f"{order}, and {far} of that champion")
    own, other = _right(answers, theirs)
    p_worse = mcnemar(other, own)["p_one_sided"]
    is_worse = p_worse < wish["level"]
    verdict = f"is {'' if is_worse else 'not '}significantly worse (p = {p_worse:.3g})"
    return Decision(is_worse, f"{order} and {verdict}")


def _read_champion(
    client: MlflowClient, candidate: ModelVersion, champion: ModelVersion
) -> tuple[str, dict[str, Tensor]]:
    """Return why two versions can't be compared, "" if they can, and the champion's answers.

    These are which validation examples are `correct`, or the `error`.
    """
    if obstacle := _obstacle(client, candidate, champion):
        return obstacle, {}
    source = f"models:/{champion.name}/{champion.version}/extra_files/{VALIDATION}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(mlflow.artifacts.download_artifacts(source, dst_path=folder))
            return "", read_tensors(path)
    except DamagedError:
        return "has a damaged file of its validation answers", {}


def _mean_error(answers: dict[str, Tensor]) -> float:
    """Return the mean squared error of a regression, 0 of a classifier."""
    return answers["error"].mean().item() if "error" in answers else 0.0


def _far_off(answers: dict[str, Tensor], others: list[float], margin: float) -> str:
    """Return why a regression's error is too far above the least other, "" where it is not."""
    error, least = _mean_error(answers), min(others)
    is_near = error <= least * (1 + margin + _ROUNDING)
    return "" if is_near else f"its mean squared error {error:.6g} is above the {least:.6g}"


def _right(own: dict[str, Tensor], other: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return what the candidate and the champion get right, bool (N,); of a regression, nearer."""
    if "correct" in own:
        return own["correct"].bool(), other["correct"].bool()
    return own["error"] < other["error"], other["error"] < own["error"]


def _compare(
    client: MlflowClient,
    candidate: ModelVersion,
    champion: ModelVersion,
    wish: dict[str, Any],
    answers: dict[str, Tensor],
    theirs: dict[str, Tensor],
) -> Decision:
    errors = [_mean_error(theirs)]
    if "error" in answers:
        errors += _past_scores(client, champion, "val_loss")
    if far := _far_off(answers, errors, wish["margin"]):
        return Decision(False, f"{far} of the best champion")
    own, other = _right(answers, theirs)
    test = mcnemar(own, other)
    verb, adverb = ("is nearer on", "") if "error" in answers else ("gets", " right")
    numbers = (
        f"of {len(own)} validation examples only it {verb} {test['only_a']}{adverb}, only champion "
        f"version {champion.version} {test['only_b']}, p = {test['p_one_sided']:.3g} in the exact "
        "McNemar test of whether it is worse"
    )
    if test["p_one_sided"] < wish["level"]:
        return Decision(False, f"significantly worse: {numbers}")
    best = max(_past_scores(client, champion, "val_accuracy"), default=-math.inf)
    accuracy = float(candidate.tags.get("val_accuracy", "nan"))
    if accuracy < best - wish["margin"]:
        far = f"more than {wish['margin']} below the best champion's {best:.4f}"
        stays = f"version {champion.version} stays champion"
        return Decision(False, f"validation accuracy {accuracy:.4f} is {far}; {stays}")
    is_better = test["only_a"] > test["only_b"]
    return Decision(True, f"{'better' if is_better else 'not significantly worse'}: {numbers}")


def _past_scores(client: MlflowClient, champion: ModelVersion, score: str) -> list[float]:
    """Return a score of the champions on its split up to this one, where they have it.

    The last one that `export.promote: always` made champion is the first that counts.
    """
    query = (
        f"name = '{champion.name}' and tags.split = '{champion.tags['split']}'"
        f" and tags.`{PROMOTED_AT}` != ''"
    )
    tags = [version.tags for version in client.search_model_versions(query)]
    forced_at = max((int(t.get(FORCED_AT, 0)) for t in tags), default=0)
    since = [t for t in tags if _promoted_at(t) >= forced_at]
    return [float(t[score]) for t in (champion.tags, *since) if score in t]


def _promoted_at(tags: dict[str, str]) -> int:
    return int(tags.get(PROMOTED_AT, 0))


def _move_aliases(
    client: MlflowClient,
    version: ModelVersion,
    champion: ModelVersion | None,
    decision: Decision,
) -> None:
    """Set the alias where it moves; a new champion is no challenger any more."""
    holder = champion if decision.passed else aliased(client, version.name, decision.alias)
    if holder is None or holder.version != version.version:
        set_alias(client, version, decision.alias)
    challenger = aliased(client, version.name, "challenger")
    if decision.passed and challenger and challenger.version == version.version:
        client.delete_registered_model_alias(version.name, "challenger")


def _write_decision(
    client: MlflowClient,
    version: ModelVersion,
    champion: ModelVersion | None,
    decision: Decision,
    time: int,
) -> None:
    """Keep on the version what was decided."""
    stays = champion is not None and champion.version == version.version
    tags = {}
    if not stays or not version.tags.get("gate", "").startswith(decision.alias):
        tags["gate"] = f"{decision.alias}: {decision.reason}"
    if decision.passed:
        tags[PROMOTED_AT] = str(time)
    if decision.is_forced:
        tags[FORCED_AT] = str(time)
    for key, value in tags.items():
        client.set_model_version_tag(version.name, version.version, key, value)
