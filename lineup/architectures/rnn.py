"""Recurrent network over an image's rows; its weights start as the identity (Le et al., 2015)."""

from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from lineup.architectures import Count, Dropout, image_shape


class RowReader(nn.Module):
    """A plain RNN over the rows of an image, whose states after every row are read together."""

    def __init__(
        self,
        rows: int,
        features: int,
        outputs: int,
        hidden: int,
        layers: int,
        activation: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self.rnn = nn.RNN(
            features, hidden, layers, nonlinearity=activation, batch_first=True, dropout=dropout
        )
        self.head = nn.Linear(rows * hidden, outputs)
        for name, parameter in self.rnn.named_parameters():
            if name.startswith("weight_hh"):
                nn.init.eye_(parameter)
            elif name.startswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        """Map float images (N, C, H, W) to logits (N, outputs)."""
        rows = images.transpose(1, 2).flatten(2)  # (N, H, C·W)
        # cuDNN draws its dropout from a state of its own, which no seed and no resume reaches
        plain = torch.backends.cudnn.flags(enabled=False) if self.rnn.dropout else nullcontext()
        with plain:
            states, _ = self.rnn(rows)  # (N, H, hidden)
        return self.head(states.flatten(1))


def build(
    shape: tuple[int, ...],
    outputs: int,
    *,
    hidden: Count,
    layers: Count,
    activation: Literal["tanh", "relu"] = "tanh",
    dropout: Dropout = 0.0,
) -> nn.Module:
    """Return an RNN of `layers` × `hidden` units over rows of C·W features, read by Linear."""
    channels, height, width = image_shape("rnn", shape, smallest=1)
    return RowReader(height, channels * width, outputs, hidden, layers, activation, dropout)
