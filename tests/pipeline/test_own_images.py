"""A folder of one's own pictures under DVC and Git: versioned, noticed, never committed."""

import shutil
from pathlib import Path

import pytest
import yaml
from helpers.datasets import describe
from helpers.picture_sets import flowers, paint
from helpers.project import Project, copy_sources

FLOWERS = Path("data/flowers")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """This pipeline's first two stages and a folder of flowers, committed; the current folder."""
    monkeypatch.chdir(tmp_path)
    copy_sources(tmp_path)
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    first_two = {name: stages[name] for name in ("fetch", "split")}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": first_two}))
    flowers(FLOWERS)
    repository = Project(tmp_path)
    repository.set(dataset="flowers", data__size=16)
    repository.run("git", "init", "--quiet")
    repository.run("git", "config", "user.email", "tests@example.org")
    repository.run("git", "config", "user.name", "Tests")
    repository.commit()
    return repository


def link_to_flowers():
    Path("data/linked").symlink_to(FLOWERS.absolute())


def committed(repository, revision="HEAD"):
    return repository.run("git", "ls-tree", "-r", "--name-only", revision).stdout.split()


def test_dvc_versions_a_folder_whose_pictures_git_never_sees(repository):
    repository.run("dvc", "add", "data/flowers")
    repository.commit()
    names = [name for name in committed(repository) if "flowers" in name]
    assert names == ["data/flowers.dvc"]
    shutil.rmtree(FLOWERS)
    repository.run("dvc", "checkout", "data/flowers")
    assert (FLOWERS / "rose/9.png").exists()


def test_git_ignores_a_link_to_pictures_too(repository):
    link_to_flowers()
    assert repository.run("git", "status", "--porcelain").stdout == ""


def test_another_size_is_not_taken_for_what_dvc_has_in_its_cache_of_runs(repository):
    sizes = []
    for size in (16, 20, 16):
        repository.set(data__size=size)
        repository.run("dvc", "repro", "fetch")
        sizes.append(describe().shape[1:])
    assert sizes == [[16, 16], [20, 20], [16, 16]]


@pytest.mark.slow
def test_dvc_runs_again_when_a_picture_changes_also_behind_a_link(repository):
    link_to_flowers()
    repository.set(dataset="linked")
    repository.run("dvc", "repro")
    assert "up to date" in repository.run("dvc", "status").stdout
    paint(FLOWERS / "rose", 11)
    assert "data/linked" in repository.run("dvc", "status").stdout


@pytest.mark.slow
@pytest.mark.parametrize("known", ["added to DVC", "copied", "copied link"])
def test_a_temporary_experiment_sees_a_folder_that_is(repository, known):
    name = "flowers"
    if known == "added to DVC":
        repository.run("dvc", "add", "data/flowers")
    elif known == "copied link":
        name = "linked"
        link_to_flowers()
    repository.set(dataset="mnist")
    repository.commit()
    copied = [] if known == "added to DVC" else ["--copy-paths", f"data/{name}"]
    change = ["--set-param", f"dataset={name}"]
    repository.run("dvc", "exp", "run", "--temp", "--name", "trial", *copied, *change)
    repository.run("dvc", "exp", "apply", "trial")
    assert (describe().name, describe().classes) == (name, ["iris", "rose"])
    experiments = repository.run("git", "for-each-ref", "--format=%(refname)", "refs/exps")
    names = committed(repository, experiments.stdout.split()[0])
    assert not [path for path in names if path.startswith(("data/flowers/", "data/linked"))]
