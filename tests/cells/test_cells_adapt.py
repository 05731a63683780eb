"""adapt(x) and the shortcut made of it, against loops over pixels and channels."""

import pytest
import torch
import torch.nn.functional as F

from nasb.cells.adapt import Adapt, AvgMaxShortcut, ConvShape, ConvShortcut


def slow_adapt(x, out_channels, stride, wanted):
    """Average each window pixel by pixel; rows and columns behind the last one repeat it, spare ones go evenly."""
    images, channels, height, width = x.shape
    spare = [max(have - want * s, 0) // 2 for have, want, s in zip((height, width), wanted, stride, strict=True)]
    pooled = torch.zeros(images, channels, *wanted)
    for i in range(wanted[0]):
        for j in range(wanted[1]):
            for a in range(stride[0]):
                for b in range(stride[1]):
                    row = min(spare[0] + i * stride[0] + a, height - 1)
                    column = min(spare[1] + j * stride[1] + b, width - 1)
                    pooled[:, :, i, j] += x[:, :, row, column] / (stride[0] * stride[1])
    y = torch.zeros(images, out_channels, *wanted)
    for c in range(max(channels, out_channels)):
        if out_channels >= channels:
            y[:, c] = pooled[:, c % channels]
        else:
            y[:, c % out_channels] += pooled[:, c] * out_channels / channels
    return y


def shape_of(in_channels=4, out_channels=4, kernel=3, stride=1, padding=1, dilation=1, size=(8, 8)):
    return ConvShape(
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=(kernel, kernel),
        stride=(stride, stride),
        padding=(padding, padding),
        dilation=(dilation, dilation),
        in_size=size,
    )


GEOMETRIES = [  # kernel, stride, padding, dilation
    (3, 1, 1, 1),
    (3, 2, 1, 1),
    (1, 2, 0, 1),
    (2, 2, 0, 1),
    (7, 2, 3, 1),
    (3, 3, 1, 1),
    (3, 1, 0, 1),
    (5, 1, 1, 1),
    (3, 1, 0, 2),
    (3, 2, 0, 1),
]


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (9, 6)])
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), GEOMETRIES)
@pytest.mark.parametrize(("in_channels", "out_channels"), [(4, 4), (4, 8), (4, 6), (6, 3), (6, 2)])
def test_adapt_equals_the_slow_loops_and_has_the_size_of_the_convolution(
    kernel, stride, padding, dilation, size, in_channels, out_channels
):
    shape = shape_of(in_channels, out_channels, kernel, stride, padding, dilation, size)
    x = torch.randn(2, in_channels, *size)
    host = F.conv2d(x, torch.zeros(out_channels, in_channels, kernel, kernel), None, stride, padding, dilation)
    assert shape.out_size == tuple(host.shape[-2:])
    y = Adapt(shape)(x)
    assert y.shape == host.shape
    torch.testing.assert_close(y, slow_adapt(x, out_channels, (stride, stride), shape.out_size))


def test_different_strides_of_height_and_width():
    shape = ConvShape(in_channels=2, out_channels=2, kernel_size=(3, 3), stride=(2, 1), padding=(1, 1), in_size=(7, 5))
    x = torch.randn(2, 2, 7, 5)
    torch.testing.assert_close(Adapt(shape)(x), slow_adapt(x, 2, (2, 1), (4, 5)))


def test_the_same_shape_is_the_input_itself():
    x = torch.randn(2, 4, 8, 8)
    assert Adapt(shape_of())(x) is x


def test_another_resolution_than_at_construction():
    x = torch.randn(1, 4, 11, 13)
    y = Adapt(shape_of(4, 8, stride=2))(x)
    torch.testing.assert_close(y, slow_adapt(x, 8, (2, 2), (6, 7)))


@pytest.mark.parametrize("factor", [2, 3])
def test_averaging_after_repeating_is_the_identity(factor):
    x = torch.randn(2, 5, 4, 4)
    up = Adapt(shape_of(5, 5 * factor, size=(4, 4)))(x)
    assert up.shape[1] == 5 * factor
    torch.testing.assert_close(Adapt(shape_of(5 * factor, 5, size=(4, 4)))(up), x)


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "possible"),
    [(4, 4, True), (4, 7, True), (6, 3, True), (6, 4, False), (7, 6, False)],
)
def test_no_adaption_where_channels_do_not_divide(in_channels, out_channels, possible):
    assert Adapt.possible(in_channels, out_channels) is possible


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
@pytest.mark.parametrize("training", [False, True])
def test_the_conv_shortcut_is_pooling_then_1x1_then_batch_norm(size, training, randomize):
    shape = shape_of(4, 6, stride=2, size=size)
    shortcut = randomize(ConvShortcut(shape)).train(training)
    state = {key: value.clone() for key, value in shortcut.state_dict().items()}
    x = torch.randn(3, 4, *size)
    pooled = slow_adapt(x, 4, (2, 2), shape.out_size)
    expected = F.batch_norm(
        torch.einsum("nchw,oc->nohw", pooled, state["conv.weight"][:, :, 0, 0]),
        state["bn.running_mean"],
        state["bn.running_var"],
        state["bn.weight"],
        state["bn.bias"],
        training,
    )
    torch.testing.assert_close(shortcut(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("out_channels", "stride"), [(8, 2), (12, 2), (16, 1), (6, 3)])
def test_channels_are_added_by_max_pooling(out_channels, stride, training, randomize):
    shape = shape_of(4, out_channels, stride=stride, size=(9, 9))
    shortcut = randomize(AvgMaxShortcut(shape)).train(training)
    state = {key: value.clone() for key, value in shortcut.bn.state_dict().items()}
    x = torch.randn(3, 4, 9, 9)
    size = shape.out_size[0]
    padded = F.pad(x, (0, size * stride - 9, 0, size * stride - 9), mode="replicate") if size * stride > 9 else x
    windows = padded.reshape(3, 4, size, stride, size, stride)
    largest = windows.amax((3, 5))
    if out_channels < 8:
        largest = (largest[:, :2] + largest[:, 2:]) / 2
    largest = torch.cat([largest] * 3, 1)[:, : out_channels - 4]
    norm = (state["running_mean"], state["running_var"], state["weight"], state["bias"], training)
    expected = torch.cat([windows.mean((3, 5)), F.batch_norm(largest, *norm)], 1)
    torch.testing.assert_close(shortcut(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "possible"),
    [(4, 8, True), (4, 6, True), (4, 7, False), (4, 4, False), (8, 4, False)],
)
def test_channels_can_be_added(in_channels, out_channels, possible):
    assert AvgMaxShortcut.possible(shape_of(in_channels, out_channels)) is possible
