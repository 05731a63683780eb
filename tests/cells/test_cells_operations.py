"""Every registered operation: shapes, geometry, cost, start of gamma."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nasb.cells.adapt import ConvShape
from nasb.cells.cell import edge_shape
from nasb.cells.config import CellConfig
from nasb.cells.operations import NONE, OPERATIONS, free_operations, paid_operations
from nasb.cost import count

BUILT = [name for name in OPERATIONS if name != NONE]
PAID = {  # kernel, dilation: written down here, not read from the code
    "bin_conv_1x1": (1, 1),
    "bin_conv_3x3": (3, 1),
    "bin_conv_5x5": (5, 1),
    "dil_bin_conv_3x3": (3, 2),
    "dil_bin_conv_5x5": (5, 2),
}
HOSTS = [  # kernel, stride, padding, dilation of the host's convolution
    (3, 1, 1, 1),
    (3, 2, 1, 1),
    (1, 1, 0, 1),
    (1, 2, 0, 1),
    (7, 2, 3, 1),
    (5, 1, 2, 1),
    (3, 1, 2, 2),
    (3, 1, 0, 1),
    (4, 2, 1, 1),
]
SIZES = [(8, 8), (7, 9)]


def shape_of(kernel=3, stride=1, padding=1, dilation=1, size=(8, 8), in_channels=4, out_channels=4):
    return ConvShape(
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=(kernel, kernel),
        stride=(stride, stride),
        padding=(padding, padding),
        dilation=(dilation, dilation),
        in_size=size,
    )


def input_of(operation, shape):
    """Signs of the node for a paid operation, the adapted value for a free one."""
    if operation.paid:
        return torch.randn(2, shape.in_channels, *shape.in_size).sign()
    return torch.randn(2, shape.out_channels, *shape.out_size)


def test_the_registry_is_the_design_s_list():
    assert free_operations() == ["none", "avg_pool_3x3", "identity", "max_pool_3x3"]
    assert paid_operations() == ["none", *PAID]
    assert set(OPERATIONS) == set(free_operations()) | set(paid_operations())


@pytest.mark.parametrize(("size", "channels"), [((8, 8), (4, 8)), ((7, 9), (8, 4)), ((9, 7), (4, 6)), ((8, 7), (4, 4))])
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", BUILT)
def test_an_operation_that_fits_gives_the_shape_of_the_host_s_convolution(name, host, size, channels):
    shape = shape_of(*host, size, *channels)
    operation = OPERATIONS[name]
    if not operation.fits(shape):
        # Only what would need negative padding, or a host's even kernel, may be left out.
        kernel, _, padding, dilation = host
        reach = PAID[name][1] * (PAID[name][0] - 1) // 2
        assert kernel % 2 == 0 or padding + reach < dilation * (kernel - 1) // 2
        return
    y = operation.build(shape, CellConfig())(input_of(operation, shape))
    assert y.shape == (2, shape.out_channels, *shape.out_size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("host", [(3, 1, 1, 1), (3, 2, 1, 1), (7, 2, 3, 1), (1, 2, 0, 1)])
@pytest.mark.parametrize("name", BUILT)
def test_bops_are_what_the_counter_finds(name, host, size):
    shape = shape_of(*host, size, 4, 6)
    operation = OPERATIONS[name]
    module = operation.build(shape, CellConfig())
    found = count(module, tuple(input_of(operation, shape).shape[1:]))
    assert (found.bops, found.flops, found.uncounted) == (operation.bops(shape), 0, ())
    assert (found.bops > 0) is operation.paid


@pytest.mark.parametrize("gain", [1 / 3, 0.7])
@pytest.mark.parametrize("name", BUILT)
def test_gamma_starts_at_edge_gain_and_beta_at_0(name, gain):
    module = OPERATIONS[name].build(shape_of(), CellConfig(edge_gain=gain))
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == 1
    torch.testing.assert_close(norms[0].weight.data, torch.full((4,), gain))
    assert not norms[0].bias.any()


@pytest.mark.parametrize("pad_value", [-1, 0, 1])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", PAID)
def test_a_paid_operation_is_the_plain_convolution_of_its_kernel_and_dilation(name, stride, size, pad_value, randomize):
    kernel, dilation = PAID[name]
    module = randomize(OPERATIONS[name].build(shape_of(3, stride, 1, 1, size, 4, 6), CellConfig(pad_value=pad_value)))
    module.eval()
    b = torch.randn(2, 4, *size).sign()
    reach = dilation * (kernel - 1) // 2
    padded = F.pad(b, (reach,) * 4, value=float(pad_value))
    weight = torch.where(module.conv.weight >= 0, 1.0, -1.0)
    accumulators = F.conv2d(padded, weight, None, stride, 0, dilation)
    bn = module.bn
    expected = F.batch_norm(accumulators, bn.running_mean, bn.running_var, bn.weight, bn.bias)
    torch.testing.assert_close(module(b), expected)


def test_pooling_operations_pool(randomize):
    x = torch.randn(2, 4, 5, 6)
    for name, infinite, reduce in (
        ("avg_pool_3x3", float("nan"), torch.nanmean),
        ("max_pool_3x3", -float("inf"), torch.amax),
    ):
        module = randomize(OPERATIONS[name].build(shape_of(size=(5, 6)), CellConfig())).eval()
        windows = F.pad(x, (1, 1, 1, 1), value=infinite).unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)
        bn = module.bn
        expected = F.batch_norm(reduce(windows, -1), bn.running_mean, bn.running_var, bn.weight, bn.bias)
        torch.testing.assert_close(module(x), expected)


CENTRED = [
    (name, host)
    for name in PAID
    for host in [(3, 2, 1, 1), (7, 2, 3, 1), (5, 1, 2, 1), (3, 1, 2, 2), (3, 1, 0, 1)]
    if (name, host) != ("bin_conv_1x1", (3, 1, 0, 1))  # would need negative padding
]


@pytest.mark.parametrize(("name", "host"), CENTRED)
def test_a_paid_operation_is_centred_where_the_host_s_convolution_is(name, host):
    kernel, _, padding, dilation = host
    shape = shape_of(*host)
    assert OPERATIONS[name].fits(shape)
    conv = OPERATIONS[name].build(shape, CellConfig()).conv
    centre = -conv.padding[0] + conv.dilation[0] * (conv.kernel_size[0] - 1) / 2
    assert centre == -padding + dilation * (kernel - 1) / 2


def test_edges_out_of_inside_nodes_keep_the_shape():
    shape = edge_shape(shape_of(3, 2, 1, 1, (7, 9), 4, 6), source=1)
    assert (shape.in_channels, shape.out_channels) == (6, 6)
    assert shape.in_size == shape.out_size == (4, 5)
    assert all(OPERATIONS[name].fits(shape) for name in OPERATIONS)
