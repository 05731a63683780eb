"""Top-1 and loss, during training and on whole parts of the data."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasb.data import ImageData

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Result:
    """Top-1 in percent, mean loss, number of images."""

    top1: float
    loss: float
    images: int


class Score:
    """Running sums of loss and correct answers; they are part of a checkpoint."""

    def __init__(self) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64)

    def add(self, logits: Tensor, target_N: Tensor, loss: Tensor) -> None:  # noqa: N803
        """Count a batch: logits [N, classes], targets [N], mean loss."""
        correct = (logits.argmax(1) == target_N).sum()
        images = len(target_N)
        self.sums += torch.stack([loss.double() * images, correct.double(), torch.tensor(float(images))]).cpu()

    def take(self, fabric: "Fabric | None" = None) -> Result:
        """Return the result over all ranks, and begin anew."""
        sums = self.sums
        if fabric is not None and fabric.world_size > 1:
            reduced = fabric.all_reduce(sums, reduce_op="sum")
            assert isinstance(reduced, Tensor)
            sums = reduced.cpu()
        loss, correct, images = sums.tolist()
        self.sums = torch.zeros(3, dtype=torch.float64)
        images = max(images, 1.0)
        return Result(100 * correct / images, loss / images, int(images))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sums."""
        return {"sums": self.sums.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the sums back."""
        self.sums = state["sums"].clone()


@torch.no_grad()
def evaluate(network: nn.Module, data: ImageData, part: str, fabric: "Fabric | None" = None) -> Result:
    """Return Top-1 (percent) and cross-entropy of a network on a part of the data, in fp32, in evaluation mode."""
    training = network.training
    network.eval()
    device = next(network.parameters()).device
    score = Score()
    rank, world_size = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
    for images, targets in data.evaluation_batches(part, rank=rank, world_size=world_size):
        x_NCHW = images.to(device).contiguous(memory_format=torch.channels_last)
        target_N = targets.to(device)
        logits = network(x_NCHW)
        score.add(logits, target_N, F.cross_entropy(logits, target_N))
    network.train(training)
    return score.take(fabric)
