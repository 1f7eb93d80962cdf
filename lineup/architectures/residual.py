"""Small residual network (He et al., 2016): stages of blocks of two 3×3 convolutions each."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from lineup.architectures import Dropout, Switch, Widths, image_shape, with_head


def build(
    shape: tuple[int, ...],
    outputs: int,
    *,
    channels: Annotated[list[Widths], Field(min_length=1)],
    dropout: Dropout = 0.0,
    mirror: Switch = False,
) -> nn.Module:
    """Return Conv 3×3, a block per number of `channels`, MaxPool 2 between stages, then Linear."""
    depth, _, _ = image_shape("residual", shape, smallest=2 ** len(channels))
    stem = channels[0][0]
    layers: list[nn.Module] = [*_convolution(depth, stem), nn.ReLU(inplace=True)]
    depth = stem
    for number, widths in enumerate(channels):
        if number:
            layers.append(nn.MaxPool2d(2))
        for features in widths:
            layers.append(Block(depth, features))
            depth = features
    layers.append(nn.AdaptiveAvgPool2d(1))
    return with_head(layers, depth, outputs, dropout, mirror)


class Block(nn.Module):
    """Two convolutions beside a shortcut, which is a 1×1 convolution where the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Take the channels before and after; the block begins as its shortcut alone."""
        super().__init__()
        self.convolutions = nn.Sequential(
            *_convolution(inputs, outputs),
            nn.ReLU(inplace=True),
            *_convolution(outputs, outputs),
        )
        nn.init.zeros_(self.convolutions[-1].weight)
        self.shortcut = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(*_convolution(inputs, outputs, size=1))

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H, W)."""
        return (self.convolutions(images) + self.shortcut(images)).relu_()


def _convolution(inputs: int, outputs: int, size: int = 3) -> list[nn.Module]:
    """Return a convolution that keeps the size, and its norm."""
    convolution = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]
