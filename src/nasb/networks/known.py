"""What convert() knows: layers and operations by what they do to the values that pass through them.

Everything else is refused by its name, before any training, or left as it is where `keep_real` names it.
"""

import operator
from fnmatch import fnmatchcase

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn
from torchvision.ops import StochasticDepth

from nasb.networks.resnet_cifar import OptionAShortcut

ACTIVATION_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.Hardtanh, nn.Hardswish, nn.SiLU, nn.GELU, nn.ELU, nn.Mish, nn.Tanh,
)  # fmt: skip
ACTIVATION_FUNCTIONS = {
    F.relu, torch.relu, F.relu6, F.leaky_relu, F.hardtanh, F.hardswish, F.silu, F.gelu, F.elu, F.mish, torch.tanh,
    F.relu_, torch.relu_,
}  # fmt: skip
ACTIVATION_METHODS = {"relu", "relu_", "tanh"}
ADDITIONS = {operator.add, operator.iadd, torch.add}
ADDITION_METHODS = {"add", "add_"}
CONCATENATIONS = {torch.cat, torch.concat}
PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}

LEAVES = (OptionAShortcut, StochasticDepth)
"""Layers that are not of torch.nn."""
DROP_PATH = "DropPath"
"""The class of timm, which many copy, that is torchvision's StochasticDepth."""
PASSING_MODULES = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout, nn.Dropout2d, nn.Identity,
    nn.Flatten, nn.ZeroPad2d, *LEAVES,
)  # fmt: skip
"""A one-sided input of theirs gives a one-sided output."""
PASSING_FUNCTIONS = {
    F.max_pool2d, torch.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d,
    torch.adaptive_avg_pool1d, F.pad, torch.flatten, torch.reshape, torch.squeeze, torch.mean, *CONCATENATIONS,
    operator.getitem, operator.mul, operator.imul, torch.mul, operator.truediv, torch.sigmoid, F.sigmoid,
    F.hardsigmoid, F.softmax, torch.softmax, F.log_softmax, getattr,
}  # fmt: skip
PASSING_METHODS = {
    "add", "add_", "mul", "mul_", "div", "flatten", "view", "reshape", "mean", "size", "contiguous", "clone", "detach",
    "squeeze", "sigmoid", "softmax",
}  # fmt: skip
SHAPING_MODULES = (nn.Identity, nn.AvgPool2d, nn.MaxPool2d, OptionAShortcut)
SHAPING_FUNCTIONS = {F.pad, F.avg_pool2d, F.max_pool2d, torch.max_pool2d, operator.getitem}
SHAPING_METHODS = {"clone", "contiguous", "detach"}
"""What the shortcut of a residual block may do to its input, which it passes on."""
MAX_POOLING = (F.max_pool2d, F.adaptive_max_pool2d, torch.max_pool2d)
OTHER_MODULES = (
    nn.Conv2d, nn.BatchNorm2d, nn.BatchNorm1d, nn.Linear, nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.LogSoftmax,
)  # fmt: skip
OTHER_FUNCTIONS = {operator.sub, torch.sub}
MODULES = (*ACTIVATION_MODULES, *PASSING_MODULES, *OTHER_MODULES)
FUNCTIONS = ACTIVATION_FUNCTIONS | ADDITIONS | PASSING_FUNCTIONS | OTHER_FUNCTIONS
METHODS = ACTIVATION_METHODS | PASSING_METHODS | {"sub"}


def knows(module: nn.Module) -> bool:
    """Whether a layer is a known one: of torch.nn itself, since a subclass may compute something else."""
    return type(module) in MODULES


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of the shell wildcards matches a qualified name or a module around it."""
    parts = name.split(".")
    outer = [".".join(parts[: n + 1]) for n in range(len(parts))]
    return any(fnmatchcase(path, pattern) for path in outer for pattern in patterns)


def place_of(node: torch.fx.Node) -> str:
    """Return the name of a node: its layer's, else that of the module in which it is computed and the operation."""
    if node.op in ("call_module", "get_attr"):
        return str(node.target)
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]) if stack else ""
    operation = str(getattr(node.target, "__name__", node.target)).strip("_")
    return f"{path}.{operation}" if path else operation
