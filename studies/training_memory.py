"""What training at 224x224 keeps in memory: weights, and what the backward pass needs of each image.

    python studies/training_memory.py [--depths 18 34 50] [--largest 7e8] > results/training-memory.csv

Counted, not read from a meter: the bytes of all tensors that autograd saves in a forward pass (each storage once,
parameters left out), in fp32, as the difference between 2 images and 1. Devices add work space of their libraries and
what their allocators keep. `search` is a step of weights on one sampled path, with its alpha where it starts; where
the searchable network has more parameters than --largest, only these are counted, without building it.
"""

import argparse
import csv
import sys
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasb.binary import set_phase
from nasb.cells.cell import Cell
from nasb.cells.config import CellConfig
from nasb.cells.searchable import searchable_edges
from nasb.cli.parsing import parse_run
from nasb.cost import count
from nasb.networks import create_host
from nasb.networks.convert import convert
from nasb.search.searcher import Searcher
from nasb.training.config import RunConfig

FIELDS = ("recipe", "bases", "stage", "parameters", "state_bytes", "activation_bytes_per_image", "torch", "command")
SHAPE = (3, 224, 224)


def saved_bytes(network: nn.Module, images: int) -> int:
    """Return the bytes that autograd keeps for the backward pass of that many images."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    seen: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    generator = torch.Generator().manual_seed(0)
    x_NCHW = torch.randn(images, *SHAPE, generator=generator).contiguous(memory_format=torch.channels_last)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(network(x_NCHW), torch.zeros(images, dtype=torch.long))
    found = sum(t.untyped_storage().nbytes() for pointer, t in seen.items() if pointer not in own)
    del loss
    return found


def parameters_of(network: nn.Module) -> int:
    """Return the number of a network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def searchable_parameters(hand_made: nn.Module, config: RunConfig) -> int:
    """Return the number of parameters of the searchable twin of a hand-made network, without memory for them."""
    found = parameters_of(hand_made)
    with torch.device("meta"):
        for module in hand_made.modules():
            if isinstance(module, Cell):
                edges = searchable_edges(module.shape, config.cell, config.search.operations)
                found += sum(map(parameters_of, edges.values()))
                if config.cell.learned_threshold or config.cell.bases > 1:  # one threshold a channel, at inside nodes
                    found += len({key[0] for key in edges if key[2] and key[0]}) * module.shape.out_channels
    return found


def networks(config: RunConfig, largest: float) -> Iterator[tuple[str, int, nn.Module | None]]:
    """Yield (stage, parameters, network or None) as the stages of a recipe have them.

    In place of the derived network stands the hand-made one.
    """
    torch.manual_seed(0)
    host = create_host(config.network.host)
    cell: CellConfig = config.cell
    hand_made = convert(host, SHAPE, cell=cell)
    if config.pretrain.epochs:
        set_phase(hand_made, weights="real", activations=config.pretrain.activations)
        yield "pretrain", parameters_of(hand_made), hand_made
    set_phase(hand_made, weights="binary", activations="sign")
    yield "finetune", parameters_of(hand_made), hand_made
    searchable = searchable_parameters(hand_made, config)
    if searchable > largest:
        yield "search", searchable, None
        return
    ops = count(hand_made, SHAPE).ops
    del hand_made
    network = convert(host, SHAPE, cell=cell, search=True, operations=config.search.operations)
    set_phase(network, weights=config.search.weights, activations="sign")
    Searcher(network, ops, config.search).select_for_weights(torch.Generator().manual_seed(0), warmup=True)
    if parameters_of(network) != searchable:
        raise RuntimeError(f"{searchable} parameters were counted, but {parameters_of(network)} are there")
    yield "search", searchable, network


def main() -> None:
    """Print CSV rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[18, 34, 50])
    parser.add_argument("--largest", type=float, default=7e8)
    arguments = parser.parse_args()
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(FIELDS)
    for recipe in (f"imagenet-resnet{depth}{suffix}" for depth in arguments.depths for suffix in ("", "-k5")):
        config, _ = parse_run("run", "", ["--config", recipe, "--data.root", ".", "--out", "."])
        for stage, parameters, network in networks(config, arguments.largest):
            per_image: int | str = ""
            if network is not None:
                network.train().to(memory_format=torch.channels_last)
                per_image = saved_bytes(network, 2) - saved_bytes(network, 1)
            row = (recipe, config.cell.bases, stage, parameters, 16 * parameters, per_image)
            writer.writerow([*row, torch.__version__, " ".join(sys.argv)])
            sys.stdout.flush()


if __name__ == "__main__":
    main()
