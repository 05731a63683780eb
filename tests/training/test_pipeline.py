"""What the stages promise besides resuming: order, modes, outputs, distillation, the user's weights, devices."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import nasb
from nasb.binary import Binarize, BinaryConv2d
from nasb.cells.config import CellConfig
from nasb.cli import main
from nasb.cost import count
from nasb.errors import UserError
from nasb.files import save_safetensors
from nasb.networks import create_host, create_network
from nasb.networks.registry import HOSTS
from nasb.search import SearchConfig
from nasb.training.config import (
    DataConfig,
    FinetuneConfig,
    HardwareConfig,
    NetworkConfig,
    PretrainConfig,
    RunConfig,
)  # fmt: skip
from nasb.training.pipeline import Pipeline, cost_summary
from nasb.training.search_stage import SearchStage
from nasb.training.train_stage import TrainStage


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.training.conftest import TINY

    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(TINY.replace("checkpoint_minutes: 0", ""))
    assert run("run", "--config", folder / "tiny.yaml", "--out", folder / "run") == 0
    return folder / "run"


def test_run_directory_is_complete(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "config.yaml", "environment.json", "architecture.json", "architecture.svg", "metrics.jsonl", "tensorboard",
        "supernet.safetensors", "pretrained.safetensors", "model.safetensors", "stages.json", "summary.json",
    }  # fmt: skip
    assert list((finished / "checkpoints").iterdir()) == []
    summary = json.loads((finished / "summary.json").read_text())
    for key in ("test_top1", "validation_top1", "ops", "bops", "flops", "memory_bits", "ops_ratio"):
        assert isinstance(summary[key], int | float), key
    assert set(summary["seconds"]) == {"search", "pretrain", "finetune"}
    assert 1.0 < summary["ops_ratio"] <= 1.3
    assert summary["uncounted"] == []


def test_metrics_have_entropy_and_histogram_of_the_search(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["epoch"]) for row in rows] == [
        (stage, epoch) for stage in ("search", "pretrain", "finetune") for epoch in (0, 1)
    ]
    assert 0 < rows[1]["alpha_entropy"] < 1
    assert isinstance(rows[1]["operations"], dict)


def test_model_file_is_the_binary_network_and_pretrained_the_real_one(finished: Path) -> None:
    network = nasb.load(finished)
    assert {layer.phase for layer in network.modules() if isinstance(layer, BinaryConv2d)} == {"binary"}
    assert {layer.phase for layer in network.modules() if isinstance(layer, Binarize)} == {"sign"}
    assert not network.training
    pretrained = nasb.load(finished / "pretrained.safetensors")
    assert {layer.phase for layer in pretrained.modules() if isinstance(layer, BinaryConv2d)} == {"real"}
    assert {layer.phase for layer in pretrained.modules() if isinstance(layer, Binarize)} == {"hardtanh"}


def test_evaluate_gives_the_summary_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    for part in ("test", "validation"):
        assert run("evaluate", finished, "--part", part, "--json") == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed["top1"] == pytest.approx(summary[f"{part}_top1"])
        assert printed["top1"] <= printed["top5"] == pytest.approx(summary[f"{part}_top5"])
    assert run("evaluate", finished / "model.safetensors", "--data.name", "digits", "--json") == 0
    assert json.loads(capsys.readouterr().out)["top1"] == pytest.approx(summary["test_top1"])


def test_evaluate_takes_what_is_given_on_top_of_the_runs_own_data(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(*flags: object) -> dict[str, float]:
        assert run("evaluate", finished, "--part", "validation", "--json", *flags) == 0
        return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]

    own = found()
    assert found("--data.batch_size", 7) == pytest.approx(own)  # the run's own split of its own images
    assert found("--data.validation_fraction", 0.5)["images"] > own["images"]
    assert run("evaluate", finished, "--data.name", "folder", "--data.root", tmp_path) == 2  # as the user says


def test_a_finished_run_is_not_run_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    assert run("run", "--out", finished) == 0
    assert (finished / "metrics.jsonl").read_bytes() == before
    assert "search: finished before, kept" in capsys.readouterr().err


def test_stages_alone_in_order(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    tiny.write_text(tiny.read_text().replace("checkpoint_minutes: 0", "checkpoint_minutes: 60"))
    assert run("finetune", "--config", tiny, "--out", out) == 2
    assert "is no run directory, and finetune needs search" in capsys.readouterr().err
    assert run("search", "--config", tiny, "--out", out) == 0
    assert run("finetune", "--out", out) == 2
    assert "finetune needs pretrain, which has not been finished" in capsys.readouterr().err
    assert run("pretrain", "--out", out) == 0
    assert run("finetune", "--out", out) == 0
    assert (out / "summary.json").exists()


@pytest.mark.parametrize("strategy", ["gates", "darts", "random", "reinforce", "evolution"])
def test_each_strategy_searches(tiny: Path, tmp_path: Path, strategy: str) -> None:
    out = tmp_path / "run"
    flags = ["--search.strategy", strategy, "--search.candidates", "3", "--search.derive_candidates", "2"]
    flags += ["--search.trials", "4", "--search.population", "2", "--search.at_once", "2"]
    assert run("search", "--config", tiny, "--out", out, "--checkpoint_minutes", "60", *flags) == 0
    assert any(nasb.Architecture.load(out / "architecture.json").cells.values())


def test_hand_made_and_given_architectures_need_no_search(tiny: Path, tmp_path: Path, finished: Path) -> None:
    flags = ["--config", tiny, "--pretrain.epochs", "0", "--finetune.epochs", "1", "--checkpoint_minutes", "60"]
    sealed = ["--evaluate_test", "false"]
    assert run("run", *flags, *sealed, "--architecture", "backbone", "--out", tmp_path / "a") == 0
    assert not any(nasb.Architecture.load(tmp_path / "a" / "architecture.json").cells.values())
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["ops_ratio"] == 1.0
    assert summary["test_top1"] is None
    assert summary["validation_top1"] is not None
    given = finished / "architecture.json"
    assert run("run", *flags, "--architecture", given, "--out", tmp_path / "b") == 0
    assert (tmp_path / "b" / "architecture.json").read_bytes() == given.read_bytes()
    assert run("run", *flags, "--architecture", given, "--network.host", "resnet32", "--out", tmp_path / "c") == 2


def test_a_given_architecture_brings_its_cells(
    tiny: Path, tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = nasb.Architecture.load(finished / "architecture.json")
    file = tmp_path / "given.json"
    replace(given, cell=replace(given.cell, shortcut="avgmax", activation="prelu")).save(file)
    flags = ["--pretrain.epochs", "0", "--finetune.epochs", "1", "--cell.activation", "rprelu", "--cell.bases", "1"]
    assert run("run", "--config", tiny, *flags, "--architecture", file, "--out", tmp_path / "run") == 0
    assert f"{file}; its cells are used, not cell.activation of this run" in capsys.readouterr().err
    assert "max-pooled" in (tmp_path / "run" / "plan.txt").read_text()
    assert nasb.Architecture.load(tmp_path / "run" / "architecture.json").cell.activation == "prelu"


def test_a_run_keeps_the_architecture_that_it_was_given(
    tiny: Path, tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = shutil.copy(finished / "architecture.json", tmp_path / "given.json")
    flags = ["--config", tiny, "--architecture", file, "--finetune.epochs", "1", "--out", tmp_path / "run"]
    assert run("pretrain", *flags) == 0
    given = nasb.Architecture.load(file)
    replace(given, cells=dict.fromkeys(given.cells, ())).save(file)
    capsys.readouterr()
    assert run("finetune", *flags) == 2
    assert "given.json is not the architecture that it was begun with" in capsys.readouterr().err
    file.unlink()
    assert run("finetune", *flags) == 0
    assert nasb.Architecture.load(tmp_path / "run" / "architecture.json") == given


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


def test_a_search_whose_weights_are_lost_is_not_finished(tmp_path: Path) -> None:
    config = RunConfig(
        network=NetworkConfig(options={"width": 4}),
        data=DataConfig(train_limit=20, batch_size=10),
        search=SearchConfig(epochs=1, warmup_epochs=0),
    )
    with Pipeline(config, tmp_path / "run") as pipeline:
        stage = pipeline.search_stage()
        stage.weights_score.add(torch.zeros(1, 10), torch.zeros(1, dtype=torch.long), torch.tensor(float("nan")))
        with pytest.raises(UserError, match=r"not a number: lower search\.learning_rate\. Nothing is derived"):
            stage.end_epoch(0)


def test_the_gradient_sharpens_in_the_search_too_and_alpha_is_rank_0_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(
        network=NetworkConfig(options={"width": 4}),
        cell=CellConfig(surrogate="tanh_annealed"),
        data=DataConfig(train_limit=20, batch_size=10),
        search=SearchConfig(epochs=3, warmup_epochs=0),
    )
    sent = []
    monkeypatch.setattr("nasb.training.search_stage.as_on_first_", lambda tensors, fabric: sent.extend(tensors))
    with Pipeline(config, tmp_path / "run") as pipeline:
        stage = pipeline.search_stage()
        seen = []
        for epoch in range(3):
            stage.begin_epoch(epoch)
            seen.append({layer.sharpness for layer in stage.network.modules() if isinstance(layer, Binarize)})
        assert [values.pop() for values in seen] == pytest.approx([0.1, 1.0, 10.0])
        stage.weights_score.add(torch.zeros(1, 10), torch.zeros(1, dtype=torch.long), torch.tensor(1.0))
        stage.end_epoch(0)
    assert {id(tensor) for tensor in sent} >= {id(v) for e in stage.searcher.edges for v in (e.alpha, e.base)}


def test_a_run_does_not_go_on_with_other_images(tmp_path: Path) -> None:
    data = DataConfig(name="folder", root=str(tmp_path / "a"), image_size=8)
    config = RunConfig(network=NetworkConfig(options={"width": 4}), data=data)
    for root, classes in (("a", ("cat", "dog")), ("b", ("ant", "wolf")), ("c", ("cat", "dog"))):
        for name in classes:
            folder = tmp_path / root / "train" / name
            folder.mkdir(parents=True)
            for number in range(20):
                Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")

    def opened(root: str) -> None:
        with Pipeline(replace(config, data=replace(data, root=str(tmp_path / root))), tmp_path / "run"):
            pass

    opened("a")
    with pytest.raises(UserError, match="begun with other images"):
        opened("b")
    opened("c")  # moved
    Image.new("RGB", (8, 8)).save(tmp_path / "c" / "train" / "cat" / "new.png")
    with pytest.raises(UserError, match="begun with other images"):
        opened("c")


def test_the_time_is_told_again_where_steps_begin_to_take_longer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = RunConfig(
        network=NetworkConfig(options={"width": 4}),
        data=DataConfig(train_limit=80, batch_size=8),
        search=SearchConfig(epochs=2, warmup_epochs=1, operations=("max_pool_3x3", "bin_conv_1x1")),
        checkpoint_minutes=60,
    )
    with Pipeline(config, tmp_path / "run") as pipeline:
        steps = pipeline.search_stage().steps
        pipeline.run_stages(["search"])
    told = [line for line in capsys.readouterr().err.splitlines() if " steps of " in line]
    assert [line.split(": ")[1].split()[0] for line in told] == [str(2 * steps), str(steps)]


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


def test_predict_names_classes_and_counts_unreadable_images(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    image = tmp_path / "digit.png"
    Image.fromarray((digits.images[0] / 16 * 255).astype("uint8")).save(image)
    assert run("predict", finished, image, "--json") == 0
    classes = json.loads(capsys.readouterr().out)[str(image)]
    assert len(classes) == 3
    assert 0 < sum(classes.values()) <= 1.0001
    broken = tmp_path / "broken.png"
    broken.write_bytes(image.read_bytes()[:40])
    assert run("predict", finished, image, broken) == 2
    captured = capsys.readouterr()
    assert str(image) in captured.out
    assert "broken.png" in captured.err
    assert "1 of 2 images could not be read" in captured.err


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


def test_a_network_without_a_binary_layer_has_costs() -> None:
    cost = count(create_network("resnet20", width=4), (3, 32, 32))
    assert cost_summary(cost, cost) == {
        "ops": cost.flops, "bops": 0, "flops": cost.flops, "memory_bits": cost.memory_bits, "ops_ratio": 1.0,
        "memory_ratio": 1.0, "added_binary_macs": 0.0,
    }  # fmt: skip
