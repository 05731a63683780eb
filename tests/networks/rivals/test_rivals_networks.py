"""What every hand-made network of one base has to do: run, train all of it, two-sided signs, errors."""

import pytest
import torch
import torch.nn.functional as F

from nasb.binary import Binarize, BinaryConv2d, after_step, set_phase
from nasb.cells.architecture import Architecture, Edge
from nasb.cost import count
from nasb.errors import UserError
from nasb.networks import create_network, describe_network, host_defaults, is_rival, list_networks
from nasb.networks.registry import RIVALS

list_networks()  # registers
NAMES = [name for name in RIVALS if name.startswith(("bnn", "xnor", "irnet", "reactnet", "quicknet"))]  # single bases
SMALL = [name for name in NAMES if "stem_stride" in RIVALS[name].options()]
LARGE = [name for name in NAMES if name not in SMALL]
SMALLER = {"width": 8, "stem_stride": 1}
SHAPE = (3, 16, 16)


def test_names():
    assert [
        *("bnn_alexnet", "bnn_resnet18", "bnn_resnet20", "irnet_resnet18", "irnet_resnet20", "irnet_resnet34"),
        *("quicknet", "quicknet_large", "quicknet_small", "reactnet_a", "reactnet_resnet18", "reactnet_resnet20"),
        *("xnor_alexnet", "xnor_resnet18", "xnor_resnet20"),
    ] == NAMES
    for name in NAMES:
        assert is_rival(name)
        assert name in list_networks()
        assert describe_network(name).endswith("; binary, hand-made")
        imagenet = "resnet20" not in name
        assert host_defaults(name) == (((3, 224, 224), 1000) if imagenet else ((3, 32, 32), 10))
    assert not is_rival("resnet20")


@pytest.mark.parametrize("name", SMALL)
def test_every_network_runs_and_every_parameter_learns(name):
    network = create_network(name, num_classes=5, input_shape=SHAPE, **SMALLER)
    logits = network(torch.randn(3, *SHAPE))
    assert logits.shape == (3, 5)
    F.cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
    before = [parameter.detach().clone() for parameter in network.parameters()]
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    after_step(network)
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    set_phase(network, weights="real", activations="hardtanh")
    assert torch.isfinite(network(torch.randn(3, *SHAPE))).all()


@pytest.mark.parametrize("name", LARGE)
def test_large_networks_run_without_numbers(name):
    with torch.device("meta"):
        network = create_network(name)
        assert network(torch.zeros(2, 3, 224, 224)).shape == (2, 1000)


@pytest.mark.parametrize("name", SMALL)
def test_no_sign_sees_one_side_only(name):
    # The ResNets of ImageNet are left out: as published, max pooling lifts nearly all that their first sign sees.
    network = create_network(name, num_classes=5, input_shape=SHAPE, **SMALLER).train()
    shares = {}
    for key, layer in network.named_modules():
        if isinstance(layer, Binarize):
            layer.register_forward_hook(
                lambda module, inputs, output, key=key: shares.__setitem__(key, (output > 0).double().mean().item())
            )
    with torch.no_grad():
        network(torch.randn(16, *SHAPE))
    assert len(shares) >= 16
    assert all(0.02 < share < 0.98 for share in shares.values()), shares


@pytest.mark.parametrize("name", SMALL)
def test_one_binary_convolution_behind_each_sign_is_counted(name):
    network = create_network(name, input_shape=SHAPE, **SMALLER)
    found = count(network, SHAPE)
    assert found.uncounted == ()
    convs = {key for key, layer in network.named_modules() if isinstance(layer, BinaryConv2d)}
    assert convs <= {layer.name for layer in found.layers}
    assert found.bops == sum(layer.bops for layer in found.layers if layer.name in convs) > 0


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("reactnet_resnet20", {"widht": 8}, ["reactnet_resnet20", 'unknown option "widht"', "closest: width"]),
        ("irnet_resnet20", {"width": 0}, ["width is 0"]),
        ("bnn_resnet20", {"stem_stride": 0}, ["stem_stride is 0"]),
        ("xnor_resnet20", {"shortcut": "convs"}, ['unknown shortcut "convs"', "closest: conv"]),
        ("reactnet_a", {"width": 0}, ["width is 0"]),
        ("bnn_alexnet", {"width": 0}, ["bnn_alexnet: width is 0"]),
        ("xnor_alexnet", {"width": 100}, ["xnor_alexnet: width is 100", "multiple of 3"]),
        ("quicknet", {"stem_stride": 3}, ["stem_stride is 3", "1, 2, 4"]),
        ("quicknet", {"width": 6}, ["width is 6", "multiple of 4"]),
        ("quicknet_small", {"width": 0, "stem_stride": 1}, ["width is 0"]),
        ("reactnet_resnet18", {"width": 8}, ['unknown option "width"']),
        ("reactnet_resnet20", {"architecture": "a.json"}, ["an architecture is for nasb_"]),
    ],
)
def test_wrong_options_are_refused_by_name(name, options, words):
    with pytest.raises(UserError) as caught:
        create_network(name, **options)
    for word in words:
        assert word in str(caught.value)


def test_an_architecture_rebuilds_a_hand_made_network():
    architecture = Architecture(
        host="irnet_resnet20", options={"width": 8}, num_classes=4, input_shape=(1, 16, 16), cells={}
    )
    network = Architecture.from_dict(architecture.to_dict()).build()
    fresh = create_network("irnet_resnet20", num_classes=4, input_shape=(1, 16, 16), width=8)
    assert {k: v.shape for k, v in network.state_dict().items()} == {k: v.shape for k, v in fresh.state_dict().items()}
    with_cells = Architecture(
        host="irnet_resnet20", num_classes=4, input_shape=(1, 16, 16),
        cells={"stages.0.0.conv": (Edge(0, 2, "bin_conv_3x3"),)},
    )  # fmt: skip
    with pytest.raises(UserError, match="irnet_resnet20: is a hand-made binary network without cells"):
        with_cells.build()
