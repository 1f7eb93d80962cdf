"""Where a training comes from: code, data, versions, machine; for the record, never for the result."""

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

CHANGED_BY_REPRO = [":(exclude)dvc.lock", ":(exclude)metrics.json"]
LARGEST_PATCH = 20_000_000  # bytes
TOO_LARGE = "too large to be recorded"
PLAIN = [
    "--binary",
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "--src-prefix=a/",
    "--dst-prefix=b/",
]


def git(
    *arguments: str, environment: dict[str, str] | None = None, limit: int = 1_000_000
) -> bytes:
    """Return the output of a Git command, cut off behind `limit`, or nothing where there is no Git or no commit."""
    environment = os.environ | (environment or {})
    try:
        with subprocess.Popen(
            ["git", *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        ) as process:
            output = process.stdout.read(limit + 1)
    except FileNotFoundError:
        return b""
    return output if process.returncode == 0 or len(output) > limit else b""


def git_word(*arguments: str) -> str:
    """Return the output of a Git command that answers with one line."""
    return git(*arguments).decode(errors="replace").strip()


def changes() -> bytes | None:
    """Return the patch from HEAD to the working tree, new files included, without what `dvc repro` writes.

    None stands for a patch too large to be kept with every run.
    """
    index = git_word("rev-parse", "--git-path", "index")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "index"
        if index and Path(index).exists():
            shutil.copy(index, copy)
        environment = {"GIT_INDEX_FILE": str(copy)}
        git("add", "--intent-to-add", "--all", environment=environment)
        patch = git(
            "diff",
            *PLAIN,
            "HEAD",
            "--",
            ".",
            *CHANGED_BY_REPRO,
            environment=environment,
            limit=LARGEST_PATCH,
        )
    return patch if len(patch) <= LARGEST_PATCH else None


def tags() -> dict[str, str]:
    """Return code, DVC experiment, data and machine as flat text."""
    found = {
        "git_commit": git_word("rev-parse", "HEAD"),
        "git_branch": git_word("branch", "--show-current"),
        "dvc_stage": os.environ.get("DVC_STAGE", ""),
        "dvc_exp_name": os.environ.get("DVC_EXP_NAME", ""),
        "dvc_exp_baseline_rev": os.environ.get("DVC_EXP_BASELINE_REV", ""),
        "python": platform.python_version(),
        "host": platform.node(),
        "hardware": hardware(),
    }
    found |= {package: version(package) for package in ("torch", "dvc", "mlflow")}
    return found | dvc_digests()


def dvc_digests() -> dict[str, str]:
    """Return the MD5 by which DVC knows the dataset and the split."""
    try:
        stages = yaml.safe_load(Path("dvc.lock").read_text(encoding="utf-8"))["stages"]
    except FileNotFoundError:
        return {}
    outputs = [
        output for stage in ("fetch", "split") for output in stages.get(stage, {}).get("outs", [])
    ]
    return {f"dvc_md5.{output['path']}": output.get("md5", "") for output in outputs}


def hardware() -> str:
    """Return processor and accelerator in words."""
    import torch

    processor = (
        torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()
    )
    words = f"{processor}, {os.cpu_count()} cores"
    return f"{words}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else words


def dataset_facts(name: str, split: str, test: str) -> dict[str, dict[str, str]]:
    """Return name and digest (MLflow takes 36 characters) of each part, for MLflow's dataset column."""
    digests = {"training": split, "validation": split, "test": test}
    return {
        part: {"name": f"{name}-{part}", "digest": digest[:32]} for part, digest in digests.items()
    }


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
