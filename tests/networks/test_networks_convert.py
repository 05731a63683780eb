"""convert(): published networks against functional rewrites, what the plan says, and whose weights are taken over."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from bireal_reference import bottleneck, conv_shortcut, resnet20
from torch import nn

from nasb.binary import BinaryConv2d
from nasb.cells import CellConfig, Edge
from nasb.cells.adapt import Adapt, AvgMaxShortcut
from nasb.cells.cell import Cell
from nasb.cost import count
from nasb.errors import UserError
from nasb.networks import create_host, create_network
from nasb.networks.convert import convert
from nasb.networks.plan import plan_of

SHAPE = (3, 64, 64)


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(3)
    host = torchvision.models.resnet18(num_classes=7)
    return host, convert(host, SHAPE)


@pytest.fixture(scope="module")
def resnet50():
    torch.manual_seed(3)
    host = torchvision.models.resnet50(num_classes=7)
    return host, convert(host, SHAPE)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shortcut", ["auto", "adapt", "conv"])
def test_resnet20_with_every_edge_none_is_bi_real_net_exactly(shortcut, training, randomize):
    host = create_host("resnet20", num_classes=5, options={"width": 6})
    network = randomize(convert(host, (3, 16, 16), cell=CellConfig(nodes=2, shortcut=shortcut)))
    network = network.double().train(training)
    state = copy.deepcopy(network.state_dict())
    x = torch.randn(3, 3, 16, 16).double()
    expected = resnet20(x, state, training, conv_shortcuts=shortcut == "conv")
    torch.testing.assert_close(network(x), expected)
    assert expected.std() > 0.1


def test_shortcuts_that_add_channels_by_max_pooling():
    host = create_host("resnet20", num_classes=5, options={"width": 4})
    network = convert(host, (3, 16, 16), cell=CellConfig(shortcut="avgmax"))
    kinds = {name: type(module.shortcut) for name, module in network.named_modules() if isinstance(module, Cell)}
    assert {name for name, kind in kinds.items() if kind is AvgMaxShortcut} == {"layer2.0.conv1", "layer3.0.conv1"}
    assert set(kinds.values()) == {Adapt, AvgMaxShortcut}
    adapted = convert(host, (3, 16, 16), cell=CellConfig(shortcut="adapt"))
    assert count(network, (3, 16, 16)).ops == count(adapted, (3, 16, 16)).ops


def test_resnet20_with_prelu_has_one_behind_the_stem_and_behind_each_cell(randomize):
    host = create_host("resnet20", num_classes=5, options={"width": 4})
    network = randomize(convert(host, (3, 16, 16), cell=CellConfig(activation="prelu"))).double().eval()
    stem = [name for name, layer in network.named_children() if isinstance(layer, nn.PReLU)]
    assert len(stem) == 1
    x = torch.randn(2, 3, 16, 16).double()
    expected = resnet20(x, network.state_dict(), False, slope=stem[0])
    torch.testing.assert_close(network(x), expected)


def test_a_converted_torchvision_resnet18_is_bireal_resnet18(resnet18, randomize):
    network = resnet18[1]
    torch.manual_seed(3)
    named = create_network("bireal_resnet18", num_classes=7, input_shape=SHAPE)
    state = network.state_dict()
    assert {key: value.shape for key, value in named.state_dict().items()} == {k: v.shape for k, v in state.items()}
    assert all(torch.equal(value, state[key]) for key, value in named.state_dict().items())
    x = torch.randn(2, *SHAPE)
    assert torch.equal(copy.deepcopy(network).eval()(x), named.eval()(x))


def test_weights_and_statistics_of_the_host_are_taken_over(randomize):
    host = randomize(torchvision.models.resnet18(num_classes=7))
    source, state = host.state_dict(), convert(host, SHAPE).state_dict()
    for key, value in source.items():
        layer, _, tensor = key.rpartition(".")
        stem_or_classifier = layer in ("conv1", "bn1", "fc")
        if stem_or_classifier:
            found = state[key]
        elif "downsample" in layer:
            block = layer.split(".downsample")[0]
            found = state[f"{block}.conv1.shortcut.{'conv' if layer.endswith('0') else 'bn'}.{tensor}"]
        elif ".conv" in layer:
            found = state[f"{layer}.backbone.0.conv.{tensor}"]
        else:
            found = state[f"{layer.replace('.bn', '.conv')}.backbone.0.bn.{tensor}"]
            if tensor in ("weight", "bias"):
                value = value / 3  # noqa: PLW2901 - branch_gain
        torch.testing.assert_close(found, value)
    taken = [key for key in state if not key.startswith(("conv1.", "bn1.", "fc."))]
    assert len(taken) + 8 + 4 - 4 == len(source), "a tensor of the network has no source in the host"


def test_the_strided_cell_s_shortcut_is_the_host_s_1x1(resnet18, randomize):
    network = randomize(copy.deepcopy(resnet18[1])).eval()
    cell = network.get_submodule("layer2.0.conv1")
    state = network.state_dict()
    x = torch.randn(2, 64, 9, 9)  # an odd size, too
    padded = F.pad(x, (0, 1, 0, 1), mode="replicate")
    for own, oracle in ((x[:, :, :8, :8], x[:, :, :8, :8]), (x, padded)):
        expected = conv_shortcut(oracle, state, "layer2.0.conv1.shortcut", False, 2)
        torch.testing.assert_close(cell.shortcut(own), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_a_bottleneck_keeps_its_addition(resnet50, training, randomize):
    network = randomize(copy.deepcopy(resnet50[1])).double().train(training)
    state = copy.deepcopy(network.state_dict())
    seen = {}
    for name in ("layer2.0.conv1", "layer2.1.conv1"):
        network.get_submodule(name).register_forward_pre_hook(
            lambda module, inputs, name=name: seen.setdefault(name, inputs[0].detach().clone())
        )
    network(torch.randn(2, 3, 32, 32).double())
    expected = bottleneck(seen["layer2.0.conv1"], state, "layer2.0", training)
    torch.testing.assert_close(seen["layer2.1.conv1"], expected)


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_every_bottleneck_of_resnet50_keeps_its_addition(resnet50, stage):
    network = resnet50[1]
    blocks = {1: 3, 2: 4, 3: 6, 4: 3}[stage]
    kept = [network.get_submodule(f"layer{stage}.{b}.conv3").shortcut is None for b in range(blocks)]
    assert kept == [True] * blocks


def rows_of(network):
    return [(row.layer, row.kind, row.becomes, row.reason) for row in plan_of(network).rows]


def test_a_network_that_was_saved_whole_is_loaded_again(tmp_path):
    binary = create_network("bireal_resnet20", num_classes=3, width=4).eval()
    torch.save(binary, tmp_path / "whole.pt")
    loaded = torch.load(tmp_path / "whole.pt", weights_only=False)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), binary(x))


def test_the_plan_of_resnet18(resnet18):
    rows = rows_of(resnet18[1])
    expected = [("conv1", "7x7 3-64 /2", "real", "first convolution")]
    for stage, width in ((1, 64), (2, 128), (3, 256), (4, 512)):
        for block in (0, 1):
            first = stage > 1 and block == 0
            for conv in (1, 2):
                changes = first and conv == 1
                kind = f"3x3 {width // 2}-{width} /2" if changes else f"3x3 {width}-{width}"
                shortcut = "average pooling, real 1x1, batch norm" if changes else "the input itself"
                expected.append((f"layer{stage}.{block}.conv{conv}", kind, "cell", f"shortcut: {shortcut}"))
            if first:
                expected.append(
                    (
                        f"layer{stage}.0.downsample.0",
                        f"1x1 {width // 2}-{width} /2",
                        f"shortcut of layer{stage}.0.conv1",
                        "average pooling, real 1x1, batch norm",
                    )
                )
    assert rows == expected
    lines = str(plan_of(resnet18[1])).splitlines()
    assert lines[0].split() == ["layer", "is", "becomes", "because"]
    assert len(lines) == 1 + len(rows)
    assert lines[6].split()[:6] == ["layer2.0.conv1", "3x3", "64-128", "/2", "cell", "shortcut:"]
    assert lines[6].endswith("average pooling, real 1x1, batch norm")


def test_the_plan_of_resnet50(resnet50):
    rows = {row[0]: row[1:] for row in rows_of(resnet50[1])}
    assert len(rows) == 53
    assert rows["conv1"] == ("7x7 3-64 /2", "real", "first convolution")
    assert rows["layer2.0.conv1"] == ("1x1 256-128", "cell", "shortcut: adapt")
    assert rows["layer2.0.conv2"] == ("3x3 128-128 /2", "cell", "shortcut: adapt")
    assert rows["layer2.0.conv3"] == ("1x1 128-512", "cell", "shortcut: the block's addition")
    assert rows["layer2.0.downsample.0"] == (
        "1x1 256-512 /2",
        "shortcut",
        "average pooling, real 1x1, batch norm",
    )
    assert len(plan_of(resnet50[1]).becoming("cell")) == 48


def test_the_plan_does_not_tell_of_pooling_where_nothing_is_pooled(resnet50):
    row = next(row for row in rows_of(resnet50[1]) if row[0] == "layer1.0.downsample.0")
    assert "/2" not in row[1]
    assert "pooling" not in row[3]


@pytest.fixture(scope="module")
def mobilenet():
    torch.manual_seed(3)
    host = torchvision.models.mobilenet_v2(num_classes=7, width_mult=0.5)
    return host, convert(host, SHAPE)


def test_depthwise_convolutions_of_mobilenet_v2_stay_real(mobilenet):
    host, network = mobilenet
    rows = rows_of(network)
    convs = {name: layer for name, layer in host.named_modules() if isinstance(layer, nn.Conv2d)}
    assert {row[0] for row in rows} == set(convs)
    for name, _, becomes, reason in rows:
        if name == "features.0.0":
            assert (becomes, reason) == ("real", "first convolution")
        elif convs[name].groups > 1:
            assert (becomes, reason) == ("real", "depthwise")
            assert torch.equal(network.get_submodule(name).weight, convs[name].weight)
            assert type(network.get_submodule(name)) is nn.Conv2d
        else:
            assert becomes == "cell"


def test_the_plan_tells_of_an_addition_only_where_there_is_one(mobilenet):
    # The first block of a stage in MobileNetV2 has no addition.
    host, network = mobilenet
    alone = {
        f"{name}.conv.2"
        for name, block in host.named_modules()
        if hasattr(block, "use_res_connect") and not block.use_res_connect
    }
    for name, _, _, reason in rows_of(network):
        if name in alone:
            assert "addition" not in reason


def test_the_projections_of_mobilenet_v2_s_residual_blocks_get_one_shortcut(mobilenet):
    host, network = mobilenet
    blocks = [
        name
        for name, block in host.named_modules()
        if hasattr(block, "use_res_connect") and block.use_res_connect and len(block.conv) == 4
    ]
    assert len(blocks) == 10
    additions = sum(node.target == torch.ops.aten.add or "add" in node.name for node in network.graph.nodes)
    with_own = sum(network.get_submodule(f"{name}.conv.2").shortcut is not None for name in blocks)
    assert additions == 0 or with_own == 0, (
        "the stream passes twice: by the block's addition and by the cell's shortcut"
    )


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("activation", ["none", "prelu"])
def test_vgg11_is_converted(batch_norm, activation):
    vgg = torchvision.models.vgg  # its features; the classifier of 120 million weights is left out
    features = vgg.make_layers(vgg.cfgs["A"], batch_norm=batch_norm)
    host = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 7))
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.bias)
    network = convert(host, SHAPE, cell=CellConfig(activation=activation))
    rows = rows_of(network)
    assert [row[2:] for row in rows[:1]] == [("real", "first convolution")]
    assert [row[2] for row in rows[1:]] == ["cell"] * 7
    shares = []
    for layer in network.modules():
        if isinstance(layer, Cell):
            layer.register_forward_pre_hook(
                lambda module, inputs: shares.append(float((inputs[0] >= 0).float().mean()))
            )
    with torch.no_grad():
        network.train()(torch.randn(2, *SHAPE))
    assert len(shares) == 7
    assert all(0.01 < share < 0.99 for share in shares), shares


@pytest.mark.parametrize("with_edges", [False, True])
def test_the_host_is_left_unchanged(with_edges):
    host = create_host("resnet20", num_classes=5, options={"width": 4}).eval()
    before = copy.deepcopy(host)
    cells = None
    if with_edges:
        names = [f"layer{s}.{b}.conv{c}" for s in (1, 2, 3) for b in range(3) for c in (1, 2)]
        cells = {name: (Edge(0, 2, "bin_conv_3x3"),) for name in names}
    network = convert(host, (3, 8, 8), cells=cells)
    assert str(host) == str(before)
    assert all(torch.equal(a, b) for a, b in zip(host.state_dict().values(), before.state_dict().values(), strict=True))
    assert not host.training
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(host(x), before(x))
    own = {id(tensor) for tensor in host.state_dict(keep_vars=True).values()}
    assert not own & {id(tensor) for tensor in network.state_dict(keep_vars=True).values()}


@pytest.mark.parametrize("training", [False, True])
def test_the_network_is_in_the_host_s_mode(training):
    host = create_host("resnet20", num_classes=5, options={"width": 4}).train(training)
    network = convert(host, (3, 8, 8), cell=CellConfig(activation="prelu"))
    assert {name for name, layer in network.named_modules() if layer.training is not training} == set()


def test_a_searchable_network_has_every_candidate_in_every_cell():
    host = create_host("resnet20", num_classes=5, options={"width": 4})
    network = convert(host, (3, 8, 8), search=True, operations=["identity", "bin_conv_1x1"])
    cells = [layer for layer in network.modules() if isinstance(layer, Cell)]
    assert len(cells) == 18
    assert all(len(cell.edge_keys) == 5 for cell in cells)
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 5)


def test_cells_of_another_host_are_refused_by_name():
    host = create_host("resnet20", options={"width": 4})
    with pytest.raises(UserError, match=r'the cell "features\.0" is not in this host'):
        convert(host, (3, 8, 8), cells={"features.0": ()})
    with pytest.raises(UserError, match=r'the cell "layer1\.0\.conv1" of the host is missing'):
        convert(host, (3, 8, 8), cells={})


@pytest.mark.parametrize("bases", [1, 3])
def test_the_number_of_binary_weights_is_the_host_s_times_the_bases(bases):
    host = create_host("resnet20", options={"width": 4})
    network = convert(host, (3, 8, 8), cell=CellConfig(bases=bases))
    weights = sum(layer.weight.numel() for layer in network.modules() if isinstance(layer, BinaryConv2d))
    assert weights == bases * sum(p.numel() for name, p in host.named_parameters() if ".conv" in name)


@pytest.mark.parametrize("activation", ["prelu", "rprelu"])
def test_activation_of_an_addition_whose_branch_ends_real_has_the_channels_of_the_addition(activation):
    # At 32x32 the last stage of ResNet-50 acts on 1x1 maps: its 1x1 convolutions stay real.
    network = create_network("bireal_resnet50", input_shape=(3, 32, 32), activation=activation).eval()
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
