"""A set of pictures larger than the memory: what a stage takes does not grow with it."""

import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.memory import seconds_and_megabytes
from helpers.project import Project, copy_sources
from PIL import Image

SIDE = 224
FEW, MANY = 200, 1800  # many are 271 MB of pixels
MORE = 120  # MB: less than half of what one copy of them would take; the noise is 65
STAGES = ["fetch", "split", "train cnn", "evaluate", "export"]


def paint(folder: Path, count: int) -> None:
    """Write `count` more pictures in colour, of two classes."""
    generator = np.random.default_rng(count)
    for number in range(count):
        label = number % 2
        pixels = generator.integers(0, 100, (SIDE // 8, SIDE // 8, 3), np.uint8)
        pixels[..., label] += 100
        path = folder / "ab"[label] / f"{count}-{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.repeat(8, 0).repeat(8, 1)).save(path)


def anonymous_megabytes(project: Project, stage: str) -> float:
    """Run a stage; return the most memory it had at a time that no file on disk stands for."""
    command = [sys.executable, "-m", *f"stages.{stage}".split()]
    return seconds_and_megabytes(project, *command, LINEUP_TRACKING="off")[1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_stage_holds_the_set_in_memory(tmp_path):
    project = Project(tmp_path)
    copy_sources(tmp_path)
    project.set(dataset="large", data__size=SIDE, architectures=["cnn"], model="cnn")
    project.set(models__cnn__epochs=1, models__cnn__channels=[4, 4], train__batch_size=32)
    found = []
    for count in (FEW, MANY - FEW):
        paint(tmp_path / "data/large", count)
        found.append([anonymous_megabytes(project, stage) for stage in STAGES])
    few, many = found
    for stage, before, after in zip(STAGES, few, many, strict=True):
        if after >= before + MORE:  # a copy would be there every time, noise is not
            after = anonymous_megabytes(project, stage)
        assert after < before + MORE, (stage, few, many)
