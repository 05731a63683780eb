"""Hand-written functional Bi-Real networks that read a state dict and know no class of nasb."""

import torch
import torch.nn.functional as F


def sign(x):
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def norm(x, state, name, training):
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    if training:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    view = (1, -1, 1, 1)
    scaled = (x - mean.view(view)) / (var.view(view) + 1e-5).sqrt()
    return scaled * state[f"{name}.weight"].view(view) + state[f"{name}.bias"].view(view)


def branch(x, state, cell, training, stride=1, padding=1):
    """bn(conv(sign(x), sign(w)))."""
    y = F.conv2d(sign(x), sign(state[f"{cell}.backbone.0.conv.weight"]), None, stride, padding)
    return norm(y, state, f"{cell}.backbone.0.bn", training)


def conv_shortcut(x, state, name, training, stride):
    x = F.avg_pool2d(x, stride) if stride > 1 else x
    return norm(F.conv2d(x, state[f"{name}.conv.weight"]), state, f"{name}.bn", training)


def resnet20(x, state, training, *, conv_shortcuts=False, slope=None):
    """Bi-Real ResNet-20; `slope`: with a PReLU behind the stem and behind each cell, named by these functions."""

    def activate(y, name):
        return y if slope is None else F.prelu(y, state[name])

    x = norm(F.conv2d(x, state["conv1.weight"], None, 1, 1), state, "bn1", training)
    x = activate(x, f"{slope}.weight")
    for stage in (1, 2, 3):
        for block in range(3):
            for conv in (1, 2):
                cell = f"layer{stage}.{block}.conv{conv}"
                reduces = stage > 1 and block == 0 and conv == 1
                shortcut = x
                if reduces and conv_shortcuts:
                    shortcut = conv_shortcut(x, state, f"{cell}.shortcut", training, 2)
                elif reduces:
                    pooled = F.avg_pool2d(x, 2)
                    shortcut = torch.cat([pooled, pooled], 1)
                x = shortcut + branch(x, state, cell, training, 2 if reduces else 1)
                x = activate(x, f"{cell}.activation.weight")
    return F.linear(x.mean((2, 3)), state["linear.weight"], state["linear.bias"])


def bottleneck(x, state, block, training):
    """ResNet-50's first block of a stage: two cells with shortcuts of their own, then the block's addition."""
    narrow = state[f"{block}.conv1.backbone.0.conv.weight"].shape[0]
    averaged = x.unflatten(1, (-1, narrow)).mean(1)
    y = branch(x, state, f"{block}.conv1", training, 1, 0) + averaged
    y = branch(y, state, f"{block}.conv2", training, 2, 1) + F.avg_pool2d(y, 2)
    y = branch(y, state, f"{block}.conv3", training, 1, 0)
    return y + conv_shortcut(x, state, f"{block}.downsample.0", training, 2)
