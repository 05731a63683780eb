"""draw_architecture(): files, their text, determinism, errors; no two texts of a page overlap."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from nasb.cells import Architecture, CellConfig, Edge
from nasb.cells.architecture import node_pairs
from nasb.cells.draw import draw_architecture
from nasb.errors import UserError
from nasb.networks.resnet_cifar import ResNetCifar

NAMES = [f"layer{stage}.0.conv{conv}" for stage in (1, 2, 3) for conv in (1, 2)]
FREE = ("identity", "avg_pool_3x3", "max_pool_3x3")
PAID = ("bin_conv_1x1", "bin_conv_3x3", "bin_conv_5x5", "dil_bin_conv_3x3", "dil_bin_conv_5x5")


def full(nodes):
    """Every edge of a cell, every operation in turn; the longest names where there is least room."""
    edges = []
    for index, (source, target) in enumerate(node_pairs(nodes)):
        straight = (source, target) == (0, nodes + 1)
        edges += [Edge(source, target, PAID[-1 - index % 5]), Edge(source, target, FREE[2 if straight else index % 3])]
    return tuple(sorted(edges))


def architecture(edges=(), host="my_host", **cell):
    """The second cell and the first that strides have the edges, the others none."""
    cells = {name: tuple(edges) if name in ("layer1.0.conv2", "layer2.0.conv1") else () for name in NAMES}
    return Architecture(
        host=host, num_classes=10, input_shape=(3, 16, 16), cell=CellConfig(**cell), cells=cells,
    )  # fmt: skip


def built(arch):
    torch.manual_seed(0)
    return arch.build(ResNetCifar(8, width=8))


def texts(path):
    """The texts of an SVG file, in one string."""
    root = ET.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return "\n".join("".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text"))


@pytest.mark.parametrize("nodes", [0, 1, 2])
def test_page_names_every_cell_its_shape_and_the_chosen_operations(tmp_path, nodes):
    arch = architecture(full(nodes), nodes=nodes)
    draw_architecture(arch, tmp_path / "a.svg", network=built(arch))
    text = texts(tmp_path / "a.svg")
    for name in NAMES:
        assert name in text
    chosen = [edge.operation for edge in full(nodes)]
    for operation in (*FREE, *PAID):
        count = 2 * chosen.count(operation)
        assert (f"= {operation} ({count})" in text) == (count > 0)
    assert "3x3 8-16 /2" in text
    assert "conv1: 3x3 3-8" in text
    assert "linear: fully connected 32-10" in text
    assert f"2 of 6 cells (33%) have edges, {2 * len(chosen)} in all" in text


def test_registered_host_is_built_and_the_random_state_stays(tmp_path):
    cells = {f"layer{s}.{b}.conv{c}": () for s in (1, 2, 3) for b in (0, 1, 2) for c in (1, 2)}
    cells["layer3.0.conv1"] = (Edge(0, 2, "bin_conv_3x3"),)
    arch = Architecture(
        host="resnet20", options={"stem_stride": 2}, num_classes=10, input_shape=(3, 32, 32), cells=cells
    )
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    draw_architecture(arch, tmp_path / "a.svg")
    assert torch.equal(torch.rand(1), expected)
    text = texts(tmp_path / "a.svg")
    assert "1 of 18 cells (6%) has edges, 1 in all" in text
    assert "stem_stride 2" in text
    assert "3x3 32-64 /2" in text


def test_cell_page_says_everything_of_one_cell(tmp_path):
    arch = architecture(full(2), nodes=2, bases=3, activation="prelu")
    draw_architecture(arch, tmp_path / "a.svg", cell="layer2.0.conv1", network=built(arch))
    text = texts(tmp_path / "a.svg")
    for edge in full(2):
        assert edge.operation in text
    for part in (
        "layer2.0.conv1", "3x3 8-16 /2", "16x16 to 8x8 pixels", "cell 3 of 6", "8x16x16", "16x8x8",
        "S(x) + Σ BNₖ(BinConv3x3ₖ(sign(x ≥ tₖ))),  k = 1..3", "one learned t for each channel",
        "prelu(backbone + the edges to out)", "average pooling 2x2, 8 channels repeated and cut to 16; no parameters",
    ):  # fmt: skip
        assert part in text
    assert "layer1" not in text


def test_formula_of_the_hand_made_cell(tmp_path):
    arch = architecture()
    draw_architecture(arch, tmp_path / "a.svg", cell="layer1.0.conv1", network=built(arch))
    text = texts(tmp_path / "a.svg")
    assert "S(x) + BN(BinConv3x3(sign(x ≥ t)))" in text
    assert "t = 0" in text
    assert "none: the hand-made cell" in text


def test_bases_and_dead_edges_are_noted(tmp_path):
    arch = architecture([Edge(0, 1, "bin_conv_3x3")], nodes=1, bases=2)  # node 1 leads nowhere
    draw_architecture(arch, tmp_path / "a.svg", network=built(arch))
    text = texts(tmp_path / "a.svg")
    assert text.count("K = 2") == 6
    assert "none of 6 cells has edges" in text
    assert "pale: on no way from in to out" in text
    draw_architecture(arch, tmp_path / "b.svg", cell="layer1.0.conv2", network=built(arch))
    assert "dead: not computed" in texts(tmp_path / "b.svg")


@pytest.mark.parametrize("cell", [None, "layer2.0.conv1"])
@pytest.mark.parametrize("suffix", [".svg", ".png", ".PNG"])
def test_same_architecture_gives_the_same_bytes(tmp_path, suffix, cell):
    import matplotlib

    arch = architecture(full(1), nodes=1)
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    draw_architecture(arch, first, cell=cell, network=built(arch))
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9, "savefig.bbox": "tight"}):
        draw_architecture(arch, second, cell=cell, network=built(arch))
        assert matplotlib.rcParams["font.size"] == 20  # the caller's own style stands
    data = first.read_bytes()
    assert data == second.read_bytes()
    assert data.startswith(b"<?xml" if suffix == ".svg" else b"\x89PNG\r\n\x1a\n")
    assert not re.search(rb"<dc:date>|matplotlib\.org", data)
    other = replace(arch, cells=dict.fromkeys(NAMES, ()))
    draw_architecture(other, second, cell=cell, network=built(other))
    assert data != second.read_bytes()


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("options", [{"shortcut": "adapt"}, {"shortcut": "avgmax", "thresholds": "edge"}])
@pytest.mark.parametrize("nodes", [0, 1, 2])
def test_no_two_texts_overlap_or_leave_the_page(nodes, options, large):
    from nasb.cells.drawing_cell import cell_page
    from nasb.cells.drawing_network import network_page, read_network

    arch = architecture(full(nodes), nodes=nodes, bases=16, **options)
    network = read_network(built(arch), arch)
    canvas = cell_page(arch, network, name="layer2.0.conv1") if large else network_page(arch, network)
    renderer = canvas.figure.canvas.get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in canvas.axes.texts]
    assert len(boxes) > 10
    page = canvas.figure.bbox
    for text, box in boxes:
        assert page.x0 <= box.x0 <= box.x1 <= page.x1, text
        assert page.y0 <= box.y0 <= box.y1 <= page.y1, text
    for (one, a), (other, b) in combinations(boxes, 2):
        # One pixel of the boxes' own empty rim may be shared.
        apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
        assert apart, (one, other)


def test_rows_follow_stages_and_are_even():
    from nasb.cells.drawing_network import _rows

    resnet50 = [f"layer{s + 1}.{b}.conv{c}" for s, n in enumerate((3, 4, 6, 3)) for b in range(n) for c in (1, 2, 3)]
    rows = _rows(resnet50, 6)
    assert [len(row) for row in rows] == [6, 3, 6, 6, 6, 6, 6, 6, 3]
    assert [name for row in rows for name in row] == resnet50
    assert [len(row) for row in _rows(NAMES, 5)] == [3, 3]
    blocks = [f"features.{block}.conv.{conv}" for block in range(6) for conv in range(2)]
    assert [len(row) for row in _rows(blocks, 5)] == [4, 4, 4]


@pytest.mark.parametrize("name", ["a.pdf", "a", "a.svg.txt"])
def test_other_suffixes_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"a drawing ends in \.svg or \.png, not in"):
        draw_architecture(architecture(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_unknown_cell_lists_the_close_ones(tmp_path):
    with pytest.raises(UserError, match=r'unknown cell "layer1\.0\.conv3".*closest: layer1\.0\.conv'):
        draw_architecture(architecture(), tmp_path / "a.svg", cell="layer1.0.conv3")
    assert not list(tmp_path.iterdir())


def test_unregistered_host_asks_for_the_network(tmp_path):
    with pytest.raises(UserError, match=r'unknown network "my_host".*network=architecture\.build\(host\)'):
        draw_architecture(architecture(), tmp_path / "a.svg")
    assert not list(tmp_path.iterdir())


def test_network_of_another_architecture_is_refused(tmp_path):
    arch = architecture()
    other = replace(arch, cells=dict.fromkeys(NAMES[1:], ()))
    with pytest.raises(UserError, match=r'only one of them has the cell "layer1\.0\.conv1"'):
        draw_architecture(other, tmp_path / "a.svg", network=built(arch))
    assert not list(tmp_path.iterdir())


def test_operation_that_does_not_fit_is_refused(tmp_path):
    host = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 6, 3, padding=1), torch.nn.BatchNorm2d(6),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(6, 10),
    )  # fmt: skip
    plain = Architecture(host="mine", num_classes=10, input_shape=(3, 16, 16), cells={"2": ()})
    network = plain.build(host)
    wrong = replace(plain, cells={"2": (Edge(0, 2, "max_pool_3x3"),)})  # 8 channels cannot be averaged to 6
    with pytest.raises(UserError, match=r"cells\.2: max_pool_3x3 does not fit 3x3 8-6"):
        draw_architecture(wrong, tmp_path / "a.svg", network=network)
    draw_architecture(plain, tmp_path / "a.svg", cell="2", network=network)
    assert "8 channels cannot be averaged to 6" in texts(tmp_path / "a.svg")


def test_failure_leaves_the_former_file(tmp_path, monkeypatch):
    from nasb.cells.drawing_canvas import Canvas

    def fail(canvas, path, form):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    arch = architecture()
    (tmp_path / "a.svg").write_text("former")
    monkeypatch.setattr(Canvas, "save", fail)
    with pytest.raises(UserError, match="No space left on device"):
        draw_architecture(arch, tmp_path / "a.svg", network=built(arch))
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]
    assert (tmp_path / "a.svg").read_text() == "former"
    with pytest.raises(UserError, match="cannot be written"):
        draw_architecture(arch, tmp_path / "missing" / "a.svg", network=built(arch))
