"""Architecture: liveness against an enumeration of ways, JSON there and back, and every error by name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasb.cells import Architecture, CellConfig, Edge
from nasb.cells.architecture import live_pairs, node_pairs, prune
from nasb.cells.config import ACTIVATIONS, SHORTCUTS, SURROGATES, THRESHOLDS, WEIGHT_SCALES
from nasb.cells.operations import NONE, OPERATIONS
from nasb.errors import UserError
from nasb.networks import create_network

ALL = settings(max_examples=80, deadline=None, derandomize=True)


def ways(pairs, node, output):
    """Every way from a node to the output, as a list of pairs."""
    if node == output:
        return [[]]
    return [[pair, *rest] for pair in pairs if pair[0] == node for rest in ways(pairs, pair[1], output)]


edge_sets = st.integers(0, 2).flatmap(
    lambda nodes: st.tuples(st.just(nodes), st.sets(st.sampled_from(node_pairs(nodes))))
)


@ALL
@given(edge_sets)
def test_live_pairs_are_those_on_some_way_from_input_to_output(case):
    nodes, pairs = case
    assert live_pairs(pairs, nodes) == {pair for way in ways(pairs, 0, nodes + 1) for pair in way}


def test_node_pairs_are_written_out():
    assert node_pairs(0) == [(0, 1)]
    assert node_pairs(1) == [(0, 1), (0, 2), (1, 2)]
    assert node_pairs(2) == [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]


@st.composite
def cells(draw, nodes, with_none=False):
    edges = []
    for source, target in node_pairs(nodes):
        for paid in (False, True):
            names = [name for name in OPERATIONS if OPERATIONS[name].paid == paid and name != NONE]
            if (source, target) == (0, nodes + 1):
                names = [name for name in names if name != "identity"]
            chosen = draw(st.sampled_from([NONE, *names]))
            if with_none or chosen != NONE:
                edges.append(Edge(source, target, chosen))
    return tuple(sorted(edges))


@ALL
@given(st.integers(0, 2).flatmap(lambda n: st.tuples(st.just(n), cells(n, with_none=True))))
def test_prune_drops_none_and_what_is_on_no_way_and_nothing_else(case):
    nodes, edges = case
    chosen = [edge for edge in edges if edge.operation != NONE]
    pairs = {(edge.source, edge.target) for edge in chosen}
    live = {pair for way in ways(pairs, 0, nodes + 1) for pair in way}
    kept = prune(edges, nodes)
    assert kept == tuple(sorted(edge for edge in chosen if (edge.source, edge.target) in live))
    assert prune(kept, nodes) == kept


configs = st.builds(
    CellConfig,
    nodes=st.integers(0, 2),
    bases=st.integers(1, 16),
    activation=st.sampled_from(ACTIVATIONS),
    activation_slope=st.floats(0, 1),
    shortcut=st.sampled_from(SHORTCUTS),
    learned_threshold=st.booleans(),
    thresholds=st.sampled_from(THRESHOLDS),
    weight_scale=st.sampled_from(WEIGHT_SCALES),
    surrogate=st.sampled_from(SURROGATES),
    pad_value=st.sampled_from((-1, 0, 1)),
    branch_gain=st.floats(1e-3, 10),
    edge_gain=st.floats(1e-3, 10),
    inside_gain=st.none() | st.floats(1e-3, 10),
)


@st.composite
def architectures(draw):
    config = draw(configs)
    names = draw(st.lists(st.text(min_size=1, max_size=12), max_size=4, unique=True))
    counts = st.integers(1, 10**6)
    return Architecture(
        host=draw(st.text(max_size=10)),
        options=draw(st.dictionaries(st.text(max_size=5), st.integers() | st.booleans() | st.text(max_size=5))),
        num_classes=draw(counts),
        input_shape=draw(st.tuples(counts, counts, counts)),
        cell=config,
        cells={name: draw(cells(config.nodes)) for name in names},
    )


@ALL
@given(architectures())
def test_json_there_and_back_is_the_same_architecture(architecture):
    text = architecture.dumps()
    back = Architecture.from_dict(json.loads(text))
    assert back == architecture
    assert back.dumps() == text


def small(**changes):
    values = {
        "schema_version": 1,
        "host": "resnet20",
        "options": {"width": 4},
        "num_classes": 10,
        "input_shape": [3, 8, 8],
        "cell": {"nodes": 1},
        "cells": {"layer1.0.conv1": {"edges": [{"from": 0, "to": "output", "operation": "bin_conv_3x3"}]}},
    }
    return {**values, **changes}


def cell_of(*edges):
    return {"c": {"edges": [dict(zip(("from", "to", "operation"), edge, strict=True)) for edge in edges]}}


def without(values, key):
    return {k: v for k, v in values.items() if k != key}


WRONG = [
    (small(cells=cell_of((0, "output", "bin_conv_3x4"))), ["cells.c.edges[0].operation", "closest: bin_conv_3x3"]),
    (small(cells=cell_of((0, "output", ["bin_conv_3x3"]))), ["cells.c.edges[0].operation"]),
    (small(cells=cell_of((0, 1, "identity"), (1, "output", None))), ["cells.c.edges[1].operation", "None"]),
    (small(cells=cell_of((1, 1, "identity"))), ["cells.c.edges[0]", "from 1 to 1", "1 inside nodes"]),
    (small(cells=cell_of(("output", 0, "identity"))), ["cells.c.edges[0]", "from 'output' to 0"]),
    (small(cells=cell_of((0, 7, "identity"))), ["cells.c.edges[0]", "from 0 to 7"]),
    (small(cells=cell_of((-1, 1, "identity"))), ["cells.c.edges[0]", "from -1 to 1"]),
    (small(cells=cell_of((True, "output", "bin_conv_1x1"))), ["cells.c.edges[0]", "from True"]),
    (small(cells=cell_of(([], "output", "bin_conv_1x1"))), ["cells.c.edges[0]", "from []"]),
    (small(cells=cell_of(({}, {}, "bin_conv_1x1"))), ["cells.c.edges[0]", "from {}"]),
    (small(cells=cell_of((0, 1, "bin_conv_1x1"), (0, 1, "bin_conv_3x3"))), ["cells.c.edges[1]", "second paid"]),
    (small(cells=cell_of((0, 1, "identity"), (0, 1, "max_pool_3x3"))), ["cells.c.edges[1]", "second free"]),
    (small(cells=cell_of((0, "output", "identity"))), ["cells.c.edges[0]", "no identity from 0 to output"]),
    (small(cells={"c": {"edges": {}}}), ["cells.c.edges", "list"]),
    (small(cells={"c": []}), ["cells.c", "mapping", "list"]),
    (small(cells={"c": {"edges": [3]}}), ["cells.c.edges[0]", "mapping", "int"]),
    (small(cells={"c": {}}), ["cells.c", '"edges" is missing']),
    (small(cells={"c": {"edges": [], "edge": []}}), ["cells.c", 'unknown key "edge"', "closest: edges"]),
    (small(cells={"c": {"edges": [{"from": 0, "to": 1}]}}), ["cells.c.edges[0]", '"operation" is missing']),
    (small(cells=[]), ["cells", "mapping", "list"]),
    (small(schema_version=2), ["schema_version is 2", "reads 1"]),
    (small(schema_version="1"), ["schema_version is '1'"]),
    (small(host=3), ["host", "3"]),
    (small(options=[]), ["options", "mapping"]),
    (small(num_classes=0), ["num_classes is 0"]),
    (small(num_classes=True), ["num_classes is True"]),
    (small(num_classes=2.0), ["num_classes is 2.0"]),
    (small(input_shape=[3, 8]), ["input_shape is [3, 8]"]),
    (small(input_shape=[3, 8, -8]), ["input_shape is [3, 8, -8]"]),
    (small(input_shape="3x8"), ["input_shape is '3x8'"]),
    (small(cell=[]), ["cell", "mapping"]),
    (small(cell={"node": 1}), ["cell", 'unknown key "node"', "closest: nodes"]),
    (small(cell={"nodes": 3}), ["cell.nodes is 3", "0, 1, 2"]),
    (small(cell={"nodes": "1"}), ["cell.nodes is '1'"]),
    (small(cell={"nodes": [1]}), ["cell.nodes is [1]"]),
    (small(cell={"bases": 0}), ["cell.bases is 0"]),
    (small(cell={"bases": True}), ["cell.bases is True"]),
    (small(cell={"pad_value": 2}), ["cell.pad_value is 2"]),
    (small(cell={"activation": "relu"}), ["cell.activation", "prelu"]),
    (small(cell={"shortcut": []}), ["cell.shortcut"]),
    (small(cell={"surrogate": "polynomal"}), ["cell.surrogate", "closest: polynomial"]),
    (small(cell={"weight_scale": None}), ["cell.weight_scale"]),
    (small(cell={"learned_threshold": 1}), ["cell.learned_threshold is 1"]),
    (small(cell={"branch_gain": 0}), ["cell.branch_gain is 0"]),
    (small(cell={"activation_slope": -1}), ["cell.activation_slope is -1"]),
    (small(cell={"branch_gain": float("nan")}), ["cell.branch_gain is nan"]),
    (small(cell={"edge_gain": 11}), ["cell.edge_gain is 11"]),
    (small(extra=1), ['unknown key "extra"']),
    ([], ["mapping", "list"]),
    (None, ["mapping", "NoneType"]),
    *((without(small(), key), [f'"{key}" is missing']) for key in small()),
]


@pytest.mark.parametrize(("values", "parts"), WRONG, ids=[" ".join(parts)[:50] for _, parts in WRONG])
def test_every_error_names_its_key(values, parts):
    with pytest.raises(UserError) as error:
        Architecture.from_dict(values, "a.json")
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(("values", "parts"), WRONG, ids=[" ".join(parts)[:50] for _, parts in WRONG])
def test_every_error_names_its_file(values, parts):
    with pytest.raises(UserError, match=r"^a\.json"):
        Architecture.from_dict(values, "a.json")


@pytest.mark.parametrize(
    "values",
    [
        small(cell={"nodes": 1.0}),
        small(cell={"bases": 2.0}),
        small(cell={"pad_value": 0.0}),
        small(cell={"branch_gain": True}),
        small(schema_version=True),
        small(cells=cell_of((0.0, "output", "bin_conv_1x1"))),
    ],
    ids=["nodes 1.0", "bases 2.0", "pad_value 0.0", "branch_gain true", "schema_version true", "from 0.0"],
)
def test_a_number_of_another_type_is_refused(values):
    with pytest.raises(UserError):
        Architecture.from_dict(values, "a.json")


@pytest.mark.parametrize(
    "text",
    ["", "{", "not json", "[" * 100_000, '{"cells": ' + "[" * 50_000 + "]" * 50_000 + "}", "[1" + "0" * 5000 + "]"],
    ids=["empty", "cut", "words", "bomb", "closed bomb", "huge number"],
)
def test_what_is_no_json_is_refused_with_the_file_s_name(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"a\.json: is not valid JSON"):
        Architecture.load(path)


@pytest.mark.parametrize("key", list(small()))
@pytest.mark.parametrize("depth", [400, 900, 4_000])
def test_nesting_that_json_can_read_is_refused_as_well(tmp_path, key, depth):
    path = tmp_path / "a.json"
    text = json.dumps(without(small(), key))[:-1] + f', "{key}": ' + "[" * depth + "]" * depth + "}"
    path.write_text(text)
    with pytest.raises(UserError, match=r"a\.json"):
        Architecture.load(path)


def test_bytes_that_are_no_text_and_files_that_are_not_there(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"a\.json: is not valid JSON"):
        Architecture.load(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"b\.json: cannot be read: No such file"):
        Architecture.load(tmp_path / "b.json")
    with pytest.raises(UserError, match="cannot be read"):
        Architecture.load(tmp_path)


RICH = {
    "layer2.0.conv1": (
        Edge(0, 1, "avg_pool_3x3"),
        Edge(0, 1, "bin_conv_3x3"),
        Edge(0, 3, "dil_bin_conv_3x3"),
        Edge(1, 2, "bin_conv_1x1"),
        Edge(2, 3, "identity"),
    ),
    "layer3.2.conv2": (Edge(0, 3, "bin_conv_5x5"),),
}


def resnet20_architecture(chosen=RICH, **cell):
    names = [f"layer{s}.{b}.conv{c}" for s in (1, 2, 3) for b in range(3) for c in (1, 2)]
    return Architecture(
        host="resnet20",
        options={"width": 4},
        num_classes=5,
        input_shape=(3, 12, 12),
        cell=CellConfig(nodes=2, **cell),
        cells={name: chosen.get(name, ()) for name in names},
    )


def test_a_saved_architecture_builds_the_same_network(tmp_path, randomize):
    architecture = resnet20_architecture(activation="prelu", bases=2)
    path = tmp_path / "architecture.json"
    architecture.save(path)
    assert Architecture.load(path) == architecture
    first, second = randomize(architecture.build()), Architecture.load(path).build()
    assert list(first.state_dict()) == list(second.state_dict())
    second.load_state_dict(first.state_dict())
    x = torch.randn(4, 3, 12, 12)
    assert torch.equal(first.eval()(x), second.eval()(x))
    third = create_network("nasb_resnet20", architecture=path)
    assert list(third.state_dict()) == list(first.state_dict())
    assert first(x).shape == (4, 5)


def test_saving_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "architecture.json"
    resnet20_architecture().save(path)
    before = path.read_bytes()

    def full_disk(self, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full_disk)
        with pytest.raises(UserError, match=r"architecture\.json: cannot be written: No space left on device"):
            resnet20_architecture({}).save(path)
    assert path.read_bytes() == before
    write = Path.write_text

    def torn(self, text, **options):
        write(self, text[:20], **options)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", torn)
        with pytest.raises(UserError, match="No space left"):
            resnet20_architecture({}).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match="cannot be written"):
        resnet20_architecture().save(tmp_path / "missing" / "a.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cells: {**cells, "layer4.0.conv1": ()}, '"layer4.0.conv1" is not in this host'),
        (
            lambda cells: {n: e for n, e in cells.items() if n != "layer2.1.conv2"},
            '"layer2.1.conv2" of the host is mis',
        ),
    ],
)
def test_an_architecture_of_another_host_is_refused_by_the_cell_s_name(change, message):
    architecture = resnet20_architecture()
    values = architecture.to_dict()
    values["cells"] = change(values["cells"])
    values["cells"] = {name: entry or {"edges": []} for name, entry in values["cells"].items()}
    with pytest.raises(UserError, match=message):
        Architecture.from_dict(values).build()


def test_an_operation_that_cannot_give_the_shape_is_refused_by_the_cell_s_name():
    host = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 2)
    )
    architecture = Architecture(
        host="mine", num_classes=2, input_shape=(3, 8, 8), cells={"1": (Edge(0, 2, "bin_conv_1x1"),)}
    )
    with pytest.raises(UserError, match=r"cells\.1: bin_conv_1x1 cannot map 4 channels of \(8, 8\) pixels"):
        architecture.build(host)


def test_rebuilding_needs_no_search_code(tmp_path):
    path = tmp_path / "architecture.json"
    resnet20_architecture().save(path)
    script = (
        "import sys\n"
        "from nasb.cells import Architecture\n"
        f"network = Architecture.load({str(path)!r}).build()\n"
        "print([name for name in sys.modules if name.startswith('nasb.search')])\n"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
