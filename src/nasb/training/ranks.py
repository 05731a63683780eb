"""What the processes ("ranks") of one run tell each other, so that after each step all of them hold the same state.

One step trains on one batch of `data.batch_size` images, whoever computes which part of it. Each rank takes its share,
in one or more pieces; a batch norm sees one piece at a time (unless it is a SyncBatchNorm). The gradient is the mean
over all images of the batch, the running statistics of a batch norm the mean over the ranks. Since the state is the
same everywhere, the checkpoint of rank 0 is that of the run, and any number of ranks can go on from it.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nasb.errors import UserError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Batch = tuple[Tensor, Tensor]


class LostRankError(UserError):
    """Another process of the run has ended, or cannot be reached."""


@contextmanager
def batch_norms_told(where: str) -> Iterator[None]:
    """Say in one line what a batch norm in training mode refuses; `where` leads it."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"{where}: a batch norm sees one value per channel, a batch of 1 with maps of 1x1; raise data.batch_size "
            "or data.image_size, or give more images (in a search: more to each part, by search.alpha_share)"
        ) from None


def pieces(batch: Batch, count: int, images: int, ranks: int) -> Iterator[tuple[Batch, float]]:
    """Cut this rank's share of a batch into pieces.

    Args:
        batch: (images [N, C, H, W], classes [N]) of this rank.
        count: pieces to cut; empty ones are left out.
        images: in the whole batch, of all ranks.
        ranks: number of ranks.

    Returns:
        Iterator of ((images, classes), weight). The mean over the ranks of the sum over the pieces of weight * (a
        piece's mean loss) is the mean loss over all images of the batch, also where shares differ by an image.
    """
    x_NCHW, target_N = batch
    size = len(target_N)
    for piece in range(count):
        first, last = piece * size // count, (piece + 1) * size // count
        if first < last:
            yield (x_NCHW[first:last], target_N[first:last]), (last - first) * ranks / images


@torch.no_grad()
def average_(tensors: Iterable[Tensor], fabric: "Fabric") -> None:
    """Replace each tensor by its mean over the ranks, all of them in one message."""

    def mean_(flat: Tensor) -> None:
        torch.distributed.all_reduce(flat)
        flat /= fabric.world_size

    _in_one_message(tensors, fabric, mean_)


@torch.no_grad()
def as_on_first_(tensors: Iterable[Tensor], fabric: "Fabric") -> None:
    """Replace each tensor by rank 0's, all of them in one message: CPUs of two kinds may round differently."""
    _in_one_message(tensors, fabric, partial(torch.distributed.broadcast, src=0))


def _in_one_message(tensors: Iterable[Tensor], fabric: "Fabric", send: Callable[[Tensor], object]) -> None:
    kept = list(tensors)
    if fabric.world_size == 1 or not kept:
        return
    flat = torch.cat([tensor.detach().reshape(-1).to(fabric.device, torch.float32) for tensor in kept])
    send(flat)
    for tensor, value in zip(kept, torch.split(flat, [tensor.numel() for tensor in kept]), strict=True):
        tensor.copy_(value.view_as(tensor))


def average_gradients(parameters: Iterable[nn.Parameter], fabric: "Fabric") -> None:
    """Average the gradients that are there: where all ranks take the same path, they are the same parameters' ones."""
    average_((parameter.grad for parameter in parameters if parameter.grad is not None), fabric)


def running_statistics(network: nn.Module) -> list[Tensor]:
    """Return the running statistics of all batch norms that see the images of their own rank alone."""
    statistics = []
    for module in network.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            statistics += [value for value in (module.running_mean, module.running_var) if value is not None]
    return statistics


@torch.no_grad()
def begin_equal(network: nn.Module, fabric: "Fabric") -> None:
    """Give every rank the parameters and buffers of rank 0."""
    if fabric.world_size > 1:
        for tensor in (*network.parameters(), *network.buffers()):
            torch.distributed.broadcast(tensor, src=0)


def share_statistics(network: nn.Module) -> None:
    """Let the batch norms of a network take their statistics over the images of all ranks, by torch's SyncBatchNorm."""
    nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]


@contextmanager
def own_statistics(network: nn.Module) -> Iterator[None]:
    """Let each SyncBatchNorm see its own rank's images alone: where ranks compute different things, none may wait."""
    shared = [module for module in network.modules() if isinstance(module, nn.SyncBatchNorm)]
    for module in shared:
        module.forward = partial(_BatchNorm.forward, module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in shared:
            del module.forward


def any_rank(fabric: "Fabric", *flags: bool) -> tuple[bool, ...]:
    """Return for each flag whether it is set on any rank: all ranks have to stop, and to save, at the same step."""
    if fabric.world_size == 1:
        return flags
    found = torch.tensor([float(flag) for flag in flags], device=fabric.device)
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    return tuple(value > 0 for value in found.tolist())


def is_lost_rank(error: BaseException, fabric: "Fabric") -> bool:
    """Return whether an error says that another rank has gone: gloo raises RuntimeError, NCCL a DistError."""
    if fabric.world_size == 1 or not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or "gloo" in text or "connection" in text
