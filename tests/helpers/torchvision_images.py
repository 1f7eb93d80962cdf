"""Images as torchvision gives and augments them, one at a time: what others' programs do."""

from collections.abc import Callable

from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from lineup.params import Augment

DEGREES = 57.3  # of a radian


class Pictures(Dataset):
    """Images and labels, each image changed on its own."""

    def __init__(self, images: Tensor, labels: Tensor, change: Callable) -> None:
        self.images, self.labels, self.change = images, labels, change

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.change(self.images[index]), int(self.labels[index])


def affine(augment: Augment) -> transforms.RandomAffine:
    """Return a recipe's affine changes as torchvision has them."""
    return transforms.RandomAffine(
        augment.rotate,
        (augment.shift, augment.shift),
        (1 - augment.scale, 1 + augment.scale),
        DEGREES * augment.shear,
    )
