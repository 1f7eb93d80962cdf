"""Small convolutional network: 5×5 convolutions with max pooling, one linear layer (29k)."""

from torch import nn

from lineup.architectures import Dropout, Switch, Widths, image_shape, with_head


def build(
    shape: tuple[int, ...],
    outputs: int,
    *,
    channels: Widths,
    batch_norm: bool = True,
    dropout: Dropout = 0.0,
    mirror: Switch = False,
) -> nn.Module:
    """Return Conv 5×5 → MaxPool 2 → (BatchNorm) → ReLU for each of `channels`, then Linear."""
    depth, height, width = image_shape("cnn", shape, smallest=2 ** len(channels))
    layers: list[nn.Module] = []
    for features in channels:
        layers += [
            nn.Conv2d(depth, features, kernel_size=5, padding=2, bias=not batch_norm),
            nn.MaxPool2d(2),
        ]
        if batch_norm:
            layers.append(nn.BatchNorm2d(features))
        layers.append(nn.ReLU())  # after the pooling it costs a quarter, and the result is the same
        depth, height, width = features, height // 2, width // 2
    return with_head(layers, depth * height * width, outputs, dropout, mirror)
