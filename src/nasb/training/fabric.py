"""lightning-fabric behind one thin file: devices, precision, ranks."""

import logging
import os
import warnings
from typing import TYPE_CHECKING, Any

from nasb.errors import UserError
from nasb.training.config import HardwareConfig
from nasb.training.memory import keep_freed_memory

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.precision import Precision
    from lightning_fabric.strategies.ddp import DDPStrategy


def create_fabric(config: HardwareConfig) -> "Fabric":
    """Return a launched Fabric.

    Raises:
        UserError: the accelerator or the number of devices is not there; or this is one process, and the config asks
            for several.
    """
    import torch
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if config.keep_memory:
        keep_freed_memory()
    devices, nodes = launched_ranks(config)
    several = devices * nodes > 1
    try:
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=_data_parallel() if several else "auto",
            # Named, so that a batch system's variables do not make one process into one of many.
            plugins=[*_precision(config), TorchElasticEnvironment() if several else LightningEnvironment()],
        )
        fabric.launch()
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"hardware: {config.accelerator} with {config.devices} devices cannot be used: {reason}"
        ) from None
    if config.sync_batch_norm and fabric.device.type != "cuda":
        raise UserError(
            f"hardware.sync_batch_norm needs CUDA devices, and this is {fabric.device.type}: leave it out, or set "
            "hardware.accelerator to cuda"
        )
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    elif several and fabric.device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // devices))
    return fabric


def begin_scaling(fabric: "Fabric") -> None:
    """Give a stage that begins a fresh gradient scaler, where fp16 has one: the last stage's scale is not its own."""
    import torch
    from lightning_fabric.plugins.precision.amp import MixedPrecision

    precision = fabric.strategy.precision
    if isinstance(precision, MixedPrecision) and precision.scaler is not None:
        precision.scaler = torch.amp.GradScaler(device=precision.device)


def launched_ranks(config: HardwareConfig) -> tuple[int, int]:
    """Return (processes on this machine, machines): what torchrun has started, else one process.

    Raises:
        UserError: the config asks for another number.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        if config.devices * config.nodes > 1:
            raise UserError(
                f"hardware.devices is {config.devices} and hardware.nodes is {config.nodes}, but this is one process: "
                "start it with `nasb run` (or search, pretrain, finetune) or with torchrun"
            )
        return 1, 1
    devices = int(os.environ["LOCAL_WORLD_SIZE"])
    nodes = int(os.environ["WORLD_SIZE"]) // devices
    asked = config.devices, config.nodes
    if asked not in ((1, 1), (devices, nodes)):
        raise UserError(
            f"torchrun has started {devices} processes on {nodes} machines, but hardware.devices is {asked[0]} and "
            f"hardware.nodes is {asked[1]}; leave them out, or make them equal"
        )
    return devices, nodes


def _data_parallel() -> "DDPStrategy":
    """Return DDP; nasb.training.ranks averages the batch norms, so that it has no buffers to send."""
    from inspect import signature

    from lightning_fabric.strategies.ddp import DDPStrategy
    from torch.nn.parallel import DistributedDataParallel

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    # The strides of a 1x1 convolution's gradient are ambiguous, and equal none the less.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    renamed = "forward_sync_buffers" in signature(DistributedDataParallel.__init__).parameters  # torch >= 2.14
    options: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DDPStrategy(gradient_as_bucket_view=True, **options)


def _precision(config: HardwareConfig) -> "list[Precision]":
    """Return the precision as a plugin: by name alone, Fabric would replace fp16 by bf16 on a CPU."""
    from lightning_fabric.plugins.precision.amp import MixedPrecision

    if config.precision == "32-true":
        return []
    import torch

    cuda = config.accelerator == "cuda" or (config.accelerator == "auto" and torch.cuda.is_available())
    mps = not cuda and config.accelerator in ("auto", "mps") and torch.backends.mps.is_available()
    return [MixedPrecision(config.precision, "cuda" if cuda else "mps" if mps else "cpu")]  # type: ignore[arg-type]
