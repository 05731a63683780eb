"""How the stages train: the weights that they start at, the teacher, precision, compilation, losses that are lost."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from nasb.binary import BinaryConv2d
from nasb.cells.config import CellConfig
from nasb.cli import main
from nasb.files import save_safetensors
from nasb.networks import create_host
from nasb.networks.registry import HOSTS
from nasb.training.config import (
    DataConfig,
    FinetuneConfig,
    HardwareConfig,
    NetworkConfig,
    PretrainConfig,
    RunConfig,
)  # fmt: skip
from nasb.training.pipeline import Pipeline
from nasb.training.search_stage import SearchStage
from nasb.training.train_stage import TrainStage


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_a_learned_scale_starts_at_the_pretrained_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(
        architecture="backbone",
        cell=CellConfig(weight_scale="learned"),
        network=NetworkConfig(options={"width": 4}),
        data=DataConfig(train_limit=64, batch_size=16),
        pretrain=PretrainConfig(epochs=1),
    )
    began = []

    def note(self: Pipeline, name: str, network: torch.nn.Module, phase: dict[str, str]) -> None:
        layers = [layer for layer in network.modules() if isinstance(layer, BinaryConv2d)]
        began.append([(layer.learned_scale.clone(), layer.weight.abs().mean((1, 2, 3))) for layer in layers])
        train(self, name, network, phase)

    train = Pipeline._train
    monkeypatch.setattr(Pipeline, "_train", note)
    with Pipeline(config, tmp_path / "run") as pipeline:
        pipeline.run_stages(["pretrain", "finetune"])
    assert began[1]
    for scale, mean in began[1]:
        torch.testing.assert_close(scale.flatten(), mean)
    assert any(not torch.equal(a[1], b[1]) for a, b in zip(*began, strict=True))


def test_each_stage_of_fp16_begins_with_a_fresh_scale(tmp_path: Path) -> None:
    config = RunConfig(
        network=NetworkConfig(options={"width": 4}),
        data=DataConfig(train_limit=64, batch_size=16),
        hardware=HardwareConfig(accelerator="cpu", precision="16-mixed"),
    )
    with Pipeline(config, tmp_path / "run") as pipeline:
        precision = pipeline.fabric.strategy.precision
        for make in (pipeline.search_stage, lambda: pipeline.train_stage("finetune", pipeline.networks.backbone())):
            fresh = precision.state_dict()
            precision.scaler.load_state_dict(fresh | {"scale": 2.0, "_growth_tracker": 7})
            assert precision.state_dict() != fresh
            make()
            assert precision.state_dict() == fresh


def test_init_takes_the_users_weights_over(tiny: Path, tmp_path: Path) -> None:
    host = create_host("resnet20", num_classes=10, in_channels=1, options={"width": 4})
    weights = tmp_path / "weights.safetensors"
    save_safetensors(weights, host.state_dict(), {})
    config = RunConfig(
        architecture="backbone",
        init=str(weights),
        network=NetworkConfig(options={"width": 4}),
        data=DataConfig(train_limit=64),
    )
    with Pipeline(config, tmp_path / "run") as pipeline:
        derived = pipeline._derived().state_dict()
        teacher, x = pipeline.networks.teacher(config.finetune), torch.randn(2, 1, 8, 8)
        assert pipeline.teachers() == {"pretrain": "init", "finetune": "init"}
    assert teacher is not None
    assert torch.equal(teacher(x), host.eval()(x))
    own = host.state_dict()
    assert torch.equal(derived["layer2.0.conv1.backbone.0.conv.weight"], own["layer2.0.conv1.weight"])
    assert torch.equal(derived["conv1.weight"], own["conv1.weight"])
    assert torch.equal(derived["linear.bias"], own["linear.bias"])


@pytest.mark.parametrize("case", ["no init", "another classifier", "none", "named"])
def test_the_users_cnn_does_not_teach(tmp_path: Path, case: str) -> None:
    classes = 7 if case == "another classifier" else 10
    host = create_host("resnet20", num_classes=classes, in_channels=1, options={"width": 4})
    weights = str(tmp_path / "weights.safetensors")
    save_safetensors(Path(weights), host.state_dict(), {})
    stage = FinetuneConfig()
    if case == "none":
        stage = FinetuneConfig(teacher="none")
    elif case == "named":
        stage = FinetuneConfig(teacher="resnet20", teacher_weights=weights, teacher_options={"width": 4})
    config = RunConfig(
        architecture="backbone",
        init=None if case == "no init" else weights,
        init_partial=True,
        network=NetworkConfig(options={"width": 4}),
        data=DataConfig(train_limit=64),
        pretrain=PretrainConfig(epochs=0),
        finetune=stage,
    )
    with Pipeline(config, tmp_path / "run") as pipeline:
        assert pipeline.teachers() == {"finetune": "resnet20" if case == "named" else "none"}
        assert (pipeline.networks.teacher(stage) is not None) == (case == "named")


def test_distillation_bf16_clipping_and_sgd_run(tiny: Path, tmp_path: Path) -> None:
    teacher = create_host("resnet20", num_classes=10, in_channels=1, options={"width": 4})
    weights = tmp_path / "teacher.safetensors"
    save_safetensors(weights, teacher.state_dict(), {})
    config = tiny.read_text().replace(
        "finetune: {epochs: 2, ema: 0.9}",
        f"finetune: {{epochs: 1, optimizer: sgd, clip_norm: 1.0, label_smoothing: 0.1, teacher: resnet20, "
        f"teacher_weights: {weights}, teacher_options: {{width: 4}}}}",
    ).replace("threads: 1", "threads: 1, precision: bf16-mixed")  # fmt: skip
    tiny.write_text(config)
    flags = ["--architecture", "backbone", "--pretrain.epochs", "1", "--checkpoint_minutes", "60"]
    assert run("run", "--config", tiny, "--out", tmp_path / "run", *flags) == 0


@pytest.mark.parametrize("stage", ["search", "finetune"])
def test_a_loss_that_is_not_a_number_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    config = RunConfig(
        architecture="search" if stage == "search" else "backbone",
        network=NetworkConfig(options={"width": 4}),
        data=DataConfig(train_limit=20, batch_size=10),
        pretrain=PretrainConfig(epochs=0),
    )
    told = []

    def end_of_an_epoch(made: SearchStage | TrainStage, *arguments: object, **options: object) -> float:
        score = made.weights_score if isinstance(made, SearchStage) else made.score
        for loss in (float("inf"), float("nan")):
            score.add(torch.zeros(1, 10), torch.zeros(1, dtype=torch.long), torch.tensor(loss))
            told.append(made.end_epoch(0)[1])
        return 0.0

    monkeypatch.setattr("nasb.training.pipeline.run_stage", end_of_an_epoch)
    with Pipeline(config, tmp_path / "run") as pipeline:
        pipeline.run_stages([stage])
    assert told[0] is None
    assert "is not a number: lower" in str(told[1])


SMALL = """
from torch import nn

