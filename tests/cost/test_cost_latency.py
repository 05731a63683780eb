"""Latency tables: what is measured, how a table is read, what is refused, the prediction by hand."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "search"))

from latency_tables import made_up_ms, table_values, write_table
from search_hosts import SHAPE, chain

from nasb.cells import Architecture, CellConfig, Edge
from nasb.cells.adapt import ConvShape
from nasb.cells.searchable import candidates, searchable_cells
from nasb.cost.latency import GEOMETRY, SHAPES, LatencyTable, geometry, network_key, shapes_of, table_command
from nasb.errors import UserError
from nasb.networks.convert import convert


@pytest.fixture(scope="module")
def backbone():
    return convert(chain(4, 6, 6), SHAPE)


STRIDED = ConvShape(in_channels=4, out_channels=6, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), in_size=(8, 8))


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("identity", ("identity", 6, 4, 4, 6, 1, 1, 0, 1, 1)),
        ("avg_pool_3x3", ("avg_pool", 6, 4, 4, 6, 3, 1, 1, 1, 1)),
        ("max_pool_3x3", ("max_pool", 6, 4, 4, 6, 3, 1, 1, 1, 1)),
        ("bin_conv_1x1", ("binary_conv", 4, 8, 8, 6, 1, 2, 0, 1, 1)),
        ("bin_conv_5x5", ("binary_conv", 4, 8, 8, 6, 5, 2, 2, 1, 1)),
        ("dil_bin_conv_5x5", ("binary_conv", 4, 8, 8, 6, 5, 2, 4, 2, 1)),
    ],
)
def test_how_an_operation_is_measured(operation, expected):
    assert geometry(operation, STRIDED) == dict(zip(GEOMETRY, expected, strict=True))


def test_what_is_not_square_is_refused():
    wide = ConvShape(in_channels=4, out_channels=4, kernel_size=(3, 3), padding=(1, 1), stride=(2, 1), in_size=(8, 8))
    with pytest.raises(UserError, match="bin_conv_3x3 has the stride 2x1; the engine measures only square ones"):
        geometry("bin_conv_3x3", wide)


@pytest.mark.parametrize("nodes", [0, 1, 2])
def test_every_candidate_has_an_entry_and_none_stands_twice(nodes):
    network = convert(chain(4, 6, 6, 6), SHAPE, cell=CellConfig(nodes=nodes))
    shapes = shapes_of(network, None)
    keys = [tuple(entry[key] for key in GEOMETRY) for entry in shapes.entries]
    assert len(set(keys)) == len(keys)
    cells = searchable_cells(network)
    edges = sum(len(candidates(cell.shape, cell.config, None)) for cell in cells.values())
    # A probe has an operation on every edge of its kind, and names the entry of each.
    probed = {kind: sum(map(len, probe.values())) for kind, probe in shapes.probes.items()}
    assert sum(probed.values()) == edges
    assert probed == {kind: len(used) for kind, used in shapes.probe_entries.items()}
    for kind, probe in shapes.probes.items():
        operations = [edge.operation for edges in probe.values() for edge in edges]
        named = [shapes.entries[index]["operation"] for index in shapes.probe_entries[kind]]
        assert operations == named
        assert all(("conv" in operation) == (kind == "paid") for operation in operations)
        convert(chain(4, 6, 6, 6), SHAPE, cell=CellConfig(nodes=nodes), cells=probe)


def test_the_prediction_is_the_sum(backbone, tmp_path):
    table = write_table(tmp_path / "t.json", table_values(backbone))
    first, second = searchable_cells(backbone)
    cells = {first: (Edge(0, 2, "bin_conv_3x3"),), second: (Edge(0, 1, "identity"), Edge(1, 2, "bin_conv_1x1"))}
    conv = {"kind": "binary_conv", "in_height": 8, "in_width": 8, "out_channels": 6, "kernel_size": 3, "stride": 2}
    small = {"in_height": 4, "in_width": 4, "out_channels": 6, "kernel_size": 1, "stride": 1}
    expected = 0.5 + 1.25 * made_up_ms(conv) + 1.5 * made_up_ms({**small, "kind": "identity"})
    expected += 1.25 * made_up_ms({**small, "kind": "binary_conv"})
    assert table.predict(backbone, cells) == pytest.approx(expected)
    assert table.predict(backbone, {first: (), second: ()}) == 0.5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: "{", "is not valid JSON"),
        (lambda v: [1], "is not a latency table"),
        (lambda v: v | {"format": SHAPES}, "nasb-engine latency-table` measures it"),
        (lambda v: v | {"version": 2}, "version is 2"),
        (lambda v: {k: x for k, x in v.items() if k != "context"}, '"context" is missing'),
        (lambda v: v | {"entries": {}}, '"entries" is missing'),
        (lambda v: v | {"backbone": {}}, r"backbone\.ms is None"),
        (lambda v: v | {"backbone": {"ms": True}}, r"backbone\.ms is True"),
        (lambda v: v | {"backbone": {"ms": 10**400}}, r"backbone\.ms is 1000"),
        (lambda v: v | {"context": {"paid": 0}}, r"context\.paid is 0"),
        (lambda v: v | {"entries": [{**v["entries"][0], "ms": float("nan")}]}, r"entries\[0\]\.ms is nan"),
        (lambda v: v | {"entries": [{**v["entries"][0], "ms": -1}]}, r"entries\[0\]\.ms is -1"),
        (lambda v: v | {"entries": [{"ms": 1}]}, r"entries\[0\] must hold kind"),
        (lambda v: v | {"entries": [3]}, r"entries\[0\] must hold kind"),
    ],
)
def test_a_damaged_table_is_refused_by_file_and_key(backbone, tmp_path, change, says):
    changed = change(table_values(backbone))
    path = tmp_path / "t.json"
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(UserError, match=says) as error:
        LatencyTable.load(path)
    assert str(path) in str(error.value)


def test_a_table_that_is_missing(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        LatencyTable.load(tmp_path / "t.json")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"host": "resnet32"}, "host is 'resnet32' there, 'resnet20' here"),
        ({"options": {"width": 8}}, "options is {'width': 8} there, {'width': 4} here"),
        ({"num_classes": 100}, "num_classes is 100 there, 10 here"),
        ({"input_shape": [3, 224, 224]}, "there, [3, 32, 32] here"),
        ({"cell": {"bases": 2}}, "cell is {'bases': 2} there"),
    ],
)
def test_a_table_of_another_network_is_refused_with_the_command_for_the_right_one(backbone, tmp_path, change, says):
    cell = CellConfig(activation="prelu")
    wanted = network_key("resnet20", {"width": 4}, 10, (3, 32, 32), cell)
    table = write_table(tmp_path / "t.json", table_values(backbone, network=wanted))
    table.check_network(wanted)
    other = write_table(tmp_path / "other.json", table_values(backbone, network=wanted | change))
    with pytest.raises(UserError) as error:
        other.check_network(wanted)
    assert says in str(error.value)
    command = (
        "nasb latency-table --network resnet20 --input-size 3x32x32 --num-classes 10 --option width=4 "
        "--option activation=prelu -o table.json"
    )
    assert table_command(wanted) == command
    assert command in str(error.value)


def test_a_table_is_of_what_stays_real() -> None:
    shape = (3, 8, 8)
    plain = network_key("resnet20", {}, 10, shape, CellConfig())
    kept = network_key("resnet20", {}, 10, shape, CellConfig(), ("layer1*",))
    assert "keep_real" not in plain
    assert kept == {**plain, "keep_real": ["layer1*"]}
    assert table_command(kept) == table_command(plain).replace(" -o", " --keep-real 'layer1*' -o")


def test_a_table_of_an_earlier_version_holds_for_the_options_that_it_does_not_name(backbone, tmp_path):
    wanted = network_key("resnet20", {}, 10, (3, 32, 32), CellConfig())
    older = {key: value for key, value in wanted["cell"].items() if "threshold" not in key}
    table = write_table(tmp_path / "t.json", table_values(backbone, network=wanted | {"cell": older}))
    table.check_network(wanted)
    table.check_network(network_key("resnet20", {}, 10, (3, 32, 32), CellConfig(thresholds="edge")), own=True)
    other = network_key("resnet20", {}, 10, (3, 32, 32), CellConfig(learned_threshold=True, thresholds="edge"))
    with pytest.raises(UserError, match=r"--option learned_threshold=true --option thresholds=edge"):
        table.check_network(other)


def test_the_prediction_of_an_architecture_knows_what_is_kept_real(backbone, tmp_path):
    kept = ("4",)
    key = network_key("made up", {}, 2, SHAPE, CellConfig(), kept)
    table = write_table(tmp_path / "t.json", table_values(backbone, network=key))
    first, second = searchable_cells(backbone)
    made = Architecture(host="made up", num_classes=2, input_shape=SHAPE, cells={first: (), second: ()}, keep_real=kept)
    assert table.predict_architecture(made, backbone) == 0.5
    dead = replace(made, cells={first: (Edge(0, 1, "bin_conv_3x3"),), second: ()})  # nothing leads on from there
    assert table.predict_architecture(dead, backbone) == 0.5
