"""Draw a random architecture that uses a budget: random log-probabilities, derived like alpha's.

python studies/random_architecture.py --network.host resnet20 --budget 1.10 --seed 0 --shape 3,32,32 --out FILE
"""

import argparse
from pathlib import Path

import torch
import yaml

from nasb.cells.architecture import Architecture
from nasb.cells.config import CellConfig
from nasb.cost import count
from nasb.networks import create_host
from nasb.networks.convert import convert
from nasb.search import SearchConfig
from nasb.search.searcher import Searcher


def main() -> None:
    """Write the architecture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network.host", dest="host", required=True)
    parser.add_argument("--network.options", dest="options", type=yaml.safe_load, default={})
    parser.add_argument("--cell", action="append", default=[], metavar="KEY=VALUE", help="an option of the cells")
    parser.add_argument("--shape", required=True, help="channels,height,width")
    parser.add_argument("--num_classes", type=int, default=10)
    parser.add_argument("--budget", type=float, required=True, help="ratio of OPs to the backbone alone")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    channels, height, width = (int(number) for number in given.shape.split(","))
    shape = (channels, height, width)
    cell = CellConfig(**{key: yaml.safe_load(value) for key, value in (text.split("=", 1) for text in given.cell)})
    host = create_host(given.host, num_classes=given.num_classes, in_channels=channels, options=given.options)
    backbone = count(convert(host, shape, cell=cell), shape).ops
    network = convert(host, shape, cell=cell, search=True)
    searcher = Searcher(network, backbone, SearchConfig(budget=given.budget))
    cells = searcher.draw(torch.Generator().manual_seed(given.seed))
    Architecture(
        host=given.host, options=given.options, num_classes=given.num_classes, input_shape=shape, cell=cell, cells=cells
    ).save(given.out)


if __name__ == "__main__":
    main()
