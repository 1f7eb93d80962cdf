"""A run's name, params, tags and datasets, and its lineage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lineup.params import Params
from lineup.tracking import lineage
from lineup.training.checkpoints import fingerprint
from lineup.training.setup import Setup


def describe_run(
    setup: Setup, params: Params, lock_file: Path, patch: bytes | None
) -> dict[str, Any]:
    """Return the content of start.json; `patch` is what changed since the last commit."""
    dataset, config = setup.dataset, setup.config
    tags = lineage.tags()
    tags |= {"hardware": setup.machine.hardware, "node": setup.machine.node}
    tags |= {"architecture": setup.architecture, "lineup.lock": str(lock_file)}
    tags |= {"sha256.train": dataset.digests["train"], "sha256.split": setup.split.digest}
    alike = config | {"seed": None, "processor": None}
    tags["settings"] = fingerprint(alike)[:8]  # of runs that are equal but for these
    tags["git_dirty"] = lineage.TOO_LARGE if patch is None else str(bool(patch)).lower()
    sections = {"data": params.data.model_dump(), "split": params.split.model_dump()}
    shaping = {key: config[key] for key in ("seed", "hyperparameters", "pretrained")}
    shaping["recipe"] = config["recipe"] | {"threads": config["threads"]}
    named = {"dataset": params.dataset} | shaping | sections
    name = " ".join(part for part in (setup.architecture, tags["dvc_exp_name"]) if part)
    digests = setup.split.digest, dataset.digests["test"]
    return {
        "experiment": dataset.name,
        "name": name,
        "params": lineage.name_params(setup.architecture, named),
        "tags": {key: value for key, value in tags.items() if value},
        "datasets": lineage.dataset_names(dataset.name, *digests),
    }


def describe_lineage(setup: Setup) -> dict[str, Any]:
    """Return the content of lineage.json: every digest and version that is no tag."""
    data = setup.dataset.digests | {"split": setup.split.digest}
    return lineage.details() | {"data_sha256": data, "code_sha256": setup.config["code"]}
