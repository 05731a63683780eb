"""Top-1, Top-5 and loss, during training and on whole parts of the data."""

import math
from collections.abc import Sequence
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
    """Top-1 in percent, mean loss, number of images, how many of them were told right, and Top-5 in percent.

    ``top5`` is None where it was not counted, and for networks of five classes or fewer.
    """

    top1: float
    loss: float
    images: int
    correct: int
    top5: float | None = None


def best_of(results: Sequence[Result]) -> int:
    """Return the index of the result with the least loss; one that is not a number loses."""
    losses = [math.inf if math.isnan(result.loss) else result.loss for result in results]
    return losses.index(min(losses))


class Score:
    """Running sums of loss and correct answers of this rank; those of all ranks are part of a checkpoint.

    Args:
        fabric: the ranks; None for one.
        top5: count Top-5, too; needs more than five classes.
    """

    def __init__(self, fabric: "Fabric | None" = None, *, top5: bool = False) -> None:
        self.fabric = None if fabric is None or fabric.world_size == 1 else fabric
        self.top5 = top5
        self.sums = self._zeros()

    def _zeros(self) -> Tensor:
        """Return the sums of no image: [loss, correct, images], and with Top-5 those among the five."""
        return torch.zeros(4 if self.top5 else 3, dtype=torch.float64)

    def add(self, logits: Tensor, target_N: Tensor, loss: Tensor) -> None:  # noqa: N803
        """Count a batch: logits [N, classes], targets [N], mean loss."""
        found = [loss.float(), (logits.argmax(1) == target_N).sum().float()]
        if self.top5:
            found.append((logits.topk(5).indices == target_N[:, None]).sum().float())
        mean, correct, *among_five = torch.stack(found).tolist()  # brought from the device in one piece
        images = len(target_N)
        self.sums += torch.tensor([mean * images, correct, images, *among_five], dtype=torch.float64)

    def _total(self) -> Tensor:
        """Return the sums over all ranks."""
        if self.fabric is None:
            return self.sums.clone()
        total = self.sums.to(self.fabric.device, copy=True)
        torch.distributed.all_reduce(total)
        return total.cpu()

    def take(self) -> Result:
        """Return the result over all ranks, and begin anew."""
        loss, correct, images, *among_five = self._total().tolist()
        self.sums = self._zeros()
        counted = max(images, 1.0)
        top5 = 100 * among_five[0] / counted if among_five else None
        return Result(100 * correct / counted, loss / counted, int(images), int(correct), top5)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sums over all ranks; all of them have to ask."""
        return {"sums": self._total()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the sums back; one rank holds those of all."""
        first = self.fabric is None or self.fabric.is_global_zero
        self.sums = state["sums"].clone() if first else self._zeros()


@torch.no_grad()
def evaluate(network: nn.Module, data: ImageData, part: str, fabric: "Fabric | None" = None) -> Result:
    """Return Top-1, Top-5 and cross-entropy of a network on a part of the data, in fp32, in evaluation mode.

    The ranks share each batch; every image is counted once.
    """
    training = network.training
    network.eval()
    device = next(network.parameters()).device
    score = Score(fabric, top5=data.num_classes > 5)
    rank, world_size = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
    for images, targets in data.evaluation_batches(part, rank=rank, world_size=world_size, device=device):
        x_NCHW = images.contiguous(memory_format=torch.channels_last)
        target_N = targets.to(device)
        logits = network(x_NCHW)
        score.add(logits, target_N, F.cross_entropy(logits, target_N))
    network.train(training)
    return score.take()
