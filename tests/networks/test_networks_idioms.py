"""Forms in which users write the same things: they convert alike, compute what they say, and are exported."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nasb
from nasb.cells.cell import Cell
from nasb.errors import UserError
from nasb.networks.plan import plan_of
from nasb.networks.tracing import trace

SHAPE = (3, 16, 16)


def unit(in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class Small(nn.Module):
    """A stem, a body, a head; what differs is the body, or how the head pools."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = unit(3, 8), nn.ModuleList([unit(8, 8), unit(8, 8)])
        self.fc = nn.Linear(8, 10)

    def inner(self, x: Tensor) -> Tensor:
        for block in self.body:
            x = F.relu(block(x))
        return x

    def pool(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.inner(F.relu(self.stem(x)))))  # type: ignore[no-any-return]


class HandWrittenHardswish(Small):
    def inner(self, x: Tensor) -> Tensor:
        for block in self.body:
            x = block(x)
            x = x * F.relu6(x + 3) / 6
        return x


class HandWrittenGate(Small):
    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(8, 8, 1)

    def inner(self, x: Tensor) -> Tensor:
        for block in self.body:
            x = F.relu(block(x))
            x = x * (F.relu6(self.squeeze(F.adaptive_avg_pool2d(x, 1)) + 3) / 6)
        return x


def clamps(network: nn.Module) -> int:
    """How often a network calls ReLU6."""
    assert isinstance(network, torch.fx.GraphModule)
    return sum(node.target is F.relu6 for node in network.graph.nodes)


def test_a_hand_written_hardswish_is_no_activation_in_front_of_a_sign() -> None:
    network = nasb.convert(HandWrittenHardswish(), SHAPE)
    assert sum(isinstance(layer, Cell) for layer in network.modules()) == 2
    assert clamps(network) == 2


def test_the_clamp_of_a_gate_stays_and_the_activations_go() -> None:
    network = nasb.convert(HandWrittenGate(), SHAPE)
    assert clamps(network) == 2
    assert isinstance(network, torch.fx.GraphModule)
    assert not any(node.target is F.relu for node in network.graph.nodes)


class TwoMeans(Small):
    def pool(self, x: Tensor) -> Tensor:
        return x.mean(3).mean(2)


class TwoMeansFromTheFirst(Small):
    def pool(self, x: Tensor) -> Tensor:
        return torch.mean(x, dim=2).mean(-1)


class PoolingOfItsSize(Small):
    def pool(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, x.size()[2:]).flatten(1)


class EverySecondPixel(Small):
    def pool(self, x: Tensor) -> Tensor:
        return super().pool(x[..., ::2, ::2])


@pytest.mark.parametrize("kind", [TwoMeans, TwoMeansFromTheFirst, PoolingOfItsSize, EverySecondPixel, HandWrittenGate])
def test_they_are_exported(kind: type[Small], tmp_path: Path) -> None:
    torch.manual_seed(0)
    host = kind().eval()
    x = torch.randn(2, *SHAPE)
    torch.testing.assert_close(trace(kind().eval(), SHAPE)(x).shape, host(x).shape)
    nasb.export_onnx(nasb.convert(host, SHAPE).eval(), tmp_path / "model.onnx", SHAPE)  # which compares what it wrote


class Block(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv1, self.conv2 = how, unit(8, 16, stride=2), unit(16, 16)
        self.downsample = unit(8, 16, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.how == "" else getattr(x, self.how)()
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.downsample(shortcut))


def resnet(how: str = "") -> nn.Module:
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)]
    return nn.Sequential(unit(3, 8), nn.ReLU(), Block(how), *head)


@pytest.mark.parametrize("how", ["clone", "contiguous", "detach"])
def test_a_shortcut_that_is_copied_is_a_shortcut(how: str) -> None:
    plain, copied = nasb.convert(resnet(), SHAPE).eval(), nasb.convert(resnet(how), SHAPE).eval()
    assert plain.state_dict().keys() == copied.state_dict().keys()
    x = torch.randn(2, *SHAPE)
    assert torch.equal(plain(x), copied(x))


@pytest.mark.parametrize("shortcut", ["auto", "adapt", "avgmax"])
def test_a_shortcut_that_is_kept_stays_as_it_is(shortcut: str) -> None:
    cell = nasb.CellConfig(shortcut=shortcut)
    network = nasb.convert(resnet(), SHAPE, cell=cell, keep_real=["*downsample*"])
    kept = network.get_submodule("2.downsample.0")
    assert isinstance(kept, nn.Conv2d)
    assert kept.stride == (2, 2)
    line = next(line for line in str(plan_of(network)).splitlines() if "downsample" in line)
    assert "asked: keep_real" in line


class Bottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.conv, self.wide = unit(8, 4, 1), unit(4, 4, stride=2), unit(4, 16, 1)
        self.downsample = unit(8, 16, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.wide(F.relu(self.conv(F.relu(self.narrow(x))))) + self.downsample(x))


class TwoViews(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.fc = unit(3, 8), Bottleneck(), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        views = [self.block(F.relu(self.stem(view))) for view in (x[:, :3], x[:, 3:])]
        return self.fc(F.adaptive_avg_pool2d(torch.cat(views, 1), 1).flatten(1))  # type: ignore[no-any-return]


def test_a_block_that_is_called_twice_has_its_shortcut_twice(tmp_path: Path) -> None:
    shape = (6, 16, 16)
    network = nasb.convert(TwoViews(), shape).eval()
    assert network(torch.randn(2, *shape)).shape == (2, 10)
    nasb.export_onnx(network, tmp_path / "model.onnx", shape)


class TwoSettings(Small):
    """One kernel, read by two functional calls; its owner has another layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Module()
        self.shared.kernel = nn.Parameter(torch.randn(8, 8, 3, 3))
        self.shared.bn = nn.BatchNorm2d(8)

    def inner(self, x: Tensor) -> Tensor:
        kernel = self.shared.kernel
        y = F.conv2d(x, kernel, padding=1) + F.conv2d(x, kernel, padding=2, dilation=2)  # type: ignore[arg-type]
        return F.relu(self.shared.bn(super().inner(y)))  # type: ignore[operator]


class TwoSettingsOfALayer(Small):
    """The same with a layer of its own as the owner, which is called, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)

    def inner(self, x: Tensor) -> Tensor:
        y = self.conv(x) + F.conv2d(x, self.conv.weight, padding=2, dilation=2)
        return super().inner(y + F.conv2d(x, self.conv.weight, padding=1))


@pytest.mark.parametrize("kind", [TwoSettings, TwoSettingsOfALayer])
def test_a_kernel_may_be_read_with_two_settings(kind: type[Small]) -> None:
    torch.manual_seed(0)
    host, x = kind().eval(), torch.randn(2, *SHAPE)
    expected = host(x)
    assert nasb.convert(host, SHAPE).eval()(x).shape == expected.shape
    torch.testing.assert_close(trace(host, SHAPE)(x), expected)


class TwoNorms(TwoViews):
    """The shared 1x1 of a shortcut has a batch norm for each view."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        views, block = [], self.block
        for view, norm in zip((x[:, :3], x[:, 3:]), self.norms, strict=True):
            y = F.relu(self.stem(view))
            branch = block.wide(F.relu(block.conv(F.relu(block.narrow(y)))))
            views.append(F.relu(branch + norm(block.downsample[0](y))))
        return self.fc(F.adaptive_avg_pool2d(torch.cat(views, 1), 1).flatten(1))  # type: ignore[no-any-return]


def test_a_shortcut_with_two_batch_norms_is_refused() -> None:
    with pytest.raises(UserError, match=r"calls of block\.downsample\.0 have different batch norms"):
        nasb.convert(TwoNorms(), (6, 16, 16))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weight_norm_of_the_old_kind_is_refused_with_what_to_do() -> None:
    host = Small()
    torch.nn.utils.weight_norm(host.fc)
    host(torch.randn(2, *SHAPE))
    with pytest.raises(UserError, match=r"Small cannot be copied: .*remove_weight_norm"):
        nasb.convert(host, SHAPE)


class Losses(Small):
    """A forward that gives a loss where it is given targets, as many libraries write it."""

    def forward(
        self, x: Tensor, targets: Tensor | None = None, scale: float = 1.0, *, features: bool = False, **other: object
    ) -> Tensor:
        y = self.stem(x)
        for body in self.body:
            y = body(y)
        if features:
            return y
        y = self.fc(y.mean((2, 3))) * scale
        return y if targets is None else F.cross_entropy(y, targets)


def test_arguments_keep_their_defaults(tmp_path: Path) -> None:
    torch.manual_seed(0)
    host = Losses().eval()
    images = torch.randn(2, *SHAPE)
    torch.testing.assert_close(trace(copy.deepcopy(host), SHAPE)(images), host(images))
    binary = nasb.convert(host, SHAPE)
    assert plan_of(binary).becoming("cell") == ["body.0.0", "body.1.0"]
    assert nasb.export_onnx(binary, tmp_path / "binary.onnx", SHAPE).verification is not None
    assert nasb.export_onnx(host, tmp_path / "real.onnx", SHAPE).verification is not None
