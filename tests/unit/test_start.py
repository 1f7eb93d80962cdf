"""However a command is started: it runs this clone's code, or says what to do."""

import os

from helpers.project import ROOT, Project, copy_sources


def test_the_code_of_another_clone_is_refused(tmp_path):
    project = Project(tmp_path)
    copy_sources(tmp_path)
    project.environment["PYTHONPATH"] = str(ROOT)
    done = project.run("python", "-m", "stages.fetch", check=False, PYTHONSAFEPATH="1")
    assert done.returncode == 2
    assert "the code that runs is" in done.stderr and "PYTHONSAFEPATH" in done.stderr
    assert not (tmp_path / "data/raw").exists()


def test_make_says_at_once_that_there_is_no_git_repository(tmp_path):
    project = Project(tmp_path)
    copy_sources(tmp_path)
    done = project.run("make", "git", check=False, GIT_CEILING_DIRECTORIES=str(tmp_path.parent))
    assert done.returncode == 2 and "no Git repository" in done.stdout + done.stderr
    assert "dvc config --local core.no_scm true" in done.stdout + done.stderr
    project.run("dvc", "config", "--local", "core.no_scm", "true")
    project.run("make", "git", GIT_CEILING_DIRECTORIES=str(tmp_path.parent))


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
    lock.write_text("{}")
    assert "rwlock" in project.run("make", "repro").stdout.splitlines()
