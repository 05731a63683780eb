"""Hand-made networks through the pipeline: trained, stopped and gone on with, kept, exported; and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import nasb
from nasb.binary import Binarize, BinaryConv2d, LibraConv2d
from nasb.cells.architecture import Architecture
from nasb.cli import main
from nasb.errors import UserError
from nasb.files import load_safetensors
from nasb.training.config import (
    DataConfig,
    FinetuneConfig,
    HardwareConfig,
    NetworkConfig,
    PretrainConfig,
    RunConfig,
)
from nasb.training.optimization import ANNEALING
from nasb.training.pipeline import Pipeline
from nasb.training.train_stage import TrainStage

TINY = RunConfig(
    architecture="backbone",
    network=NetworkConfig(host="xnor_resnet20", options={"width": 4}),
    data=DataConfig(name="digits", batch_size=32, train_limit=96),
    pretrain=PretrainConfig(epochs=1),
    finetune=FinetuneConfig(epochs=2, learning_rate=0.05),
    hardware=HardwareConfig(accelerator="cpu", threads=1),
    checkpoint_minutes=0,
)


def run(config: RunConfig, out: Path) -> dict[str, Any]:
    with Pipeline(config, out) as pipeline:
        pipeline.run_stages(pipeline.stages())
        return pipeline.summarize()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rival") / "run"
    arguments = ["--architecture", "backbone", "--network.host", "reactnet_resnet20", "--network.options.width", "4"]
    for key, value in (
        *(("data.name", "digits"), ("data.train_limit", 96), ("hardware.accelerator", "cpu"), ("hardware.threads", 1)),
        *(("pretrain.epochs", 1), ("pretrain.activations", "sign"), ("finetune.epochs", 1)),
    ):
        arguments += [f"--{key}", str(value)]
    assert main(["run", "--out", str(out), *arguments]) == 0
    return out


def test_a_run_leaves_what_any_run_leaves(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {"config.yaml", "architecture.json", "pretrained.safetensors", "model.safetensors", "summary.json"}
    assert not names & {"plan.txt", "architecture.svg"}  # nothing is converted, and there are no cells
    summary = json.loads((finished / "summary.json").read_text())
    assert (summary["host"], summary["ops_ratio"], summary["added_binary_macs"]) == ("reactnet_resnet20", 1.0, 0.0)
    assert summary["bops"] > 0
    assert summary["uncounted"] == []
    architecture = Architecture.load(finished / "architecture.json")
    assert (architecture.host, dict(architecture.options), dict(architecture.cells)) == (
        "reactnet_resnet20", {"width": 4}, {},
    )  # fmt: skip
    network = nasb.load(finished)
    assert {layer.phase for layer in network.modules() if isinstance(layer, BinaryConv2d)} == {"binary"}
    pretrained = nasb.load(finished / "pretrained.safetensors")
    assert {layer.phase for layer in pretrained.modules() if isinstance(layer, BinaryConv2d)} == {"real"}
    assert {layer.phase for layer in pretrained.modules() if isinstance(layer, Binarize)} == {"sign"}
    assert main(["evaluate", str(finished), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == pytest.approx(summary["test_top1"])
    assert main(["summary", str(finished), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bops"] == summary["bops"]


def test_a_run_is_exported(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(finished), "-o", str(tmp_path / "m.onnx")]) == 0
    import onnx

    operators = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert operators.count("BinaryConv2d") == 18
    pytest.importorskip("nasb_engine", reason="the engine is not installed: make setup builds it")
    capsys.readouterr()
    summary = json.loads((finished / "summary.json").read_text())
    arguments = ["--data.name", "digits", "--data.train_limit", "96", "--json"]
    assert main(["evaluate", str(tmp_path / "m.onnx"), *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == pytest.approx(summary["test_top1"], abs=1.0)  # rare flips
    assert main(["bench", str(tmp_path / "m.onnx"), "--against", "torch"]) == 2
    assert "reactnet_resnet20 is hand-made and replaces no real network" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "options"),
    [("abcnet_resnet20", {"weight_bases": 2, "activation_bases": 2}), ("groupnet_resnet20", {"bases": 2})],
)
def test_multiple_networks_are_trained_as_any_other(host: str, options: dict[str, int], tmp_path: Path) -> None:
    network = NetworkConfig(host=host, options={"width": 4, **options})
    summary = run(replace(TINY, network=network, finetune=FinetuneConfig(epochs=1)), tmp_path / "run")
    assert (summary["host"], summary["uncounted"]) == (host, [])
    assert {layer.phase for layer in nasb.load(tmp_path / "run").modules() if isinstance(layer, BinaryConv2d)} == {
        "binary"
    }
    assert main(["export", str(tmp_path / "run"), "-o", str(tmp_path / "m.onnx")]) == 0


def test_a_finished_run_is_a_teacher(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    tensors, _ = load_safetensors(finished / "model.safetensors")
    nasb.files.save_safetensors(path, tensors, {})
    config = replace(
        TINY,
        pretrain=PretrainConfig(epochs=0),
        finetune=FinetuneConfig(
            epochs=1, teacher="reactnet_resnet20", teacher_weights=str(path), teacher_options={"width": 4}
        ),
    )
    assert run(config, tmp_path / "run")["teachers"] == {"finetune": "reactnet_resnet20"}


@pytest.mark.parametrize("host", ["xnor_resnet20", "irnet_resnet20"])
def test_stopped_and_resumed_equals_uninterrupted(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(TINY, network=NetworkConfig(host=host, options={"width": 4}))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(config, whole)
    step = TrainStage.step

    def fail(self: TrainStage, epoch: int, number: int, batch: Any) -> None:
        if self.name == "finetune" and (epoch, number) == (1, 1):
            raise KeyboardInterrupt
        step(self, epoch, number, batch)

    with monkeypatch.context() as patched:
        patched.setattr(TrainStage, "step", fail)
        with pytest.raises(KeyboardInterrupt):
            run(config, stopped)
    assert (stopped / "checkpoints" / "finetune.pt").exists()
    run(config, stopped)
    for name in ("metrics.jsonl", "pretrained.safetensors", "model.safetensors"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes(), name


def test_the_stage_does_what_layers_ask_after_each_step(tmp_path: Path) -> None:
    binary: dict[str, list[torch.Tensor]] = {}
    for host in ("xnor_resnet20", "bnn_resnet20"):
        network = NetworkConfig(host=host, options={"width": 4})
        run(replace(TINY, network=network, finetune=FinetuneConfig(epochs=1, learning_rate=2.0)), tmp_path / host)
        layers = nasb.load(tmp_path / host).modules()
        binary[host] = [layer.weight for layer in layers if isinstance(layer, BinaryConv2d)]
    for weights in binary.values():
        assert all(weight.abs().max() == 1 for weight in weights)
    run(replace(TINY, finetune=FinetuneConfig(epochs=1, learning_rate=1e-3)), tmp_path / "centred")
    for layer in nasb.load(tmp_path / "centred").modules():
        if isinstance(layer, BinaryConv2d):
            free = layer.weight.abs().amax(1) < 1  # where nothing was clipped
            assert free.any()
            assert layer.weight.mean(1)[free].abs().max() < 1e-6


def test_the_gradient_of_ir_net_sharpens_from_epoch_to_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[float]] = []
    begin = TrainStage.begin_epoch

    def watch(self: TrainStage, epoch: int) -> None:
        begin(self, epoch)
        layers = [layer for layer in self.network.modules() if isinstance(layer, Binarize | LibraConv2d)]
        assert len(layers) == 36
        seen.append({layer.sharpness for layer in layers})

    monkeypatch.setattr(TrainStage, "begin_epoch", watch)
    network = NetworkConfig(host="irnet_resnet20", options={"width": 4})
    stages = {"pretrain": PretrainConfig(epochs=0), "finetune": FinetuneConfig(epochs=3)}
    run(replace(TINY, network=network, **stages), tmp_path / "run")
    assert ANNEALING == (0.1, 10.0)
    assert [len(values) for values in seen] == [1, 1, 1]
    assert [values.pop() for values in seen] == pytest.approx([0.1, 1.0, 10.0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "search"}, ["xnor_resnet20 is a hand-made binary network", "nothing to search", "backbone"]),
        ({"architecture": "a.json"}, ["nothing to search"]),
        ({"init": "weights.safetensors"}, ["xnor_resnet20", "`init` is for hosts that are converted"]),
        (
            {"network": NetworkConfig(host="xnor_resnet21")},
            ['unknown host network "xnor_resnet21"', "closest: xnor_resnet20"],
        ),
        ({"network": NetworkConfig(host="xnor_resnet20", options={"bases": 2})}, ['unknown option "bases"']),
        ({"network": NetworkConfig(host="quicknet")}, ["quicknet: does not run on images of 1x8x8", "data.image_size"]),
    ],
)
def test_what_a_hand_made_network_has_not_is_refused(changes: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        Pipeline(replace(TINY, **changes), tmp_path / "run")
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["draw", "bnn_resnet20", "-o", "x.svg"], "has no cells|without cells"),
        (["plan", "bnn_resnet20"], "nothing of it is converted"),
        (
            ["latency-table", "--network", "bnn_resnet20", "--shapes-only", "-o", "x.json"],
            "bnn_resnet20 is .* no operations",
        ),
    ],
)
def test_commands_say_that_there_are_no_cells(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    line = capsys.readouterr().err
    assert re.search(words, line)
    assert len(line.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_run_of_a_hand_made_network_cannot_be_drawn(finished: Path, tmp_path: Path) -> None:
    from nasb.cells.draw import draw_architecture

    with pytest.raises(UserError, match="reactnet_resnet20: has no cells, so there is nothing to draw"):
        draw_architecture(Architecture.load(finished / "architecture.json"), tmp_path / "x.svg")
