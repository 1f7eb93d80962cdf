"""What is recorded of a run's origin: checking out its commit and applying its patch gives its files."""

import os
import subprocess
from pathlib import Path

import pytest
from helpers.project import copy_sources

from lineup.tracking import lineage


def git(*arguments, cwd=None):
    return subprocess.run(["git", *arguments], cwd=cwd, check=True, capture_output=True).stdout


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one commit, whose working tree differs from it in every way that a tree can."""
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.chdir(folder)
    git("init", "--quiet")
    git("config", "user.email", "tests@example.org")
    git("config", "user.name", "Tests")
    Path(".gitignore").write_text("ignored\n")
    for name in ("changed.py", "staged.py", "gone.py", "dvc.lock", "metrics.json"):
        Path(name).write_text("one\ntwo\n")
    Path("windows.txt").write_bytes(b"one\r\ntwo\r\n")
    Path("latin.txt").write_bytes("é\nè\n".encode("latin-1"))
    Path("picture.png").write_bytes(bytes(range(256)))
    git("add", "--all")
    git("commit", "--quiet", "--message", "work")
    return folder


def change(folder):
    (folder / "changed.py").write_text("one\n2\n")
    (folder / "staged.py").write_text("1\ntwo\n")
    git("add", "staged.py")
    (folder / "gone.py").unlink()
    (folder / "windows.txt").write_bytes(b"one\r\n2\r\n")
    (folder / "latin.txt").write_bytes("é\nê\n".encode("latin-1"))
    (folder / "picture.png").write_bytes(bytes(reversed(range(256))))
    (folder / "new ünï.py").write_text("new\n")
    (folder / "ignored").write_text("x")
    (folder / "dvc.lock").write_text("changed by repro\n")
    (folder / "metrics.json").write_text("changed by repro\n")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_clone_has_the_same_bytes_where_git_converts_line_ends(repository, tmp_path):
    copy_sources(repository)
    (repository / "windows.py").write_bytes(b"one\r\ntwo\r\n")
    git("add", "--all")
    git("commit", "--quiet", "--message", "sources")
    clone = tmp_path / "clone"
    git("clone", "--quiet", "-c", "core.autocrlf=true", str(repository), str(clone))
    names = git("ls-files", "-z").decode().rstrip("\0").split("\0")
    assert {"dvc.yaml", "params.yaml", "stages/train.py"} <= set(names)
    for name in names:
        assert (clone / name).read_bytes() == (repository / name).read_bytes(), name
    assert not git("status", "--porcelain", cwd=clone)


@pytest.mark.parametrize(
    "setting", [None, "diff.noprefix=true", "color.ui=always", "diff.mnemonicPrefix=true"]
)
def test_commit_and_patch_give_back_the_working_tree(setting, repository, tmp_path):
    if setting:
        git("config", *setting.split("="))
    change(repository)
    before = git("status", "--porcelain")
    (tmp_path / "changes.patch").write_bytes(lineage.changes())
    assert git("status", "--porcelain") == before  # looking leaves no trace
    clone = tmp_path / "clone"
    git("clone", "--quiet", str(repository), str(clone))
    git("apply", str(tmp_path / "changes.patch"), cwd=clone)
    kept = ("ignored", "dvc.lock", "metrics.json")
    expected, found = (
        {k: v for k, v in files(f).items() if k not in kept} for f in (repository, clone)
    )
    assert found == expected
    assert files(clone)["dvc.lock"] == b"one\ntwo\n"


def test_a_change_of_equal_size_in_the_second_of_the_commit_is_no_secret(repository):
    git("config", "core.trustctime", "false")
    os.utime("changed.py", (1e9, 1e9))
    git("commit", "--all", "--quiet", "--message", "more", "--allow-empty")
    os.utime(".git/index", (1e9, 1e9))  # what makes Git look at the content
    Path("changed.py").write_text("one\n2wo\n")
    os.utime("changed.py", (1e9, 1e9))
    assert b"+2wo" in lineage.changes()


def test_what_repro_writes_makes_no_tree_dirty(repository):
    assert lineage.changes() == b""
    Path("dvc.lock").write_text("new\n")
    Path("metrics.json").write_text("new\n")
    assert lineage.changes() == b""


def test_before_the_first_commit_the_patch_holds_every_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    Path("code.py").write_text("print(1)\n")
    assert b"+print(1)" in lineage.changes()
    git("add", "--all")
    assert b"+print(1)" in lineage.changes()


def test_a_patch_too_large_to_be_kept_with_every_run_is_told_apart(repository, monkeypatch):
    monkeypatch.setattr(lineage, "MAX_PATCH_BYTES", 1000)
    Path("notes").write_text("x\n" * 100)
    assert b"+x" in lineage.changes()
    Path("notes").write_text("x\n" * 400_000)  # more than a pipe holds
    assert lineage.changes() is None


def test_without_git_nothing_is_known_and_nothing_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert lineage.changes() == b""
    assert lineage.tags()["git_commit"] == lineage.details()["git_branch"] == ""
    assert lineage.details()["versions"]["python"]
    monkeypatch.setenv("PATH", "")
    assert lineage.changes() == b""


@pytest.mark.parametrize("lock", ["", "<<<<<<< HEAD\nstages:\n=======\n>>>>>>> x\n", "a: 1\n"])
def test_a_lock_that_is_half_merged_stops_no_training(lock, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("dvc.lock").write_text(lock)
    assert lineage.details()["dvc_md5"] == {}


def test_settings_become_flat_names():
    nested = {"a": 1, "b": {"c": [1, 2], "d": {"e": None}}, "f": {}}
    assert lineage.flatten(nested) == {"a": 1, "b.c": [1, 2], "b.d.e": None}
