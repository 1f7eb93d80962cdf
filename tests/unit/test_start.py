"""However a command is started: it runs this clone's code, or says what to do."""

import errno
import os

import pytest
from helpers.project import ROOT, Project, copy_sources

from lineup.cli import run


def test_the_code_of_another_clone_is_refused(tmp_path):
    project = Project(tmp_path)
    copy_sources(tmp_path)
    project.environment["PYTHONPATH"] = str(ROOT)
    done = project.run("python", "-m", "stages.fetch", check=False, PYTHONSAFEPATH="1")
    assert done.returncode == 2
    assert "the code that runs is" in done.stderr and "PYTHONSAFEPATH" in done.stderr
    assert not (tmp_path / "data/raw").exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("could not create a primitive"),
        ImportError("libx.so: failed to map segment from shared object"),
    ],
)
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_memory_that_is_too_small_is_an_error_with_a_way_out(
    error, is_wrapped, capsys, monkeypatch
):
    def main():
        if is_wrapped:
            raise ValueError("Failed to export.\nMore lines.") from error
        raise error

    monkeypatch.setattr("sys.argv", ["stage"])
    with pytest.raises(SystemExit) as end:
        run(main)
    printed = capsys.readouterr().err
    assert end.value.code == 1 and printed.count("\n") == 1
    assert printed.startswith("error: the memory is too small") and "close other" in printed


def test_a_place_that_can_not_be_written_is_named_instead_of_a_temporary_file(capsys, monkeypatch):
    def main():
        raise OSError(errno.EROFS, "Read-only file system", "models/cnn/.model.12.tmp")

    monkeypatch.setattr("sys.argv", ["stage"])
    with pytest.raises(SystemExit):
        run(main)
    printed = capsys.readouterr().err
    assert printed == (
        "error: models/cnn: Read-only file system; work in a folder that you may write to\n"
    )


def test_what_is_no_lack_of_memory_keeps_its_traceback(monkeypatch):
    def main():
        raise ValueError("a mistake of ours")

    monkeypatch.setattr("sys.argv", ["stage"])
    with pytest.raises(ValueError, match="a mistake of ours"):
        run(main)


def test_make_says_at_once_that_there_is_no_git_repository(tmp_path):
    project = Project(tmp_path)
    copy_sources(tmp_path)
    done = project.run(
        "make", "git", check=False, GIT_CEILING_DIRECTORIES=str(tmp_path.parent), LC_ALL="C"
    )
    assert done.returncode == 2 and "not a git repository" in done.stderr  # git's own words
    assert "dvc config --local core.no_scm true" in done.stdout + done.stderr
    project.run("dvc", "config", "--local", "core.no_scm", "true")
    printed = project.run("make", "git", GIT_CEILING_DIRECTORIES=str(tmp_path.parent)).stdout
    assert "who you are" not in printed


@pytest.mark.parametrize("known", [(), ("email",), ("name",), ("name", "email")])
def test_make_says_so_where_git_lacks_what_experiments_need(known, tmp_path):
    project = Project(tmp_path)
    copy_sources(tmp_path)
    project.run("git", "init", "--quiet")
    for key in known:
        project.run("git", "config", f"user.{key}", "ann@example.org")
    nobody = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    printed = project.run("make", "git", **nobody).stdout
    assert ("dvc exp run will need to know who you are" in printed) == (len(known) < 2)


def test_make_repro_removes_an_empty_lock_that_a_killed_dvc_left(tmp_path):
    project = Project(tmp_path)
    copy_sources(tmp_path)
    (tmp_path / "Makefile").write_text(
        (tmp_path / "Makefile")
        .read_text()
        .replace("\tdvc repro", "\tls .dvc/tmp")
        .replace("git $(ENV)", "")
    )
    lock = tmp_path / ".dvc/tmp/rwlock"
    lock.parent.mkdir(parents=True)
    lock.write_text("")
    os.utime(lock, (1e9, 1e9))  # not of a dvc that writes it just now
    assert "rwlock" not in project.run("make", "repro").stdout.splitlines()
    lock.write_text("")
    os.utime(lock, (4e9, 4e9))  # of a clock that was set back since
    assert "rwlock" not in project.run("make", "repro").stdout.splitlines()
    lock.write_text("")
    assert "rwlock" in project.run("make", "repro").stdout.splitlines()  # dvc may be writing it
    lock.write_text("{}")
    assert "rwlock" in project.run("make", "repro").stdout.splitlines()
