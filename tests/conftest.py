"""What all tests share: fixed seeds, and modules without equal or trivial numbers in them."""

from collections.abc import Callable

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def randomize() -> Callable[..., nn.Module]:
    """Return a function that draws every parameter and statistic of a module anew, so that none is a special value."""

    def draw(module: nn.Module, seed: int = 1) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                if not tensor.is_floating_point():
                    continue
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.3)
        return module

    return draw
