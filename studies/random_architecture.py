"""Draw a random architecture that uses a budget: random log-probabilities, derived like alpha's.

    python studies/random_architecture.py FLAGS OF NASB SEARCH --out FOLDER       # writes FOLDER/architecture.json

With --search.race_epochs, --search.derive_candidates are drawn, and the best of a race of these is written: what a
search ends with, without the search. The first drawn is the one that is written without a race.
"""

import sys

import torch

from nasb.cli.parsing import parse_run
from nasb.training.evaluation import best_of
from nasb.training.pipeline import Pipeline


def main() -> None:
    """Write the architecture."""
    config, out = parse_run("search", __doc__ or "", sys.argv[1:])
    with Pipeline(config, out) as pipeline:
        searcher, generator = pipeline.search_stage().searcher, torch.Generator().manual_seed(config.seed)
        best = searcher.draw(generator)
        if config.search.race_epochs:
            drawn = [best, *(searcher.draw(generator) for _ in range(config.search.derive_candidates - 1))]
            best = drawn[best_of(pipeline.race().results(drawn))]
        pipeline.networks.architecture_of(best).save(out / "architecture.json")


if __name__ == "__main__":
    main()
