"""Damaged files, and memory that is short: a command says so in a line, or is not disturbed."""

import io
import re
import shutil
import sys
from contextlib import redirect_stderr, suppress
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import pytest
from helpers.project import ROOT
from helpers.store import use_store

from lineup.cli import run
from lineup.files import sha256

READERS = {
    "data/raw/train.safetensors": ["split", "train linear", "evaluate"],
    "data/raw/test.safetensors": ["evaluate", "export"],
    "data/raw/dataset.json": ["split", "train linear", "evaluate", "export"],
    "data/raw/files.csv": ["split", "evaluate"],
    "data/raw/data_report.json": ["split"],
    "data/split/indices.safetensors": ["train linear", "evaluate", "export"],
    "data/split/split.json": ["train linear", "evaluate", "export"],
    "models/linear/model.safetensors": ["evaluate", "export"],
    "models/linear/model.json": ["evaluate", "export"],
    "models/linear/history.csv": ["evaluate"],
    "models/linear/run.json": ["evaluate", "export"],
    "evaluation/leaderboard.csv": ["export", "report"],
    "evaluation/linear/model.onnx": ["export"],
    "evaluation/linear/model.json": ["export"],
    "evaluation/linear/metrics.json": ["export", "report"],
    "export/model.onnx": ["predict"],
    ".lineup/checkpoints/*/progress.json": ["train linear"],
    ".lineup/checkpoints/*/state-*.safetensors": ["train linear"],
    ".lineup/runs/*/start.json": ["sync"],
    ".lineup/runs/*/points.jsonl": ["sync"],
    ".lineup/runs/*/status.jsonl": ["sync"],
    ".lineup/runs/*/mirrors/*.json": ["sync"],
    ".lineup/runs/*/outputs/model.json": ["sync"],
    ".lineup/runs/*/evaluation/model.onnx": ["sync"],
    ".lineup/runs/*/evaluation/metrics.json": ["sync"],
    ".lineup/runs/*/promotion.json": ["sync"],
}
CASES = [(path, reader) for path, readers in READERS.items() for reader in readers]
ADVICE = ("run: dvc repro", "`dvc repro ", "nothing is lost", "move it away", "is not an ONNX file")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def turn_into_a_folder(path):
    path.unlink()
    path.mkdir()


def remove(path):
    path.unlink()


def error_of(name, *arguments):
    """Run a command in this process; return the error that a person reads, "" where there is none."""
    if name == "predict":
        arguments = (*map(str, Path("data/digits/7").glob("*")), "--model", "export")
    words, errors = [f"stages.{name}", *arguments], io.StringIO()
    with patch.object(sys, "argv", words), redirect_stderr(errors), suppress(SystemExit):
        run(import_module(f"stages.{name}").main)
    (line,) = re.findall("error: (.*)", errors.getvalue()) or [""]
    return line


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "reader"), CASES)
def test_what_reads_a_damaged_file(pattern, reader, project, monkeypatch):
    use_store(monkeypatch)
    Path("lineup/cli.py").unlink()  # else the commands look for this folder's code
    kept = project.folder.with_name("kept")
    shutil.copytree(project.folder, kept, symlinks=True)
    for damage in (cut, flip, empty, turn_into_a_folder, remove):
        for path in Path().glob(pattern):
            damage(path)
        error = error_of(*reader.split())
        print(f"{pattern} · {damage.__name__} · {reader}: {error or 'goes on'}")
        assert not error or any(words in error for words in ADVICE), (damage, error)
        for entry in project.folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        shutil.copytree(kept, project.folder, symlinks=True, dirs_exist_ok=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of the address space")
def test_memory_that_is_short_from_some_file_on_is_an_error_and_the_next_training_heals(project):
    program = str(ROOT / "tests/programs/run_short_of_memory.py")
    weights = Path("models/linear/model.safetensors")
    before, train = sha256(weights), ("train", "linear")
    for number, code in ((2, 1), (12, 2)):  # at the start, and in an epoch
        done = project.run("python", program, str(number), *train, check=False)
        words, _, _ = done.stderr.partition("Exception ignored in atexit")  # torch's own
        assert done.returncode == code and "Traceback" not in done.stdout + words
        assert re.findall("error: the memory is too small.*; (?:try|close) ", words)
    project.run("python", "-m", "stages.train", "linear")
    assert sha256(weights) == before and not list(Path().glob("models/**/*.tmp"))
