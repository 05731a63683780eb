"""A model file is of what its host computed."""

import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nasb
from nasb.data import Preprocessing
from nasb.model_file import BINARY, load_model, save_model
from nasb.networks.plan import host_of_network, plan_of

SHAPE = (3, 8, 8)


class Pooled(nn.Module):
    """Two forms with the same state dict: average and max pooling."""

    def __init__(self, largest: bool = False, stride: int = 1) -> None:
        super().__init__()
        self.largest = largest
        self.stem, self.body, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, stride, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x))
        pool = F.adaptive_max_pool2d if self.largest else F.adaptive_avg_pool2d
        return self.fc(pool(x, 1).flatten(1))


def test_a_host_whose_code_has_changed_is_told(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    cells = dict.fromkeys(plan_of(nasb.convert(Pooled(), SHAPE)).becoming("cell"), ())
    architecture = nasb.Architecture(host="mine", num_classes=3, input_shape=SHAPE, cells=cells)
    network = architecture.build(Pooled()).eval()
    steps = Preprocessing(channels=3, size=8, resize=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    save_model(path, network, architecture, steps, ("ant", "bee", "cow"), BINARY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_model(path, host=Pooled())
    x = torch.randn(2, *SHAPE)
    assert torch.equal(loaded.network(x), network(x))
    for other in (Pooled(largest=True), Pooled(stride=2)):
        with pytest.warns(UserWarning, match="mine computes something else than when this network was trained"):
            load_model(path, host=other)


def test_weights_do_not_change_what_a_host_is() -> None:
    torch.manual_seed(0)
    first, second = (host_of_network(nasb.convert(Pooled(), SHAPE)) for _ in range(2))
    assert first == second is not None
    assert host_of_network(nasb.create_network("reactnet_resnet20")) is None


class Odd(nn.Identity):
    """Shows where something lies in memory, as layers that were given a function do."""

    def __init__(self) -> None:
        super().__init__()
        self.where = object()

    def forward(self, x: Tensor) -> Tensor:
        return x * 2

    def extra_repr(self) -> str:
        return repr(self.where)


def test_where_something_lies_in_memory_does_not_change_what_a_host_is() -> None:
    def fingerprint(odd: nn.Module) -> str | None:
        layers = [nn.Conv2d(3, 8, 3), odd, nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)]
        return host_of_network(nasb.convert(nn.Sequential(*layers), SHAPE, keep_real=["1"]))

    first, second = Odd(), Odd()
    assert first.extra_repr() != second.extra_repr()
    assert fingerprint(first) == fingerprint(second) is not None
    assert fingerprint(first) != fingerprint(nn.GroupNorm(2, 8))
