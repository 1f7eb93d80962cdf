"""A classifier's answers about pictures, and how they are printed."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from lineup.data.image_io import UnreadablePictureError, map_pictures
from lineup.evaluation.text_tables import as_text
from lineup.serving.classifier import Classifier
from lineup.serving.sources import Source

BATCH_SIZE = 256
MOST_AT_ONCE = 8  # pictures, which may be large


@dataclass(frozen=True)
class Answer:
    """What a classifier says about one picture."""

    name: str
    label: str | None  # the class that its folder names
    classes: list[str]
    probabilities: np.ndarray  # float32 (K,)
    image: np.ndarray | None  # as the model sees it, uint8 (C, H, W), where it is wanted

    def best(self, count: int) -> list[tuple[str, float]]:
        """Return the most probable classes with their probabilities, best first."""
        order = (-self.probabilities).argsort(kind="stable")[:count]
        return [(self.classes[i], round(float(self.probabilities[i]), 6)) for i in order]


def classify(
    classifier: Classifier, sources: Sequence[Source], keep_images: int = 0
) -> tuple[list[Answer], list[str]]:
    """Return an answer for every picture that can be read, and why the others can't.

    The first `keep_images` answers hold the picture as the model sees it.
    """
    answers: list[Answer] = []
    errors: list[str] = []
    for start in range(0, len(sources), BATCH_SIZE):
        read = list(_read(classifier, sources[start : start + BATCH_SIZE], errors))
        if not read:
            continue
        outputs = classifier.classify([image for _, image in read])
        for (source, image), probabilities in zip(read, outputs, strict=True):
            kept = image if len(answers) < keep_images else None
            label = source.label(classifier.classes)
            answer = Answer(source.name, label, classifier.classes, probabilities, kept)
            answers.append(answer)
    return answers, errors


def _read(
    classifier: Classifier, sources: Sequence[Source], errors: list[str]
) -> Iterator[tuple[Source, np.ndarray]]:
    """Yield the pictures that can be read, decoded on all cores; the others go into `errors`."""

    opened = [source.open() for source in sources]  # of standard input, all bytes
    threads = min(MOST_AT_ONCE, os.cpu_count() or 1)
    results = map_pictures(classifier.preprocess, opened, threads)
    for source, result in zip(sources, results, strict=True):
        if isinstance(result, UnreadablePictureError):
            errors.append(f"{source.name}: {result}")
        else:
            yield source, result


def count_correct(answers: Sequence[Answer]) -> str:
    """Return how many answers are right, where every picture lies in the folder of a class."""
    if not answers or any(answer.label is None for answer in answers):
        return ""
    correct = sum(answer.best(1)[0][0] == answer.label for answer in answers)
    return f"{correct} of {len(answers)} right"


def print_json(answers: Sequence[Answer], top_k: int) -> None:
    """Print a list of answers."""
    content = [
        {
            "picture": answer.name,
            "class": answer.best(1)[0][0],
            "probabilities": dict(answer.best(top_k)),
        }
        for answer in answers
    ]
    print(json.dumps(content, indent=2, ensure_ascii=False))


def print_csv(answers: Sequence[Answer], top_k: int) -> None:
    """Print a row per picture and class."""
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(["picture", "rank", "class", "probability"])
    for answer in answers:
        for rank, (name, probability) in enumerate(answer.best(top_k), start=1):
            rows.writerow([as_text(answer.name), rank, as_text(name), probability])


def print_table(answers: Sequence[Answer], top_k: int) -> None:
    """Print a row per picture, its classes side by side."""
    picture = Column("picture", overflow="fold")
    table = Table(picture, "class", "probability", "or", box=None, header_style="bold")
    for answer in answers:
        (best, probability), *others = answer.best(top_k)
        rest = ", ".join(f"{name} {other:.1%}" for name, other in others)
        cells = answer.name, best, f"{probability:.1%}", rest
        table.add_row(*map(Text, cells))  # not markup: names have brackets
    Console().print(table)
