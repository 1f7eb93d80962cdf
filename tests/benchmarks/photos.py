"""Photos of digits on paper, as `predict` sees them, beside the clean digits: who reads both alike?

python tests/benchmarks/photos.py --count 500     (after `dvc repro` on MNIST; asks export/)

The digits are of the validation split: what prepares photos was chosen on them.
"""

import sys
from pathlib import Path

import numpy as np
import typer

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.photos import photograph  # noqa: E402

from lineup.data.dataset import Split, load  # noqa: E402
from lineup.serving.classifier import open_classifier  # noqa: E402
from lineup.task import Task  # noqa: E402


def main(count: int = 500, seed: int = 1) -> None:
    """Print the part of photos that are read right, of those whose clean digit is."""
    images, labels = load("train", Task.CLASSIFICATION)
    generator, classifier = np.random.default_rng(seed), open_classifier("export")
    rows = generator.choice(Split.read().validation.numpy(), count, replace=False)
    digits, labels = images[rows].numpy(), labels[rows].numpy()
    is_clean_right = classifier.classify(list(digits)).argmax(1) == labels
    seen = [classifier.preprocess(photograph(digit[0], generator)) for digit in digits]
    is_photo_right = classifier.classify(seen).argmax(1) == labels
    print(f"clean {is_clean_right.mean():.2%} of {count}")
    print(f"photos {is_photo_right[is_clean_right].mean():.2%} of those, {classifier.title}")


if __name__ == "__main__":
    typer.run(main)
