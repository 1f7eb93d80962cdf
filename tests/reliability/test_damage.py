"""Files that were damaged between two commands: the next command is not disturbed, or says in a line what to do."""

import re
import shutil
from pathlib import Path

import pytest
from helpers.store import stage

from lineup.errors import UserError

TRAINED = {"linear": "models/linear", "mlp": "models/mlp"}
READERS = {
    "data/raw/train.safetensors": ["split", "train linear", "evaluate"],
    "data/raw/test.safetensors": ["evaluate", "export"],
    "data/raw/dataset.json": ["split", "train linear", "evaluate"],
    "data/raw/files.csv": ["split", "evaluate"],
    "data/raw/data_report.json": ["split"],
    "data/split/indices.safetensors": ["train linear", "evaluate"],
    "data/split/split.json": ["train linear", "evaluate"],
    "models/linear/model.safetensors": ["evaluate", "export"],
    "models/linear/model.json": ["evaluate", "export"],
    "models/linear/history.csv": ["evaluate"],
    "models/linear/run.json": ["evaluate", "export"],
    "evaluation/leaderboard.csv": ["export", "report"],
    "evaluation/linear/model.onnx": ["export"],
    "evaluation/linear/model.json": ["export", "report"],
    "evaluation/linear/metrics.json": ["export", "report"],
    "evaluation/linear/predictions.csv": ["report"],
    "export/model.onnx": ["predict"],
    ".lineup/checkpoints/*/progress.json": ["train linear"],
    ".lineup/checkpoints/*/state-*.safetensors": ["train linear"],
    ".lineup/runs/*/start.json": ["sync"],
    ".lineup/runs/*/points.jsonl": ["sync"],
    ".lineup/runs/*/status.jsonl": ["sync"],
    ".lineup/runs/*/outputs/model.json": ["sync"],
    ".lineup/runs/*/evaluation/model.onnx": ["sync"],
    ".lineup/runs/*/evaluation/metrics.json": ["sync"],
    ".lineup/runs/*/promotion.json": ["sync"],
}
CASES = [(path, reader) for path, readers in READERS.items() for reader in readers]


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


@pytest.fixture
def untouched(project):
    """A finished project that a damage does not reach: its copy is damaged."""
    return project


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "reader"), CASES)
def test_what_reads_a_damaged_file_says_so_or_is_not_disturbed(pattern, reader, project, capsys):
    name, *arguments = reader.split()
    kept = project.folder.with_name("kept")
    shutil.copytree(project.folder, kept, symlinks=True)
    for damage in (cut, flip, empty, turn_into_a_folder, remove):
        for path in Path().glob(pattern):
            damage(path)
        try:
            stage(name, *arguments)
            outcome = "goes on"
        except UserError as error:
            outcome = f"error: {error}"
            assert re.search(r"run: dvc repro|[Rr]emove|make sync|nothing is lost", str(error))
        except OSError as error:
            outcome = f"os error: {error}"
        except Exception as error:
            outcome = f"TRACEBACK {type(error).__name__}: {error}"
        print(f"{pattern} · {damage.__name__} · {reader}: {outcome}")
        for entry in project.folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        shutil.copytree(kept, project.folder, symlinks=True, dirs_exist_ok=True)
