"""torch.compile, deepcopy and state dicts of whole binary networks, made by hand and by convert()."""

import copy
import itertools
import shutil

import pytest
import torch
from torch import nn

from nasb.binary import Binarize, BinaryConv2d, BinaryLinear, RPReLU, set_phase
from nasb.cells import CellConfig
from nasb.cells.architecture import Edge
from nasb.networks.convert import convert

EDGES = (
    Edge(0, 1, "max_pool_3x3"),
    Edge(0, 1, "bin_conv_3x3"),
    Edge(0, 2, "avg_pool_3x3"),
    Edge(1, 2, "dil_bin_conv_3x3"),
)


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def converted(search=False):
    """Two cells, the first with stride; two bases, thresholds, scales and shifts that are learned."""
    torch.manual_seed(0)
    units = [
        (nn.Conv2d(channels, 8, 3, stride, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        for channels, stride in ((3, 1), (8, 2), (8, 1))
    ]
    host = nn.Sequential(*itertools.chain(*units), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    config = CellConfig(bases=2, activation="rprelu", weight_scale="learned")
    cells = None if search else {"3": EDGES, "6": ()}
    return convert(host, (3, 8, 8), cell=config, cells=cells, search=search)


def by_hand():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        Binarize(8, learned=True, initial=0.1),
        BinaryConv2d(8, 8, 3, 2, 1, groups=2, pad_value=1, scale="learned"),
        nn.BatchNorm2d(8),
        RPReLU(8),
        Binarize(initial=-0.1),
        BinaryConv2d(8, 4, 3, padding=1, bias=True),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        Binarize(surrogate="tanh_annealed"),
        BinaryLinear(4 * 16, 5, bias=True, scale="learned"),
    )


NETWORKS = [(by_hand, (4, 3, 8, 8)), (converted, (4, 3, 8, 8))]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def output_and_gradients(run, network, x):
    network.zero_grad()
    y = run(x)
    y.square().sum().backward()
    # In the real phase learned scales have no part in the output, and no gradient.
    used = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    return y.detach(), used


def assert_compiled_is_eager(network, x, backend):
    twin = copy.deepcopy(network)
    expected, gradients = output_and_gradients(network, network, x)
    found, compiled_gradients = output_and_gradients(torch.compile(twin, backend=backend, fullgraph=True), twin, x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert compiled_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(compiled_gradients[name], gradient, rtol=1e-3, atol=1e-3, msg=name)
    for (name, buffer), other in zip(network.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(other, buffer, msg=name)


@pytest.mark.parametrize(("build", "shape"), NETWORKS)
def test_compiled_by_aot_eager_is_eager(build, shape):
    assert_compiled_is_eager(build(), seeded(*shape), "aot_eager")


def test_compiled_by_aot_eager_is_eager_in_the_real_phase():
    network = by_hand()
    set_phase(network, weights="real", activations="hardtanh")
    assert_compiled_is_eager(network, seeded(4, 3, 8, 8), "aot_eager")


@pytest.mark.slow
def test_compiled_by_inductor_is_eager():
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile's inductor needs a C++ compiler (g++ or clang++) for the CPU; none is on the PATH")
    # One layer at a time: in a whole network a last-bit difference flips signs (design: compare layers, not runs).
    network, x = by_hand().eval(), seeded(4, 3, 8, 8)
    compiled = torch.compile(network[2:4], fullgraph=True)
    real = network[:2](x).detach()
    torch.testing.assert_close(compiled(real), network[2:4](real))
    gradients = []
    for run in (compiled, network[2:4]):
        network.zero_grad()  # to None: the former gradients stay as they are
        run(real).square().sum().backward()
        gradients.append([parameter.grad for parameter in network[2:4].parameters()])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("build", "shape"), NETWORKS)
def test_deepcopy_and_state_dict_round_trip(build, shape):
    network, x = build(), seeded(*shape)
    network(x)
    twin = copy.deepcopy(network)
    fresh = build()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(1.0)
    fresh.load_state_dict(network.state_dict())
    expected = network.eval()(x)
    assert torch.equal(twin.eval()(x), expected)
    assert torch.equal(fresh.eval()(x), expected)
    set_phase(twin, weights="real", activations="tanh")
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    assert torch.equal(network(x), expected)


def test_the_state_has_thresholds_and_scales_and_printing_says_what_stands_there():
    network = by_hand()
    assert {"2.threshold", "3.learned_scale", "6.threshold", "11.learned_scale"} <= set(network.state_dict())
    assert "threshold=learned, surrogate=polynomial, phase=sign" in str(network)
    assert "pad_value=1, scale=learned, phase=binary" in str(network)


def test_a_searchable_network_survives_deepcopy_and_state_dict():
    network, other, x = converted(search=True).eval(), converted(search=True).eval(), seeded(2, 3, 8, 8)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("alpha"):
                parameter.copy_(seeded(*parameter.shape))
    expected = network(x)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(x), expected)
    assert torch.equal(copy.deepcopy(network)(x), expected)
