"""A few steps of every architecture with `precision: portable`: prints the digest of each state.

python tests/helpers/portable_steps.py [ARCHITECTURE …]
"""

import hashlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from lineup.params import load_params  # noqa: E402
from lineup.training.portable import limit_instructions  # noqa: E402

limit_instructions()

import torch  # noqa: E402

from lineup import architectures  # noqa: E402
from lineup.training.batches import Batches  # noqa: E402
from lineup.training.device import check_portable, make_deterministic  # noqa: E402
from lineup.training.trainer import Trainer  # noqa: E402

BATCH_SIZE = 48
OPTIMIZERS = {"cnn": "sgd", "rnn": "adam"}  # the others keep theirs: adamw and muon


def digest(name: str) -> str:
    """Return the SHA-256 of weights, optimizer's state and scores after three steps."""
    recipe, hyperparameters = load_params(ROOT / "params.yaml").recipe(name)
    changes = {"flip": True, "crop": 0.2, "color": 0.2, "erase": 0.3}
    settings = {
        "epochs": 1,
        "batch_size": BATCH_SIZE,
        "augment": recipe.augment.model_copy(update=changes),
        "optimizer": OPTIMIZERS.get(name, recipe.optimizer),
        "ema": 0.9,
        "clip_norm": 1,
        "class_weights": "balanced",
    }
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (110, 1, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.arange(len(images)) % 10
    mean, std = torch.tensor([0.13]), torch.tensor([0.31])
    train, validation = (
        Batches(images[part], labels[part], mean, std) for part in (slice(100), slice(100, None))
    )
    torch.manual_seed(1)
    model = architectures.build(name, (1, 28, 28), 10, hyperparameters)
    trainer = Trainer(model, train, validation, recipe.model_copy(update=settings), seed=1)
    for _ in trainer.fit():  # two whole batches and a rest
        pass
    progress, tensors = trainer.state()
    found = hashlib.sha256(json.dumps(progress["history"]).encode())
    for key in sorted(tensors):
        found.update(tensors[key].numpy().tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    torch.set_num_threads(2)
    make_deterministic()
    check_portable()
    names = sys.argv[1:] or load_params(ROOT / "params.yaml").architectures
    print(json.dumps({name: digest(name) for name in names}))
