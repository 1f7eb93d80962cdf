"""Where a training comes from: code, data, versions, machine. No result depends on it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from lineup.params import flatten
from lineup.paths import DVC_LOCK
from lineup.tracking.location import host

CHANGED_BY_REPRO = [":(exclude)dvc.lock", ":(exclude)metrics.json"]
MAX_PATCH_BYTES = 20_000_000
TOO_LARGE = "too large to be recorded"
PLAIN = [
    "--binary",
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "--src-prefix=a/",
    "--dst-prefix=b/",
]


def _git(
    *arguments: str, environment: dict[str, str] | None = None, limit: int = 1_000_000
) -> bytes:
    """Return a Git command's output, cut off behind `limit`; nothing without Git or a commit."""
    environment = os.environ | (environment or {})
    try:
        with subprocess.Popen(
            ["git", *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        ) as process:
            output = process.stdout.read(limit + 1)
    except FileNotFoundError:
        return b""
    return output if process.returncode == 0 or len(output) > limit else b""


def _git_line(*arguments: str) -> str:
    """Return the output of a Git command that answers with one line."""
    return _git(*arguments).decode(errors="replace").strip()


def changes() -> bytes | None:
    """Return the patch from HEAD to the working tree, without what `dvc repro` writes.

    New files are included. None stands for a patch too large to be kept with every run.
    """
    index = _git_line("rev-parse", "--git-path", "index")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "index"
        if index and Path(index).exists():
            shutil.copy2(index, copy)  # with its time, by which Git knows what to look at again
        environment = {"GIT_INDEX_FILE": str(copy)}
        _git("add", "--intent-to-add", "--all", environment=environment)
        empty_tree = _git_line("hash-object", "-t", "tree", os.devnull)
        base = "HEAD" if _git_line("rev-parse", "HEAD") else empty_tree
        command = ["diff", *PLAIN, base, "--", ".", *CHANGED_BY_REPRO]
        patch = _git(*command, environment=environment, limit=MAX_PATCH_BYTES)
    return patch if len(patch) <= MAX_PATCH_BYTES else None


def tags() -> dict[str, str]:
    """Return the tags that people filter runs by: commit, DVC experiment, machine."""
    return {
        "git_commit": _git_line("rev-parse", "HEAD"),
        "dvc_exp_name": os.environ.get("DVC_EXP_NAME", ""),
        "host": host(),
    }


def details() -> dict[str, Any]:
    """Return the rest of a run's lineage: branch, DVC's stage and digests, versions."""
    packages = ("torch", "dvc", "mlflow")
    return {
        "git_branch": _git_line("branch", "--show-current"),
        "dvc_stage": os.environ.get("DVC_STAGE", ""),
        "dvc_exp_baseline_rev": os.environ.get("DVC_EXP_BASELINE_REV", ""),
        "dvc_md5": _dvc_digests(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
    }


def _dvc_digests() -> dict[str, str]:
    """Return the MD5 by which DVC knows the dataset and the split."""
    try:
        stages = yaml.safe_load(DVC_LOCK.read_text(encoding="utf-8"))["stages"]
    except (FileNotFoundError, yaml.YAMLError, KeyError, TypeError):  # none, or half merged
        return {}
    made = [stages.get(stage, {}) for stage in ("fetch", "split")]
    outputs = [output for stage in made for output in stage.get("outs", [])]
    return {output["path"]: output.get("md5", "") for output in outputs}


def dataset_names(name: str, split: str, test: str) -> dict[str, dict[str, str]]:
    """Return name and digest (MLflow takes 36 characters) of each split, for its dataset column."""
    digests = {"training": split, "validation": split, "test": test}
    return {
        split: {"name": f"{name}-{split}", "digest": digest[:32]}
        for split, digest in digests.items()
    }


def name_params(architecture: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return a training's config as MLflow's params, by the names of params.yaml where it has some.

    `train` holds what was resolved for this architecture, its section of models included.
    """
    names = {"recipe": "train", "hyperparameters": f"models.{architecture}"}
    return flatten({names.get(key, key): value for key, value in config.items()})
