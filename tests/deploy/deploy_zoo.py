"""Networks that convert() has to take: torchvision's, narrow or short where that is an option, and plain ones."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models
from torchvision.models.densenet import DenseNet
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vgg import VGG, make_layers

CLASSES = 7


def vgg11_bn():
    with torch.device("meta"):  # its head alone has 123 million weights
        network = VGG(make_layers([8, "M", 16, "M", 24, 24, "M", 32, 32, "M", 32, 32, "M"], batch_norm=True))
        network.classifier = nn.Sequential(nn.Dropout(), nn.Linear(32 * 7 * 7, CLASSES))
    network.to_empty(device="cpu")
    for layer in network.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    return network


def regnet_y():
    params = BlockParams.from_init_params(depth=4, w_0=16, w_a=16.0, w_m=2.2, group_width=8, se_ratio=0.25)
    return RegNet(params, num_classes=CLASSES, stem_width=16)


def efficientnet():
    block = partial(MBConvConfig, width_mult=0.5, depth_mult=1.0)
    settings = [block(1, 3, 1, 32, 16, 1), block(6, 3, 2, 16, 24, 2), block(6, 5, 2, 24, 40, 2)]
    return EfficientNet(settings, dropout=0.2, stochastic_depth_prob=0.2, num_classes=CLASSES)


def plain():
    """Three activations, an asymmetric and a grouped kernel, padding by name, and no batch norm in one place."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU6(),
        nn.Conv2d(16, 32, (3, 1), 2, (1, 0)), nn.BatchNorm2d(32), nn.SiLU(),
        nn.Conv2d(32, 32, (1, 5), padding=(0, 2), groups=2), nn.BatchNorm2d(32), nn.Hardswish(),
        nn.MaxPool2d(2), nn.Conv2d(32, 48, 3, padding="same", bias=False), nn.BatchNorm2d(48), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(48, CLASSES),
    )  # fmt: skip


class Functional(nn.Module):
    """Weights in functional calls, layers that are called twice, chunks, shapes that are read, division."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.twice = nn.Conv2d(16, 16, 3, 1, 1, bias=False)
        self.weight = nn.Parameter(torch.randn(24, 8, 3, 3) / 8)
        self.activation = nn.ReLU(inplace=True)
        self.fc = nn.Linear(40, CLASSES)

    def forward(self, x):
        torch._assert(x.shape[1] == 3, "RGB")
        bn = self.bn
        x = F.conv2d(x, self.stem.weight, None, 2, 1)
        x = self.activation(F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, self.training))
        x = self.activation(self.twice(self.activation(self.twice(x))))
        left, right = x.chunk(2, 1)
        right = F.silu(F.conv2d(right, self.weight, padding=1)) / 2
        x = torch.cat([left, right, left - 0.5], dim=1)
        x = F.dropout(F.adaptive_avg_pool2d(x, x.shape[-1] // x.shape[-1]), 0.1, self.training)
        return self.fc(x.view(x.size(0), -1))


class Deciding(nn.Module):
    """A forward that decides by the shape of a value, which torch.fx cannot follow and torch.export can."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.conv1, self.bn1 = nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)
        self.act, self.drop, self.fc = nn.Hardswish(inplace=True), nn.Dropout(), nn.Linear(32, CLASSES)

    def forward(self, x):
        x = F.relu6(self.bn0(self.stem(x)))
        if x.shape[-1] > 8:
            x = F.max_pool2d(x, 2)
        x = self.act(x + self.bn1(self.conv1(x)))
        x = F.silu(self.bn2(self.conv2(x)), inplace=True)
        return self.fc(self.drop(x.mean([2, 3])))


ZOO = {
    "resnet18": lambda: ResNet(BasicBlock, [1, 1, 1, 1], CLASSES),
    "resnet50": lambda: ResNet(Bottleneck, [1, 1, 1, 1], CLASSES, width_per_group=16),
    "resnext50_32x4d": lambda: ResNet(Bottleneck, [1, 1, 1, 1], CLASSES, groups=8, width_per_group=4),
    "wide_resnet50_2": lambda: ResNet(Bottleneck, [1, 1, 1, 1], CLASSES, width_per_group=32),
    "vgg11_bn": vgg11_bn,
    "densenet121": lambda: DenseNet(8, (2, 3, 2), 16, bn_size=2, drop_rate=0.1, num_classes=CLASSES),
    "googlenet": lambda: models.googlenet(num_classes=CLASSES, init_weights=False, aux_logits=False),
    "mobilenet_v2": lambda: models.mobilenet_v2(num_classes=CLASSES, width_mult=0.25),
    "regnet_y_400mf": regnet_y,
    "squeezenet1_1": lambda: models.squeezenet1_1(num_classes=CLASSES),
    "efficientnet_b0": efficientnet,
    "plain": plain,
    "functional": Functional,
    "deciding": Deciding,
}
