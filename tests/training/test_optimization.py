import math
from pathlib import Path

import pytest
import torch
from torch import nn

from nasb.binary import BinaryConv2d
from nasb.errors import UserError
from nasb.files import save_safetensors
from nasb.networks import create_host, create_network
from nasb.training.config import FinetuneConfig, StageConfig
from nasb.training.optimization import create_optimizer, distillation_loss, learning_rate, load_weights


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 7 / 8, 6 / 8]),
        ("cosine", [0.5, 1.0, 1.0, (1 + math.cos(math.pi / 8)) / 2, (1 + math.cos(math.pi / 4)) / 2]),
    ],
)
def test_learning_rate_is_the_written_schedule(schedule: str, expected: list[float]) -> None:
    config = StageConfig(epochs=5, learning_rate=1.0, schedule=schedule, warmup_epochs=1)
    rates = [learning_rate(config, step, 2) for step in range(5)]
    assert rates == pytest.approx(expected)


def test_learning_rate_falls_to_a_tenth_at_each_milestone() -> None:
    config = StageConfig(epochs=4, learning_rate=1.0, schedule="steps", milestones=(1, 2.5))
    assert [learning_rate(config, step, 2) for step in range(8)] == pytest.approx([1, 1, 0.1, 0.1, 0.1, *[0.01] * 3])


@pytest.mark.parametrize(
    ("schedule", "milestones"), [("steps", ()), ("cosine", (3,)), ("steps", (5, 3)), ("steps", (0, 3))]
)
def test_milestones_rise_and_are_for_steps(schedule: str, milestones: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match=r"finetune\.milestones is .*above 0 in rising order, for the schedule steps"):
        FinetuneConfig(schedule=schedule, milestones=milestones)


def test_learning_rate_ends_near_zero() -> None:
    config = StageConfig(epochs=10, learning_rate=1.0)
    assert learning_rate(config, 10 * 100 - 1, 100) < 1e-5


def test_weight_decay_is_for_real_weights_only() -> None:
    network = create_network("bireal_resnet20", width=4, activation="rprelu", learned_threshold=True)
    decayed, kept = create_optimizer(network, StageConfig(weight_decay=0.1)).param_groups
    real = [
        m.weight for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear) and not isinstance(m, BinaryConv2d)
    ]
    assert {id(p) for p in decayed["params"]} == {id(p) for p in real}
    assert decayed["weight_decay"] == 0.1
    assert kept["weight_decay"] == 0
    assert len(decayed["params"]) + len(kept["params"]) == len(list(network.parameters()))


def test_tied_weights_are_stepped_once() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    groups = create_optimizer(network, StageConfig(weight_decay=0.1)).param_groups
    assert sum(parameter is network[0].weight for group in groups for parameter in group["params"]) == 1


def test_distillation_loss_is_the_written_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 7, generator=generator)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(distillation_loss(student, teacher, 3.0), expected)
    assert float(distillation_loss(teacher, teacher, 3.0)) == pytest.approx(0, abs=1e-6)
    low = teacher.bfloat16()  # the loss itself is computed in fp32
    assert torch.equal(distillation_loss(student, low, 3.0), distillation_loss(student, low.float(), 3.0))


def test_load_weights_takes_over_and_refuses(tmp_path: Path) -> None:
    source = create_host("resnet20", options={"width": 4})
    path = tmp_path / "weights.safetensors"
    save_safetensors(path, source.state_dict(), {})
    target = create_host("resnet20", options={"width": 4})
    assert load_weights(target, str(path)) == []
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))
    other = create_host("resnet20", num_classes=7, options={"width": 4})
    with pytest.raises(UserError, match=r"linear\.weight has shape \[10, 16\], this network's has \[7, 16\]"):
        load_weights(other, str(path))
    assert load_weights(other, str(path), partial=True) == ["linear.weight", "linear.bias"]
    wider = create_host("resnet20", num_classes=7, options={"width": 8})  # all shapes differ, but for batch counters
    for stranger in (nn.Conv2d(1, 1, 1), wider):
        with pytest.raises(UserError, match="no tensor fits"):
            load_weights(stranger, str(path), partial=True)
    deeper = create_host("resnet32", options={"width": 4})
    with pytest.raises(UserError, match=r"layer1\.3\.conv1\.weight is missing"):
        load_weights(deeper, str(path))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        load_weights(target, str(path))
    with pytest.raises(UserError, match="no such file"):
        load_weights(target, str(tmp_path / "missing.safetensors"))
