"""What tracking costs: in the training loop and around it, with usual and with 10,000 points.

Prints ratios and seconds of trainings in turn with and without tracking:
python tests/benchmarks/tracking.py [pairs]. One thread trains, or OMP_NUM_THREADS.
"""

import os
import re
import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.project import Project, make_project  # noqa: E402

STEPS = 12  # of an epoch: 1,150 training images in batches of 100
USUAL = {"train__epochs": 60, "train__log_every": 100, "models__mlp": {"hidden": [1024, 1024]}}
EXTREME = {
    "train__epochs": 10_000 // (2 * STEPS + 7),
    "train__log_every": 1,
    "models__mlp": {"hidden": [256]},
}


def trained(project: Project, tracking: str) -> dict[str, float]:
    """Train from nothing but a store; return the seconds of the loop, and all others."""
    project.run("rm", "-rf", "models", ".lineup")
    start = time.perf_counter()
    result = project.run("python", "-m", "stages.train", "mlp", LINEUP_TRACKING=tracking)
    seconds = time.perf_counter() - start
    assert "make sync" not in result.stdout, result.stdout
    loop = float(re.search(r"in ([\d.]+) s$", result.stdout, re.MULTILINE)[1])
    return {"loop": loop, "around": seconds - loop}


def compare(title: str, project: Project, pairs: int, settings: dict[str, object]) -> None:
    """Train with and without tracking in turn; print medians and ranges."""
    project.set(**settings)
    found = []
    for number in range(pairs):
        order = ("on", "off") if number % 2 else ("off", "on")
        found.append({tracking: trained(project, tracking) for tracking in order})
    ratios = [pair["on"]["loop"] / pair["off"]["loop"] for pair in found]
    around = [pair["on"]["around"] - pair["off"]["around"] for pair in found]
    loop = statistics.median(pair["off"]["loop"] for pair in found)
    points = f"{count_points(project):,} points, {pairs} pairs"
    print(f"{title}: {points}; the loop takes {loop:.1f} s without tracking")
    ratio = f"{statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})"
    print(f"  in the loop: tracked / not tracked = {ratio}")
    extra = f"{statistics.median(around):+.1f} s ({min(around):+.1f}–{max(around):+.1f})"
    print(f"  around it: {extra}", flush=True)


def count_points(project: Project) -> int:
    """Return the number of points that one training leaves in the store."""
    project.run("rm", "-f", *(f"mlflow.db{suffix}" for suffix in ("", "-wal", "-shm")))
    trained(project, "on")
    with closing(sqlite3.connect(project.folder / "mlflow.db")) as database:
        ((count,),) = database.execute("SELECT count(*) FROM metrics").fetchall()
    return count


def main() -> None:
    """Print both comparisons."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    pairs = int(sys.argv[1]) if sys.argv[1:] else 5
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder) / "project", images=1797)
        project.set(architectures=["mlp"], model="mlp", train__batch_size=100)
        for stage in ("fetch", "split"):
            project.run("python", "-m", f"stages.{stage}")
        trained(project, "on")  # makes the store
        compare("usual", project, pairs, USUAL)
        compare("extreme", project, max(1, pairs // 2), EXTREME)


if __name__ == "__main__":
    main()
