"""The blocks of hand-made networks, written anew as functions of a state dict; they know no class of nasb."""

import torch
import torch.nn.functional as F


def sign(x):
    return torch.where(x >= 0, 1.0, -1.0)


def channels(values):
    return values.view(1, -1, 1, 1)


def norm(x, s, name):
    scaled = (x - channels(s[f"{name}.running_mean"])) / (channels(s[f"{name}.running_var"]) + 1e-5).sqrt()
    return scaled * channels(s[f"{name}.weight"]) + channels(s[f"{name}.bias"])


def rprelu(x, s, name):
    y = x + channels(s[f"{name}.shift_in"])
    return torch.where(y >= 0, y, y * channels(s[f"{name}.slope"])) + channels(s[f"{name}.shift_out"])


def rsign(x, s, name):
    return torch.where(x >= channels(s[f"{name}.threshold"]), 1.0, -1.0)


def scaled_conv(b, w, stride=1, padding=1):
    """Signs times mean |w| per filter: Bi-Real Net, ReActNet, XNOR-Net."""
    return F.conv2d(b, sign(w) * w.abs().mean((1, 2, 3), keepdim=True), None, stride, padding)


def libra_conv(b, w, stride=1):
    """IR-Net."""
    z = (w - w.mean((1, 2, 3), keepdim=True)) / w.flatten(1).std(1).view(-1, 1, 1, 1)
    return F.conv2d(b, sign(z) * 2.0 ** z.abs().mean((1, 2, 3), keepdim=True).log2().round(), None, stride, 1)


def bireal_shortcut(x, s, name, stride):
    if f"{name}.conv.weight" not in s:
        return x
    return norm(F.conv2d(F.avg_pool2d(x, stride), s[f"{name}.conv.weight"]), s, f"{name}.bn")


def strided_shortcut(x, s, name, stride):
    return x if f"{name}.0.weight" not in s else norm(F.conv2d(x, s[f"{name}.0.weight"], None, stride), s, f"{name}.1")


def react(x, s, stride):
    y = norm(scaled_conv(rsign(x, s, "binarize"), s["conv.weight"], stride), s, "bn")
    return rprelu(y + bireal_shortcut(x, s, "shortcut", stride), s, "activation")


def react_a(x, s, stride):
    y = norm(scaled_conv(rsign(x, s, "binarize1"), s["conv1.weight"], stride), s, "bn1")
    u = rprelu(y + (F.avg_pool2d(x, 2) if stride == 2 else x), s, "activation1")
    v = rsign(u, s, "binarize2")
    copies = 2 if "conv2.1.weight" in s else 1
    parts = [norm(scaled_conv(v, s[f"conv2.{i}.weight"], 1, 0), s, f"bn2.{i}") + u for i in range(copies)]
    return rprelu(torch.cat(parts, 1), s, "activation2")


def libra(x, s, stride):
    y = norm(libra_conv(sign(x), s["conv.weight"], stride), s, "bn")
    return (y + strided_shortcut(x, s, "shortcut", stride)).clamp(-1, 1)


def bnn(x, s, stride):
    y = norm(F.conv2d(sign(x), sign(s["conv1.weight"]), None, stride, 1), s, "bn1").clamp(-1, 1)
    y = norm(F.conv2d(sign(y), sign(s["conv2.weight"]), None, 1, 1), s, "bn2")
    return (y + strided_shortcut(x, s, "shortcut", stride)).clamp(-1, 1)


def xnor(x, s, stride):
    y = scaled_conv(sign(norm(x, s, "bn1")), s["conv1.weight"], stride)
    y = scaled_conv(sign(norm(y, s, "bn2")), s["conv2.weight"])
    return y + strided_shortcut(x, s, "shortcut", stride)


def quick(x, s, stride):
    y = F.conv2d(F.pad(sign(x), (1, 1, 1, 1), value=1.0), sign(s["conv.weight"]))
    return norm(y.clamp_min(0), s, "bn") + x


def quick_transition(x, s, stride):
    kernel = torch.tensor([1.0, 2.0, 1.0])
    pooled = F.max_pool2d(x.clamp_min(0), 2, 1)
    blur = (kernel[:, None] * kernel / 16).expand(x.shape[1], 1, 3, 3)
    blurred = F.conv2d(pooled, blur, None, 2, 1, groups=x.shape[1])
    return norm(F.conv2d(blurred, s["3.weight"]), s, "4")
