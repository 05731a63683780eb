"""What the commands do with model.onnx: the same as with the network it was made of, by the engine; and without it."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import nasb
from nasb.cells.architecture import Architecture
from nasb.networks.registry import HOSTS
from nasb.plugin import load_plugin
from tests.cli.conftest import Command, Refused, Result, tiny_architecture

Exported = Callable[[], Path]


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (12, 9, 3), np.uint8)).save(path)
    return paths


class TestWithEngine:
    @pytest.fixture(autouse=True)
    def _engine(self) -> None:
        pytest.importorskip("nasb_engine", reason="the engine is not installed: make setup builds it")

    @pytest.fixture
    def exported(self, model: Path, command: Command) -> Path:
        path = model.with_suffix(".onnx")
        assert command("export", model, "-o", path).code == 0
        return path

    def test_session_is_the_engines(self) -> None:
        import nasb_engine

        assert nasb.engine.Session is nasb_engine.Session
        assert nasb.engine.kernels is nasb_engine.kernels
        with pytest.raises(AttributeError, match="Sessions"):
            _ = nasb.engine.Sessions

    def test_session_gives_the_networks_logits(self, exported: Path, model: Path) -> None:
        x_NCHW = torch.randn(4, 1, 8, 8)
        with torch.no_grad():
            expected = nasb.load_model(model).network.eval()(x_NCHW)
        torch.testing.assert_close(torch.from_numpy(nasb.engine.Session(exported).run(x_NCHW)), expected)

    def test_predict(self, exported: Path, model: Path, images: list[Path], command: Command) -> None:
        theirs = command("predict", model, *images, "--json")
        ours = command("predict", exported, *images, "--json")
        assert (theirs.code, ours.code) == (0, 0)
        expected, found = json.loads(theirs.out), json.loads(ours.out)
        assert list(found) == list(expected)
        for path in expected:
            assert list(found[path]) == list(expected[path])
            assert list(found[path].values()) == pytest.approx(list(expected[path].values()), abs=1e-5)
        assert command("predict", exported, *images).out == command("predict", model, *images).out

    def test_predict_tells_unreadable_images(self, exported: Path, images: list[Path], command: Command) -> None:
        result = command("predict", exported, images[0], "nothing.png")
        assert result.code == 2
        assert result.err.splitlines() == [
            'nasb: image "nothing.png" does not exist',
            "nasb: 1 of 2 images have no prediction",
        ]

    def test_evaluate(self, exported: Path, model: Path, command: Command) -> None:
        arguments = ("--data.name", "digits", "--data.batch_size", 50, "--json")
        theirs, ours = (json.loads(command("evaluate", target, *arguments).out) for target in (model, exported))
        assert ours["top1"] == theirs["top1"] < theirs["top5"] == ours["top5"]
        assert ours["images"] == theirs["images"] > 0
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)

    @pytest.fixture
    def engine(self, capsys: pytest.CaptureFixture[str]) -> Command:
        """Return a function that calls nasb-engine; its errors as nasb's would be, for comparison."""
        from nasb_engine.cli import main

        def call(*arguments: object) -> Result:
            capsys.readouterr()
            code = main([str(argument) for argument in arguments])
            captured = capsys.readouterr()
            return Result(code, captured.out, captured.err.replace("nasb-engine: ", "nasb: "))

        return call

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """photos/<class>/: two pictures of each of three digits, and a file that is none."""
        random = np.random.default_rng(0)
        for name in "027":
            (tmp_path / "photos" / name).mkdir(parents=True)
            for index in range(2):
                pixels = random.integers(0, 256, (8, 8), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.png")
        (tmp_path / "photos/7/broken.png").write_bytes(b"none")
        return tmp_path / "photos"

    @pytest.mark.parametrize("options", [(), ("--top", 2, "--json"), ("--threads", 1, "--kernel", "portable")])
    def test_predict_is_the_engines(
        self, exported: Path, images: list[Path], command: Command, engine: Command, options: tuple[object, ...]
    ) -> None:
        arguments = ("predict", exported, *images, "nothing.png", *options)
        assert command(*arguments) == engine(*arguments)

    def test_evaluate_of_a_folder_is_the_engines(
        self, exported: Path, folder: Path, command: Command, engine: Command
    ) -> None:
        arguments = ("evaluate", exported, folder, "--batch", 4, "--threads", 1, "--kernel", "portable")
        ours, theirs = command(*arguments), engine(*arguments)
        assert (ours.code, ours.err) == (theirs.code, theirs.err) == (0, theirs.err)
        assert "left out: image" in ours.err
        assert ours.out.splitlines()[0] == theirs.out.splitlines()[0]
        assert "Top-5" in ours.out
        records = [json.loads(program(*arguments, "--json").out) for program in (command, engine)]
        for record in records:
            for key in ("seconds", "engine_seconds", "images_per_second"):
                assert record.pop(key) > 0
        assert records[0] == records[1]
        assert (records[0]["images"], records[0]["threads"]) == (6, 1)

    @pytest.mark.parametrize("options", [(), ("--json",), ("--threads", 1, "--kernel", "portable")])
    def test_info_of_a_file_is_the_engines(
        self, exported: Path, command: Command, engine: Command, options: tuple[object, ...]
    ) -> None:
        result = command("info", exported, *options)
        assert result == engine("info", exported, *options)
        assert str(exported) in result.out

    @pytest.mark.parametrize(
        "arguments",
        [
            ("predict", "model.onnx", "0.png", "--threads", -2),
            ("predict", "model.onnx", "0.png", "--kernel", "sse9"),
            ("predict", "model.onnx", "0.png", "--top", 0),
            ("predict", "nothing.onnx", "0.png"),
            ("evaluate", "model.onnx", "nowhere"),
            ("evaluate", "model.onnx", "photos", "--batch", 0),
            ("info", "nothing.onnx"),
            ("info", "model.onnx", "--kernel", "sse9"),
        ],
    )
    @pytest.mark.usefixtures("images", "folder")
    def test_what_the_engine_refuses(
        self, exported: Path, refused: Refused, engine: Command, monkeypatch: pytest.MonkeyPatch,
        arguments: tuple[object, ...],
    ) -> None:  # fmt: skip
        monkeypatch.chdir(exported.parent)
        assert refused(*arguments, says=()) == engine(*arguments).err.strip()

    def test_options_that_do_not_fit_the_target(
        self, exported: Path, model: Path, folder: Path, refused: Refused, images: list[Path]
    ) -> None:
        for option in (("--threads", 1), ("--kernel", "portable")):
            refused("predict", model, images[0], *option, says=(option[0], "model.onnx", f"{model} is none"))
            refused("info", *option, says=(option[0], "model.onnx", "give one"))
        refused("evaluate", model, "--data.name", "digits", "--batch", 2, says=("--batch", f"{model} is none"))
        refused("evaluate", model, folder, says=(f"--data.name folder --data.root {folder}",))
        refused("evaluate", exported, says=("FOLDER", "--data.name"))
        refused("evaluate", exported, "--data.name", "digits", "--batch", 2, says=("--data.batch_size",))
        for flag in (("--part", "test"), ("--data.name=digits",), ("--seed", 1)):
            refused("evaluate", exported, folder, *flag, says=(flag[0].split("=")[0], str(folder)))
        data = ("--data.name", "folder", "--data.root", folder)
        refused("evaluate", exported, *data, says=("has no folder train/", f"nasb evaluate {exported} {folder}"))
        refused("info", model, says=("is no exported file", "nasb summary"))

    def test_evaluate_of_named_data_takes_the_engines_options(
        self, exported: Path, command: Command, refused: Refused
    ) -> None:
        data = ("evaluate", exported, "--data.name", "digits", "--json")
        assert command(*data, "--threads", 1, "--kernel", "portable").out == command(*data).out
        refused(*data, "--kernel", "sse9", says=("sse9",))

    def test_help_tells_what_is_the_engines(self, command: Command) -> None:
        for name in ("predict", "evaluate", "info"):
            text = " ".join(command(name, "--help").out.split())
            assert "--threads THREADS of model.onnx" in text
            assert "--kernel KERNEL of model.onnx" in text
        assert "FOLDER of model.onnx" in " ".join(command("evaluate", "--help").out.split())

    def test_evaluate_refuses_other_images(self, exported: Path, refused: Refused) -> None:
        refused("evaluate", exported, says=("--data.name",))
        refused("evaluate", exported, "--network", "resnet20", says=("leave out --network",))
        refused(
            *("evaluate", exported, "--data.name", "digits", "--data.image_size", 16),
            says=("model.onnx", "--data.image_size"),
        )

    def test_bench(self, exported: Path, command: Command) -> None:
        result = command("bench", exported, "--against", "torch", "--rounds", 2, "--json")
        assert result.code == 0, result.err
        record = json.loads(result.out)
        assert [peer["name"] for peer in record["peers"]] == ["nasb-engine", "torch"]
        assert all(peer["ratio"]["median"] > 0 for peer in record["peers"])
        assert record["conditions"]["versions"]["torch"]
        assert [(peer["file"], peer["network"]) for peer in record["peers"]] == [
            (str(exported), None),
            (None, "resnet20 (width: 4)"),
        ]
        text = command("bench", exported, "--against", "torch", "--rounds", 1).out
        assert "ratio" in text
        assert text.splitlines()[-1].endswith("  resnet20 (width: 4)")

    def test_bench_tells_the_kernel(self, exported: Path, command: Command, tmp_path: Path) -> None:
        arguments = ("bench", exported, "--rounds", 1, "--kernel", "portable")
        assert "portable" in json.loads(command(*arguments, "--json").out)["kernel"]
        assert re.search(r"kernel \w*portable", command(*arguments).out.splitlines()[0])
        real = tmp_path / "real.onnx"
        nasb.export_onnx(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)), real, (1, 8, 8))
        assert "no binary convolutions" in command("bench", real, "--rounds", 1).out

    @pytest.mark.filterwarnings("ignore")
    def test_bench_against_onnxruntime_names_the_host(self, exported: Path, command: Command) -> None:
        pytest.importorskip("onnxruntime", reason="a peer: make test-onnxruntime")
        peers = "onnxruntime,onnxruntime-int8"
        result = command("bench", exported, "--against", peers, "--rounds", 1)
        assert result.code == 0, result.err
        assert [line.split("  ")[-1] for line in result.out.splitlines()[-2:]] == ["resnet20 (width: 4)"] * 2
        with_a_file = command(
            "bench", exported, "--against", "onnxruntime", "--real-model", exported, "--rounds", 1, "--json"
        )
        assert json.loads(with_a_file.out)["peers"][1]["file"] == str(exported)

    def test_bench_s_real_network_has_the_file_s_options(
        self, exported: Path, command: Command, refused: Refused
    ) -> None:
        """Else a full-width network stands beside a narrow one."""
        for name, network in (("resnet20", "resnet20 (width: 4)"), ("resnet32", "resnet32 (width: 4)")):
            arguments = ("--real-network", name, "--against", "torch", "--rounds", 1, "--json")
            record = json.loads(command("bench", exported, *arguments).out)
            assert record["peers"][1]["network"] == network
        against = ("bench", exported, "--against", "torch", "--real-network")
        refused(*against, "xnor_resnet20", says=("xnor_resnet20", "give a real network"))
        refused(*against, "resnet21", says=("resnet21", "--plugin"))

    def test_bench_of_a_host_of_the_users_own(
        self, refused: Refused, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        nasb.create_network("resnet20", width=1)  # registers nasb's own
        monkeypatch.setattr(HOSTS, "_entries", dict(HOSTS._entries))
        plugin, path = tmp_path / "own.py", tmp_path / "own.onnx"
        plugin.write_text(
            "import nasb\n"
            "from torch import nn\n"
            "@nasb.register_host('own_bench_host', input_shape=(1, 8, 8), num_classes=10)\n"
            "def own(num_classes, in_channels):\n"
            "    'Own.'\n"
            "    return nn.Sequential(nn.Conv2d(in_channels, 4, 8), nn.Flatten(), nn.Linear(4, num_classes))\n"
        )
        load_plugin(str(plugin))
        architecture = Architecture(host="own_bench_host", num_classes=10, input_shape=(1, 8, 8), cells={})
        nasb.export_onnx(nasb.create_network("own_bench_host"), path, (1, 8, 8), architecture=architecture)
        del HOSTS._entries["own_bench_host"]  # as in a new process
        monkeypatch.setattr("nasb.plugin._LOADED", set())
        arguments = ("bench", path, "--against", "torch", "--rounds", 1)
        refused(*arguments, says=('unknown host network "own_bench_host"', "--plugin FILE.py"))
        result = command(*arguments, "--plugin", plugin)
        assert result.out.splitlines()[-1].endswith("  own_bench_host"), result.err

    def test_bench_refuses(self, exported: Path, refused: Refused, tmp_path: Path) -> None:
        refused("bench", exported, "--against", "tensorrt", says=("tensorrt", "onnxruntime-int8"))
        refused("bench", exported, "--rounds", 0, says=("rounds is 0",))
        refused("bench", tmp_path / "nothing.onnx", says=("nothing.onnx", "No such file"))
        (tmp_path / "text.onnx").write_text("no model")
        refused("bench", tmp_path / "text.onnx", says=("text.onnx", "not an ONNX file"))
        refused("predict", tmp_path / "text.onnx", "a.png", says=("text.onnx", "not an ONNX file"))

    def test_bench_without_a_named_host(self, tmp_path: Path, refused: Refused, command: Command) -> None:
        path = tmp_path / "plain.onnx"
        nasb.export_onnx(tiny_architecture().build().eval(), path, (1, 8, 8))
        refused("bench", path, "--against", "torch", says=("plain.onnx", "--real-network"))
        refused("bench", path, "--real-network", "resnet20", says=("--real-network is for peers that run it",))
        arguments = ("--real-network", "resnet20", "--against", "torch", "--rounds", 1, "--json")
        result = command("bench", path, *arguments)
        assert [peer["name"] for peer in json.loads(result.out)["peers"]] == ["nasb-engine", "torch"]

    def test_info(self, command: Command) -> None:
        record = json.loads(command("info", "--json").out)
        assert {kernel["name"] for kernel in record["engine"]["kernels"]} >= {"reference", "portable"}
        assert "reference" in command("info").out


class TestWithoutEngine:
    @pytest.fixture(autouse=True)
    def _no_engine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == "nasb_engine"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "nasb_engine", None)

    def test_what_is_missing_is_said(self, refused: Refused, images: list[Path], tmp_path: Path) -> None:
        (tmp_path / "model.onnx").write_bytes(b"")
        for arguments in (("predict", "model.onnx", images[0]), ("bench", "model.onnx")):
            refused(*arguments, says=("the engine", "pip install ./engine", "C++17"))
        refused("evaluate", "model.onnx", "--data.name", "digits", says=("pip install ./engine",))
        with pytest.raises(nasb.UserError, match=r"pip install \./engine"):
            _ = nasb.engine.Session

    def test_info_goes_on(self, command: Command) -> None:
        result = command("info")
        assert result.code == 0
        assert "pip install ./engine" in result.out
