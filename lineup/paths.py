"""Every folder and file of a project, once. Paths are relative to the project: DVC may copy it."""

import os
from pathlib import Path

CODE = Path(__file__).parents[1]  # holds lineup/, stages/ and dvc.yaml
ARCHITECTURES = Path(__file__).parent / "architectures"
TEMPLATES = Path(__file__).parent / "templates"

PARAMS = Path("params.yaml")
DVC_LOCK = Path("dvc.lock")

DATA = Path("data")
RAW = DATA / "raw"
DATASET_JSON = RAW / "dataset.json"
FILES_CSV = RAW / "files.csv"
SPLIT = DATA / "split"
INDICES = SPLIT / "indices.safetensors"
SPLIT_JSON = SPLIT / "split.json"
SAMPLES = SPLIT / "samples.png"
FINDINGS_PNG = SPLIT / "findings.png"
RAW_REPORT = RAW / "data_report.json"  # what fetch found
DATA_REPORT = SPLIT / "data_report.json"  # and split

MODELS = Path("models")
EVALUATION = Path("evaluation")
PLOTS = EVALUATION / "plots"  # what dvc plots shows: few, since each is large
PICTURES = EVALUATION / "pictures"  # of each architecture
LEADERBOARD_CSV = EVALUATION / "leaderboard.csv"
EXPORT = Path("export")
SEEDS = Path("seeds")
SEARCH = Path("search")
METRICS_JSON = Path("metrics.json")
REPORT = Path("report.html")

# in the folder of one model
WEIGHTS = "model.safetensors"
MODEL_JSON = "model.json"
HISTORY = "history.csv"
RUN_JSON = "run.json"
ONNX = "model.onnx"
INT8_ONNX = "model.int8.onnx"
SCORES = "metrics.json"  # of one architecture; METRICS_JSON are those of what ships
PREDICTIONS = "predictions.safetensors"  # on the test split
EXAMPLE = "example.npy"  # test images with bright pixels, for a version's input example
VALIDATION = "validation.safetensors"  # outputs on the validation split, and how good each is


def raw(split: str) -> Path:
    """Return the tensors of the train or test split, as fetch writes them."""
    return RAW / f"{split}.safetensors"


def repository() -> Path:
    """Return the root of the repository, absolute, also from DVC's temporary workspaces."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


def state_dir() -> Path:
    """Return .lineup/: checkpoints, run folders, locks, downloads."""
    return repository() / ".lineup"


def run_dir(run_id: str) -> Path:
    """Return the folder of a run."""
    return state_dir() / "runs" / run_id