def small(num_classes=10, in_channels=1):
    layers = [nn.Conv2d(in_channels, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU()]
    layers += [nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler; there is no g++")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_compiled_training_is_the_same_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """The last bits differ, so that the losses of a few steps do a little."""
    create_host("resnet20", options={"width": 1})  # registers nasb's own
    monkeypatch.setattr(HOSTS, "_entries", dict(HOSTS._entries))  # the factory does not stay
    made = tmp_path / "compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(made))
    (tmp_path / "small.py").write_text(SMALL)
    losses = {}
    for compiles in ("false", "true"):
        out = tmp_path / compiles
        flags = {
            "network.factory": f"{tmp_path / 'small.py'}:small", "data.name": "digits", "data.batch_size": 32,
            "data.train_limit": 192, "architecture": "backbone", "pretrain.epochs": 0, "finetune.epochs": 1,
            "hardware.compile": compiles, "hardware.precision": precision, "hardware.accelerator": "cpu",
            "hardware.threads": 1, "evaluate_test": "false",
        }  # fmt: skip
        assert run("run", *(f"--{key}={value}" for key, value in flags.items()), "--out", out) == 0
        assert any(made.rglob("*.cpp")) == (compiles == "true")
        losses[compiles] = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["train_loss"]
    assert losses["true"] == pytest.approx(losses["false"], rel=0.02)
