"""Latency tables without an engine: made-up milliseconds for every candidate of a backbone."""

import json

from nasb.cost.latency import SHAPES, TABLE, VERSION, LatencyTable, shapes_of

NETWORK = {"host": "made up"}
DEVICE = {"cpu": "abacus", "kernel": "beads", "threads": 1, "engine": "0", "date": "2026-01-01"}


def made_up_ms(entry):
    """Milliseconds that differ between operations, shapes and kinds; free operations cost, too."""
    size = entry["in_height"] * entry["in_width"] * entry["out_channels"] / entry["stride"] ** 2
    work = {"identity": 1.0, "avg_pool": 3.0, "max_pool": 3.5}.get(entry["kind"], entry["kernel_size"] ** 2)
    return 1e-3 + 2e-4 * size * work


def table_values(backbone, operations=None, network=NETWORK, **changes):
    """Return the JSON object of a table for a backbone."""
    shapes = shapes_of(backbone, operations)
    values = {
        "format": TABLE,
        "version": VERSION,
        "network": network,
        "device": DEVICE,
        "repeats": 1,
        "backbone": {"ms": 0.5, "median": 0.5, "upper_quartile": 0.5},
        "context": {"paid": 1.25, "free": 1.5},
        "entries": [{**entry, "ms": made_up_ms(entry)} for entry in shapes.entries],
    }
    assert SHAPES != TABLE
    return values | changes


def write_table(path, values):
    path.write_text(json.dumps(values))
    return LatencyTable.load(path)
