"""What converting leaves of a trained CNN's function, before any training: Top-1 on the validation images.

    python studies/conversion.py --root DATA --init resnet20.safetensors > results/conversion-resnet20.csv

The converted network runs as pretraining begins (real weights, hard tanh), with branches started at several gains, with
the host's batch-norm statistics and with statistics estimated anew from 20 batches of training images.
"""

import argparse
import csv
import sys

import torch
from torch import nn

from nasb.binary import set_phase
from nasb.cells.config import CellConfig
from nasb.data import DataConfig, ImageData, open_data
from nasb.networks import create_host
from nasb.networks.convert import convert
from nasb.training.evaluation import evaluate
from nasb.training.optimization import load_weights

BATCHES = 20


@torch.no_grad()
def estimate_anew(network: nn.Module, data: ImageData) -> None:
    """Estimate the statistics of all batch norms from training images."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # a plain mean over the batches
    network.train()
    for _, (x_NCHW, _) in zip(range(BATCHES), data.train_batches("train", seed=0, epoch=0), strict=False):
        network(x_NCHW.contiguous(memory_format=torch.channels_last))


def main() -> None:
    """Print CSV rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder with train/ and test/")
    parser.add_argument("--init", required=True, help="weights of the host")
    parser.add_argument("--host", default="resnet20")
    arguments = parser.parse_args()
    data = open_data(DataConfig(name="folder", root=arguments.root, image_size=32), seed=0)
    host = create_host(arguments.host, num_classes=data.num_classes)
    load_weights(host, arguments.init)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("network", "branch_gain", "statistics", "validation_top1", "images"))

    def write(name: str, gain: str, statistics: str, network: nn.Module) -> None:
        result = evaluate(network.to(memory_format=torch.channels_last), data, "validation")
        writer.writerow((name, gain, statistics, f"{result.top1:.2f}", result.images))

    write(arguments.host, "", "its own", host)
    for gain in (1 / 3, 1.0):
        network = convert(host, data.input_shape, cell=CellConfig(branch_gain=gain))
        set_phase(network, weights="real", activations="hardtanh")
        write("converted", f"{gain:.2f}", "the host's", network)
        estimate_anew(network, data)
        write("converted", f"{gain:.2f}", "estimated anew", network)


if __name__ == "__main__":
    main()
