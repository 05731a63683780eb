"""Draw a random architecture that uses a budget: random log-probabilities, derived like alpha's.

python studies/random_architecture.py FLAGS OF NASB SEARCH --out FOLDER       # writes FOLDER/architecture.json
"""

import sys

import torch

from nasb.cells.architecture import Architecture
from nasb.cli.parsing import parse_run
from nasb.training.pipeline import Pipeline


def main() -> None:
    """Write the architecture."""
    config, out = parse_run("search", __doc__ or "", sys.argv[1:])
    with Pipeline(config, out) as pipeline:
        searcher = pipeline.search_stage().searcher
        Architecture(
            host=config.network.name,
            options=config.network.options,
            num_classes=pipeline.data.num_classes,
            input_shape=pipeline.data.input_shape,
            cell=config.cell,
            cells=searcher.draw(torch.Generator().manual_seed(config.seed)),
        ).save(out / "architecture.json")


if __name__ == "__main__":
    main()
