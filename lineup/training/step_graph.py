"""A training step as one CUDA graph: a GPU runs its small kernels faster than a CPU launches them.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class StepGraph:
    """A step recorded at its first call, and replayed for every batch of the same size.

    Replays read the learning rates of the optimizers' groups, which are tensors, and the seed that
    torch.cuda.manual_seed set last.
    """

    def __init__(
        self,
        take_step: Callable[[Tensor], tuple[Tensor, ...]],
        tensors: Callable[[], list[Tensor]],
    ) -> None:
        """Take the step, a function of a batch's indices, and all tensors that it changes."""
        self.take_step, self.tensors = take_step, tensors
        self.graph: torch.cuda.CUDAGraph | None = None
        self.index = torch.empty(0)
        self.results: tuple[Tensor, ...] = ()

    def __call__(self, index: Tensor) -> tuple[Tensor, ...]:
        """Take the step; the results are valid until the next call."""
        if self.graph is None:
            self._record(index)
        self.index.copy_(index)
        self.graph.replay()
        return self.results

    def _record(self, index: Tensor) -> None:
        self.index = index.clone()
        self._warm_up()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.results = self.take_step(self.index)

    def _warm_up(self) -> None:
        """Take the step once, for what libraries and optimizers set up at their first; undo it."""
        before = [(tensor, tensor.detach().clone()) for tensor in self.tensors()]
        random_state = torch.cuda.get_rng_state()
        stream = torch.cuda.Stream()  # a graph can be recorded on any but the default one
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.take_step(self.index)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.set_rng_state(random_state)
        known = {id(tensor) for tensor, _ in before}
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
            for tensor in self.tensors():
                if id(tensor) not in known:
                    tensor.zero_()  # an optimizer's new state, which begins with zeros
