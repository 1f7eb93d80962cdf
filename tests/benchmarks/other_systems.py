"""Train another system on a folder with train/, val/ and test/: a program for its own Python.

other_systems.py fastai|ultralytics FOLDER EPOCHS

Trains from scratch at 64 pixels, keeps the best epoch by validation, and prints the accuracies
on validation and test as JSON in the last line.
"""

import json
import sys
from pathlib import Path

SIZE = 64


def train_fastai(folder: Path, epochs: int) -> dict[str, float]:
    """Train resnet18 as fastai's guide does, but from scratch."""
    from fastai.vision.all import (
        ImageDataLoaders,
        Resize,
        SaveModelCallback,
        accuracy,
        aug_transforms,
        get_image_files,
        resnet18,
        vision_learner,
    )

    loaders = ImageDataLoaders.from_folder(
        folder,
        train="train",
        valid="val",
        item_tfms=Resize(SIZE, method="squish"),
        batch_tfms=aug_transforms(),
        num_workers=2,
    )
    learner = vision_learner(
        loaders, resnet18, metrics=accuracy, pretrained=False, path=folder, model_dir="fastai"
    )
    learner.fit_one_cycle(epochs, 3e-3, cbs=SaveModelCallback(monitor="accuracy"))
    files = get_image_files(folder / "test")
    test = loaders.test_dl(files, with_labels=True)
    return {
        "validation": float(learner.validate()[1]),
        "test": float(learner.validate(dl=test)[1]),
    }


def train_ultralytics(folder: Path, epochs: int) -> dict[str, float]:
    """Train yolo11n-cls with its own settings, but from scratch."""
    from ultralytics import YOLO

    model = YOLO("yolo11n-cls.yaml")
    model.train(
        data=str(folder), imgsz=SIZE, epochs=epochs, project=str(folder), plots=False, workers=2
    )
    best = YOLO(model.trainer.best)
    scores = {
        split: best.val(data=str(folder), split=split, imgsz=SIZE, plots=False, workers=2).top1
        for split in ("val", "test")
    }
    return {"validation": scores["val"], "test": scores["test"]}


if __name__ == "__main__":
    _, system, place, count = sys.argv
    train = {"fastai": train_fastai, "ultralytics": train_ultralytics}[system]
    print(json.dumps(train(Path(place), int(count))))
