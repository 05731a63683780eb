"""lightning-fabric behind one thin file: devices, precision, ranks."""

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from nasb.errors import UserError
from nasb.training.config import HardwareConfig
from nasb.training.memory import keep_freed_memory

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor


def create_fabric(config: HardwareConfig) -> "Fabric":
    """Return a launched Fabric.

    Raises:
        UserError: the accelerator or the number of devices is not there.
    """
    import torch
    from lightning_fabric import Fabric

    if config.keep_memory:
        keep_freed_memory()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            precision=config.precision,  # type: ignore[arg-type]
            # A sampled path leaves the other candidates without a gradient.
            strategy="ddp_find_unused_parameters_true" if config.devices > 1 else "auto",
        )
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"hardware: {config.accelerator} with {config.devices} devices cannot be used: {reason}"
        ) from None
    fabric.launch()
    return fabric


def mean_over_ranks(fabric: "Fabric") -> "Callable[[Tensor], Tensor] | None":
    """Return what averages a gradient over the ranks; None if there is one rank."""
    if fabric.world_size == 1:
        return None

    def reduce(gradient: "Tensor") -> "Tensor":
        reduced = fabric.all_reduce(gradient, reduce_op="mean")
        return cast("Tensor", reduced)

    return reduce
