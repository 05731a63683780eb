"""What the stages promise besides resuming: order, modes, outputs, what a run is given and keeps."""

import json
import re
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
from nasb.networks import create_network
from nasb.search import SearchConfig
from nasb.training.config import (
    DataConfig,
    NetworkConfig,
    RunConfig,
)  # fmt: skip
from nasb.training.pipeline import Pipeline, cost_summary


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


def test_python_reads_a_run_and_exports_it_with_all_that_belongs_to_it(finished: Path, tmp_path: Path) -> None:
    model = nasb.load_model(finished)
    assert model.class_names == tuple("0123456789")
    nasb.export_model(model, tmp_path / "model.onnx")
    session = pytest.importorskip("nasb_engine").Session(tmp_path / "model.onnx")
    assert session.class_names == model.class_names
    x_NCHW = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(torch.from_numpy(session.run(x_NCHW)), nasb.load(finished)(x_NCHW), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"holds no model\.safetensors: the run has not finished"):
        nasb.load_model(tmp_path)


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
    cells = json.loads((out / "architecture.json").read_text())["cells"]
    edges = sum(len(cell["edges"]) for cell in cells.values())
    found = capsys.readouterr().out.splitlines()[-1]
    assert found.startswith(f"{out / 'architecture.json'}: {edges} operations in {len(cells)} cells, ")
    assert re.search(r" OPs \(1\.\d{3} of the backbone\), .* kB\. Go on with nasb run, or nasb pretrain", found)
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


def test_validation_and_test_images_are_read_before_a_run_begins(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for part in ("train", "val", "test"):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for number in range(6):
                Image.new("RGB", (40, 40), (number, 0, 0)).save(root / part / name / f"{number}.png")
    data = DataConfig(name="folder", root=str(root), image_size=32, in_memory=False)
    config = RunConfig(network=NetworkConfig(options={"width": 4}), data=data)
    for part in ("val", "test"):
        bad = root / part / "dog" / "3.png"
        whole = bad.read_bytes()
        bad.write_bytes(whole[:60])
        with pytest.raises(UserError, match=f'image "{bad}" cannot be read: .*--data.unreadable skip leaves such'):
            Pipeline(config, tmp_path / "run")
        assert not (tmp_path / "run" / "config.yaml").exists()
        bad.write_bytes(whole)
    with Pipeline(config, tmp_path / "run"):
        pass
    bad.write_bytes(whole[:60])  # later: the run goes on without it
    skipping = replace(config, data=replace(data, unreadable="skip"))
    with pytest.warns(UserWarning, match="left out 1 of 36"), Pipeline(skipping, tmp_path / "run") as pipeline:
        assert pipeline.data.size("test") == 11


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
    assert "1 of 2 images have no prediction" in captured.err


def test_a_network_without_a_binary_layer_has_costs() -> None:
    cost = count(create_network("resnet20", width=4), (3, 32, 32))
    assert cost_summary(cost, cost) == {
        "ops": cost.flops, "bops": 0, "flops": cost.flops, "memory_bits": cost.memory_bits, "ops_ratio": 1.0,
        "memory_ratio": 1.0, "added_binary_macs": 0.0,
    }  # fmt: skip
