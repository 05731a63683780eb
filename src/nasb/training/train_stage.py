"""Pretrain and finetune: the two stages that train the weights of a derived network."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasb.binary import after_step
from nasb.data import ImageData
from nasb.errors import UserError
from nasb.seeding import derive_seed
from nasb.training.config import StageConfig
from nasb.training.evaluation import Score, evaluate
from nasb.training.fabric import begin_scaling
from nasb.training.loop import Stage
from nasb.training.optimization import (
    anneal,
    create_optimizer,
    distillation_loss,
    learning_rate,
    set_learning_rate,
)
from nasb.training.ranks import average_, begin_equal, pieces, running_statistics, share_statistics

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class TrainStage(Stage):
    """Train a network by cross-entropy and, where there is a teacher, its soft labels.

    Args:
        name: pretrain, finetune or race.
        network: its binary layers stand in the phase of the stage.
        data: images.
        config: options of the stage.
        teacher: frozen real network whose soft labels are learned, or None.
        fabric: devices and precision.
        seed: of the run.
        compiled: run the forward pass through torch.compile.
        accumulate: pieces in which a rank computes its share of a batch.
        sync_batch_norm: share the statistics of batch norms among the ranks.
        part: of the data, whose images are trained on.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        data: ImageData,
        config: StageConfig,
        teacher: nn.Module | None,
        fabric: "Fabric",
        *,
        seed: int,
        compiled: bool = False,
        accumulate: int = 1,
        sync_batch_norm: bool = False,
        part: str = "train",
    ) -> None:
        self.name, self.network, self.data, self.config, self.fabric = name, network, data, config, fabric
        self.seed, self.epochs, self.steps = derive_seed(seed, name), config.epochs, data.steps_per_epoch(part)
        self.part, self.images, self.accumulate = part, data.images_per_step(part), accumulate
        if sync_batch_norm:
            share_statistics(network)
        network.to(memory_format=torch.channels_last)
        fabric.to_device(network)
        begin_equal(network, fabric)
        self.optimizer = create_optimizer(network, config)
        forward = cast(nn.Module, torch.compile(network)) if compiled else network
        begin_scaling(fabric)
        self.model, self.fabric_optimizer = fabric.setup(forward, self.optimizer)
        self.statistics = running_statistics(network)
        self.averaged = _moving_average(network, config.ema)
        self.teacher = teacher
        if teacher is not None:
            teacher.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.score = Score(fabric)

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """Yield augmented training batches."""
        yield from self.data.train_batches(
            self.part,
            seed=self.seed,
            epoch=epoch,
            start_step=start,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
            device=self.fabric.device,
        )

    def begin_epoch(self, epoch: int) -> None:
        """Set the phase's sharpness and the training mode."""
        anneal(self.network, epoch, self.epochs)
        self.network.train()

    def step(self, epoch: int, step: int, batch: tuple[Tensor, Tensor]) -> None:
        """Make one step of the weights."""
        set_learning_rate(self.optimizer, learning_rate(self.config, epoch * self.steps + step, self.steps))
        self.fabric_optimizer.zero_grad()
        cut = list(pieces(batch, self.accumulate, self.images, self.fabric.world_size))
        for number, ((images, target_N), weight) in enumerate(cut, 1):
            x_NCHW = images.contiguous(memory_format=torch.channels_last)
            with self.fabric.no_backward_sync(self.model, enabled=number < len(cut)):
                logits = self.model(x_NCHW)
                loss = self._loss(logits, x_NCHW, target_N)
                self.fabric.backward(loss * weight)
            self.score.add(logits.detach(), target_N, loss.detach())
        self._check_gradients(epoch, step)
        if self.config.clip_norm:
            self.fabric.clip_gradients(
                self.model, self.fabric_optimizer, max_norm=self.config.clip_norm, error_if_nonfinite=False
            )
        self.fabric_optimizer.step()
        after_step(self.network)
        average_(self.statistics, self.fabric)
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)

    def _check_gradients(self, epoch: int, step: int) -> None:
        """Refuse parameters without a gradient where ranks wait for it: DDP would average those beside it no more."""
        if self.fabric.world_size == 1 or (epoch, step) != (0, 0):
            return
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad and parameter.grad is None:
                raise UserError(
                    f"{self.name}: {name} takes no part in the network's output, which several processes cannot train; "
                    "remove it from the network, or use one process"
                )

    def _loss(self, logits: Tensor, x_NCHW: Tensor, target_N: Tensor) -> Tensor:  # noqa: N803
        loss = F.cross_entropy(logits, target_N, label_smoothing=self.config.label_smoothing)
        if self.teacher is None:
            return loss
        with torch.no_grad(), self.fabric.autocast():
            teacher_logits = self.teacher(x_NCHW)
        soft = distillation_loss(logits, teacher_logits, self.config.distillation_temperature)
        share = self.config.distillation_weight
        return share * soft + (1 - share) * loss

    def trained(self) -> nn.Module:
        """Return the network that is kept: the moving average where there is one."""
        if self.averaged is None:
            return self.network
        module: nn.Module = self.averaged.module
        return module

    def end_epoch(self, epoch: int) -> tuple[dict[str, Any], str | None]:
        """Return training loss and Top-1, and those of the validation images."""
        train = self.score.take()
        metrics: dict[str, Any] = {"train_loss": train.loss, "train_top1": train.top1}
        if self.data.size("validation"):
            validation = evaluate(self.trained(), self.data, "validation", self.fabric)
            metrics |= {"validation_loss": validation.loss, "validation_top1": validation.top1}
        broken = train.loss != train.loss
        return metrics, "the training loss is not a number: lower the learning rate" if broken else None

    def state_dict(self) -> dict[str, Any]:
        """Return network, optimizer, moving average, gradient scaler and running sums."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "score": self.score.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a checkpoint's state back."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        if state["scaler"]:  # it is empty where the precision needs none, which may have changed since
            self.fabric.strategy.precision.load_state_dict(state["scaler"])
        self.score.load_state_dict(state["score"])


def _moving_average(network: nn.Module, decay: float) -> "torch.optim.swa_utils.AveragedModel | None":
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    if not decay:
        return None
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]
