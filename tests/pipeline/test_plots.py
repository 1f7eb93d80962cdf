"""What `dvc plots` shows of evaluations."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.evaluations import enter, write_digits, write_regression
from helpers.project import ROOT

from stages import evaluate


def dvc(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=True
    )
    assert "WARNING" not in done.stdout + done.stderr and "failed" not in done.stderr, done.stderr
    return done.stdout


def commit(message):
    subprocess.run(["git", "add", "--all", "--force", "evaluation", "dvc.yaml", ".dvc"], check=True)
    name = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *name, "commit", "--quiet", "--message", message], check=True)


@pytest.mark.slow
def test_dvc_plots_show_and_diff_work_with_fewer_architectures_and_with_a_regression(
    tmp_path, monkeypatch
):
    enter(tmp_path, monkeypatch)
    write_digits()
    evaluate.main()
    subprocess.run(["git", "init", "--quiet"], check=True)
    dvc("init", "--quiet")
    shutil.copytree(ROOT / ".dvc" / "plots", ".dvc/plots")
    plots = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    Path("dvc.yaml").write_text(yaml.safe_dump({"plots": plots}))
    commit("both")
    params = yaml.safe_load(Path("params.yaml").read_text()) | {"architectures": ["mlp"]}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    evaluate.main()
    commit("fewer")
    write_regression()
    evaluate.main()

    dvc("plots", "show", "--out", "show")
    assert "confusion" not in Path("show/index.html").read_text()
    dvc("plots", "diff", "HEAD", "workspace", "--out", "tasks")
    dvc("plots", "diff", "HEAD~1", "HEAD", "--out", "fewer")
    page = Path("fewer/index.html").read_text()
    assert (
        '"architecture": "linear"' in page
        and "Confusion on the test set" in page
        and "leaderboard.png" in page
    )
    assert "errors.png" not in page  # one per architecture: they are in the report
    assert "<DVC_METRIC" not in page
