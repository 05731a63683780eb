"""Optimizers, learning-rate schedules, distillation: what a training step is made of."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasb.binary import BinaryConv2d, BinaryLinear, set_sharpness
from nasb.errors import UserError
from nasb.files import load_safetensors
from nasb.training.config import StageConfig

ANNEALING = (0.1, 10.0)
"""Sharpness of the tanh_annealed surrogate at the first and at the last epoch (IR-Net, arXiv 1909.10788)."""


def anneal(network: nn.Module, epoch: int, epochs: int) -> None:
    """Set the sharpness of a stage's epoch, counted from 0."""
    first, last = ANNEALING
    set_sharpness(network, first * (last / first) ** (epoch / max(epochs - 1, 1)))


def create_optimizer(network: nn.Module, config: StageConfig) -> torch.optim.Optimizer:
    """Return the optimizer of a stage.

    Weight decay is for the real weights of convolutions and linear layers. A binary weight has no size to decay:
    decay would only make its sign flip more easily; batch norms, thresholds, slopes and biases are left alone as well.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    seen: set[int] = set()
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:  # tied weights
                continue
            seen.add(id(parameter))
            real = isinstance(module, nn.Conv2d | nn.Linear) and not isinstance(module, BinaryConv2d | BinaryLinear)
            (decayed if real and name == "weight" else kept).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0)
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def learning_rate(config: StageConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step, counted from 0 over the whole stage: warm-up, then the schedule."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    total = max(config.epochs * steps_per_epoch - warmup, 1)
    progress = min((step - warmup) / total, 1.0)
    if config.schedule == "steps":
        passed = sum(step >= round(milestone * steps_per_epoch) for milestone in config.milestones)
        return config.learning_rate * 0.1**passed
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "linear":
        return config.learning_rate * (1 - progress)
    return config.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return ``T^2 KL(softmax(teacher / T) || softmax(student / T))``, the mean over the batch.

    Args:
        logits: the student's, [N, classes].
        teacher_logits: the same of the teacher; of a lower precision where it computed in one.
        temperature: T.

    Source: Hinton et al., arXiv 1503.02531.
    """
    student = F.log_softmax(logits / temperature, 1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, 1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def create_teacher(config: StageConfig, num_classes: int, in_channels: int) -> nn.Module | None:
    """Return the teacher that a stage names, frozen; None where it names none.

    Raises:
        UserError: the network is unknown, or the weights are missing or of another network.
    """
    if config.teacher_weights is None:
        return None
    from nasb.networks import create_host

    teacher = create_host(
        config.teacher, num_classes=num_classes, in_channels=in_channels, options=config.teacher_options
    )
    load_weights(teacher, config.teacher_weights)
    return freeze(teacher)


def freeze(network: nn.Module) -> nn.Module:
    """Put a network into evaluation mode, without gradients, and return it."""
    return network.eval().requires_grad_(False)


def load_weights(network: nn.Module, path: str, *, partial: bool = False, hint: str = "") -> list[str]:
    """Load a safetensors file into a real network.

    Args:
        network: takes the weights.
        path: the file.
        partial: leave tensors that are missing or of another shape in the file as they are.
        hint: what to do where a tensor is of another shape; goes behind that message.

    Returns:
        The names that were left as they are.

    Raises:
        UserError: the file cannot be read, (unless `partial`) its tensors are not this network's, or none of them is.
    """
    tensors, _ = load_safetensors(path)
    own = network.state_dict()
    left: list[str] = []
    asked = {name: value for name, value in own.items() if not name.endswith("num_batches_tracked")}
    for name, value in asked.items():
        if name not in tensors or tensors[name].shape != value.shape:
            found = f"has shape {list(tensors[name].shape)}" if name in tensors else "is missing"
            if not partial:
                end = hint if name in tensors else ""
                raise UserError(
                    f"{path}: {name} {found}, this network's has {list(value.shape)}; is it of another network?{end}"
                )
            left.append(name)
    surplus = sorted(set(tensors) - set(own))
    if surplus and not partial:
        raise UserError(f"{path}: {surplus[0]} is not in this network; is it of another network?")
    if len(left) == len(asked):
        raise UserError(f"{path}: no tensor fits this network; is it of another network?")
    network.load_state_dict({n: t for n, t in tensors.items() if n in own and n not in left}, strict=False)
    return left
