"""What the tests of the command line share: calling it in this process, a tiny run, a trained model's file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nasb.cells.architecture import Architecture
from nasb.cli import main
from nasb.data import DataConfig, open_data
from nasb.model_file import BINARY, save_model

TINY = """
architecture: backbone
network: {host: resnet20, options: {width: 4}}
data: {name: digits, batch_size: 16, train_limit: 48}
search: {epochs: 1, warmup_epochs: 0, budget: 1.3}
pretrain: {epochs: 0}
finetune: {epochs: 1}
hardware: {accelerator: cpu, threads: 1}
checkpoint_minutes: 0
"""


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Command = Callable[..., Result]
Refused = Callable[..., str]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that calls the command line and returns what the process would give."""

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as leaving:  # argparse leaves so after --help
            code = 0 if leaving.code is None else int(leaving.code)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture
def refused(command: Command, tmp_path: Path) -> Refused:
    """Return a function that checks what every user error has in common, and returns its line.

    Nothing in tmp_path may have changed; where work has `begun`, progress may have been told and files been added.
    """

    def check(*arguments: object, says: tuple[str, ...], begun: bool = False) -> str:
        before = contents(tmp_path)
        result = command(*arguments)
        after = contents(tmp_path)
        assert result.code == 2
        lines = result.err.splitlines()
        assert [line for line in lines if line.startswith("nasb: ")] == lines[-1:], result.err
        assert "Traceback" not in result.err
        assert result.out == ""
        if begun:
            after = {name: after.get(name) for name in before}
        else:
            assert len(lines) == 1, result.err
        assert after == before
        for part in says:
            assert part in lines[-1]
        return lines[-1]

    return check


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A config whose whole run takes a second or two, and which writes a checkpoint after every step."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def tiny_architecture(**changes: Any) -> Architecture:
    values: dict[str, Any] = {"host": "resnet20", "options": {"width": 4}, "num_classes": 10, "input_shape": (1, 8, 8)}
    values |= changes
    depth = (int(values["host"].removeprefix("resnet")) - 2) // 6
    names = [f"layer{s}.{b}.conv{c}" for s in (1, 2, 3) for b in range(depth) for c in (1, 2)]
    return Architecture(**values, cells=dict.fromkeys(names, ()))


@pytest.fixture(scope="session")
def model_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a model file: tiny_architecture(), untrained."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    data = open_data(DataConfig(), seed=0)
    architecture = tiny_architecture()
    save_model(path, architecture.build(), architecture, data.preprocessing, data.class_names, BINARY)
    return path.read_bytes()


@pytest.fixture
def model(model_bytes: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(model_bytes)
    return path


@pytest.fixture
def make_images() -> Callable[..., Path]:
    """Return a function that fills root/<part>/<class>/ with small pictures of noise."""

    def make(root: Path, parts: tuple[str, ...], *, count: int = 10, size: int = 40, ending: str = "png") -> Path:
        generator = np.random.default_rng(0)
        for part in parts:
            for name in ("cat", "dog"):
                folder = root / part / name
                folder.mkdir(parents=True)
                for number in range(count):
                    pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{number}.{ending}")
        return root

    return make


def cut(path: Path, share: float = 0.5) -> Path:
    """Cut a file short."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path
