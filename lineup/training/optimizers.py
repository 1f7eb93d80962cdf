"""The optimizers of a recipe, and the schedule of their learning rate."""

import inspect
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lineup.params import Train


def make_optimizers(model: nn.Module, recipe: Train) -> list[Optimizer]:
    """Return the optimizers, fused where torch has them; weight decay spares vectors.

    Those are biases and norms. Muon takes all matrices but the last layer's; AdamW takes the rest.
    A group's `lr_factor` multiplies the schedule's learning rate.
    """
    backbone, head = backbone_and_head(model)
    lr, decay, momentum = recipe.learning_rate, recipe.weight_decay, recipe.momentum
    nesterov = recipe.nesterov and momentum > 0
    optimizers: list[Optimizer] = []
    factor = recipe.backbone_lr_factor
    hidden = [parameter for parameter in backbone if parameter.ndim > 1]
    if recipe.optimizer == "muon" and hidden:
        groups = [{"params": hidden, "lr_factor": factor}]
        optimizers.append(_without_compiler(Muon)(groups, lr, decay, momentum, nesterov))
        backbone = [parameter for parameter in backbone if parameter.ndim <= 1]
    groups = [*_groups(backbone, decay, factor), *_groups(head, decay, 1.0)]
    fused = head[0].device.type in ("cpu", "cuda", "mps")
    if recipe.optimizer == "sgd":
        sgd = _without_compiler(torch.optim.SGD)
        optimizers.append(sgd(groups, lr, momentum, nesterov=nesterov, fused=fused))
    else:
        adam = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
        optimizers.append(_without_compiler(adam)(groups, lr, fused=fused))
    if head[0].device.type == "cuda":
        _make_capturable(optimizers, head[0].device)
    return optimizers


def _without_compiler(kind: type[Optimizer]) -> type[Optimizer]:
    """Return an optimizer without torch's wrappers, which import its compiler: a second or two.

    It can't be pickled; checkpoints hold its state.
    """
    names = ("add_param_group", "load_state_dict", "state_dict", "step", "zero_grad")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), methods | {"step": torch.no_grad()(methods["step"])})


def _make_capturable(optimizers: list[Optimizer], device: torch.device) -> None:
    """Let a CUDA graph record the steps: what changes between them is a tensor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"], device=device)
            group["capturable"] = True


def set_learning_rate(optimizers: list[Optimizer], learning_rate: float) -> None:
    """Give every group its part of the learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            value = learning_rate * group["lr_factor"]
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(value)
            else:
                group["lr"] = value


def backbone_and_head(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters of all layers but the last, and those of the last one."""
    parameters = list(model.parameters())
    matrices = [index for index, parameter in enumerate(parameters) if parameter.ndim > 1]
    return parameters[: matrices[-1]], parameters[matrices[-1] :]


def _groups(parameters: list[Tensor], decay: float, lr_factor: float) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    return [
        {"params": some, "weight_decay": own, "lr_factor": lr_factor}
        for some, own in ((matrices, decay), (vectors, 0.0))
        if some
    ]


class Muon(Optimizer):
    """Momentum whose direction is made orthogonal (Jordan et al., 2024), for matrices and more.

    0.2 √(longer side) gives a step the size of AdamW's, so that both share a learning rate (Liu et
    al., 2025). torch's own takes no convolutions, and computes in bfloat16, slow on most CPUs.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float,
        momentum: float,
        nesterov: bool,
    ) -> None:
        """Take the settings of torch.optim.Muon."""
        defaults = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"momentum": momentum, "nesterov": nesterov})

    @torch.no_grad()
    def step(self) -> None:
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(weight.grad)
        direction = weight.grad + group["momentum"] * buffer if group["nesterov"] else buffer
        matrix = direction.flatten(1)  # a convolution has a row per output channel
        size = 0.2 * max(matrix.shape) ** 0.5
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.sub_(newton_schulz(matrix).view_as(weight) * (group["lr"] * size))


def newton_schulz(matrix: Tensor) -> Tensor:
    """Return float32 (M, N) with the singular vectors of `matrix` and singular values of about 1.

    Five Newton-Schulz steps with the coefficients of Jordan et al. (2024) bring values that are not
    much smaller than the largest between 0.7 and 1.2; what is nearly zero grows, and stays smaller.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(5):
        gram = x @ x.T
        polynomial = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.addmm(x, polynomial, x, beta=3.4445)
    return x.T if is_tall else x


def learning_rate_at(recipe: Train, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a global step, a pure function of it.

    one_cycle rises from a 25th along a cosine and falls to nothing along another (Smith and Topin,
    2017).
    """
    total = recipe.epochs * steps_per_epoch
    if recipe.schedule == "step":
        drops = step // (recipe.step_epochs * steps_per_epoch)
        return recipe.learning_rate * recipe.step_factor**drops
    if recipe.schedule == "cosine":
        return recipe.learning_rate * _half_cosine(step / total)
    if recipe.schedule == "one_cycle":
        peak = max(1, round(recipe.warmup * total))
        if step < peak:
            return recipe.learning_rate * (1 - (1 - 1 / 25) * _half_cosine(step / peak))
        return recipe.learning_rate * _half_cosine((step - peak) / (total - peak))
    return recipe.learning_rate


def _half_cosine(progress: float) -> float:
    """Return half a cosine: 1 at progress 0, 0 at progress 1."""
    return (1 + math.cos(math.pi * progress)) / 2
