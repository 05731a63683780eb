"""Prints what Larq Zoo's own summary counts of its networks, as JSON, in the environment of requirements-larq.txt.

    pip install --target typeguard4 'typeguard>=4'    # zookeeper 1.4 needs it, others in that environment an older one
    export PYTHONPATH=typeguard4
    build/peers/larq/bin/python benchmarks/peers/larq_counts.py > tests/golden/larq-zoo-counts.json

The oracle of tests/networks/rivals/test_rivals_larq_zoo.py. Of each network: numbers stored by bits of each (of a batch
norm two for each channel, as folded) and MACs by the bits of the wider operand. Larq Zoo's XNORNet does not run with
this version of larq.
"""

import json
import sys

import larq
import larq_zoo
from larq.models import ModelProfile

NETWORKS = {
    **{"QuickNetSmall": larq_zoo.sota.QuickNetSmall, "QuickNet": larq_zoo.sota.QuickNet},
    **{"QuickNetLarge": larq_zoo.sota.QuickNetLarge, "BiRealNet": larq_zoo.literature.BiRealNet},
    "BinaryAlexNet": larq_zoo.literature.BinaryAlexNet,
}


def counted(name: str) -> dict[str, object]:
    """Return the counts of one network for images of 224x224."""
    model = NETWORKS[name](weights=None)
    profile = ModelProfile(model)
    bits = profile.unique_param_bidtwidths
    return {
        "numbers": {str(width): profile.weight_count(width) for width in bits},
        "macs": {str(width): profile.op_count("mac", width) for width in profile.unique_op_precisions},
        "memory_bits": profile.memory,
    }


def main() -> None:
    """Print them."""
    versions = {"larq": larq.__version__, "larq-zoo": larq_zoo.__version__}
    record = {"command": "benchmarks/peers/larq_counts.py", "versions": versions}
    print(json.dumps(record | {"networks": {name: counted(name) for name in NETWORKS}}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
