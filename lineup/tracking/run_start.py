"""What a run carries from its start: name, params, tags, datasets."""

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
    dataset = setup.dataset
    tags = lineage.tags()
    tags |= {"architecture": setup.architecture, "lineup.lock": str(lock_file)}
    tags |= {f"sha256.{split}": digest for split, digest in dataset.digests.items()}
    tags["sha256.split"] = setup.split.digest
    tags["settings"] = fingerprint(setup.config | {"seed": None})[:8]  # equal but for the seed
    tags["git_dirty"] = lineage.TOO_LARGE if patch is None else str(bool(patch)).lower()
    sections = {"data": params.data.model_dump(), "split": params.split.model_dump()}
    name = " ".join(part for part in (setup.architecture, tags["dvc_exp_name"]) if part)
    digests = setup.split.digest, dataset.digests["test"]
    return {
        "experiment": dataset.name,
        "name": name,
        "params": lineage.flatten({"dataset": params.dataset, **setup.config, **sections}),
        "tags": {key: value for key, value in tags.items() if value},
        "datasets": lineage.dataset_names(dataset.name, *digests),
    }
