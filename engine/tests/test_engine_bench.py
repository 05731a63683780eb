"""The comparison: turns, medians and ratios by a clock that the test sets; peers where they are installed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine_places import Engine
from nasb_engine import EngineError, LayerProfile, kernels
from nasb_engine.bench import bench, compare, describe, describe_layers, spread
from tiny_models import Builder

ModelFile = Callable[[str], Path]


class Clock:
    """Time passes by what the runners say."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_ratios_are_formed_within_a_round() -> None:
    """A machine that is ten times slower in every second round changes the times, not the ratios."""
    clock, calls = Clock(), []

    def runner(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            slow = 10 if len(calls) // 3 % 2 else 1
            calls.append(name)
            clock.now += seconds * slow

        return run

    runners = {"engine": runner("engine", 0.1), "double": runner("double", 0.2), "half": runner("half", 0.05)}
    found = compare(runners, rounds=8, seconds=0.01, clock=clock)
    assert [c.name for c in found] == ["engine", "double", "half"]
    for comparison, ratio in zip(found, (1, 2, 0.5), strict=True):
        assert comparison.ratio.median == pytest.approx(ratio)
        assert comparison.ratio.lower_quartile == pytest.approx(ratio)
    assert found[0].milliseconds.lower_quartile == pytest.approx(100)
    assert found[0].milliseconds.upper_quartile == pytest.approx(1000)
    turns = [calls[index : index + 3] for index in range(0, len(calls), 3)]
    assert len(turns) == 2 + 8
    assert all(sorted(turn) == ["double", "engine", "half"] for turn in turns)
    assert len({turn[0] for turn in turns}) == 3  # each begins some rounds


def test_a_turn_repeats_short_calls_and_takes_their_median() -> None:
    clock, durations = Clock(), iter([1.0, 1.0, 1.0, 9.0, 1.0] * 100)

    def run() -> None:
        clock.now += 0.001 * next(durations)

    (found,) = compare({"engine": run}, rounds=4, seconds=0.012, clock=clock)
    assert found.milliseconds.median == pytest.approx(1)


def test_spread() -> None:
    found = spread([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (found.lower_quartile, found.median, found.upper_quartile) == (2, 3, 4)


def test_record_and_text(engine: Engine, model_file: ModelFile) -> None:
    done = engine("bench", model_file("classifier"), "--rounds", 2, "--json", "--layers")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["peers"][0]["name"] == "nasb-engine"
    assert record["peers"][0]["ratio"]["median"] == 1
    assert record["conditions"]["threads"] == 1
    assert record["conditions"]["cpu"]
    assert "nasb-engine" in record["conditions"]["versions"]
    assert sum(layer["share"] for layer in record["layers"]) == pytest.approx(1)
    assert "nasb-engine" in describe(record)
    assert record["kernel"] in {kernel.name for kernel in kernels() if kernel.verified}
    assert f"kernel {record['kernel']}" in describe(record)


def test_columns_of_layers_stand_apart() -> None:
    layer = LayerProfile("body.layer", "Conv" + 20 * " + Add", "popcount_avx512_vpopcntdq", 2, 1.0, 100, True, 0.5)
    other = LayerProfile("x", "Conv", "map", 1, 0.5, 10, False, 0.5)
    lines = describe_layers([layer, other]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split("  ")[:2] == [layer.layer, layer.operation]
    assert f"  {layer.kernel}  " in lines[1]


def test_the_kernel_is_told(engine: Engine, model_file: ModelFile) -> None:
    arguments = ("bench", model_file("classifier"), "--rounds", 1, "--kernel", "portable")
    assert json.loads(engine(*arguments, "--json").stdout)["kernel"] == "portable"
    assert "portable" in engine(*arguments).stdout.splitlines()[0]
    linear = bench(str(model_file("linear")), rounds=1)
    assert linear["kernel"] == ""
    assert "no binary convolutions" in describe(linear)


def test_further_peers(model_file: ModelFile) -> None:
    seen = []

    def others(image: np.ndarray) -> dict[str, Callable[[], object]]:
        assert image.shape == (1, 3, 8, 8)
        return {"mine": lambda: seen.append(1)}

    record = bench(str(model_file("classifier")), rounds=1, others=others, networks={"mine": "a network (width: 4)"})
    assert [peer["name"] for peer in record["peers"]] == ["nasb-engine", "mine"]
    assert [peer["network"] for peer in record["peers"]] == [None, "a network (width: 4)"]
    assert describe(record).splitlines()[-1].endswith("  a network (width: 4)")
    assert seen


def test_a_peer_that_is_not_installed_is_named(model_file: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(EngineError, match="pip install onnxruntime"):
        bench(str(model_file("classifier")), ["onnxruntime"], rounds=1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnxruntime(model_file: ModelFile, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="a peer: make test-onnxruntime")
    b = Builder(7)
    x = b.node("Relu", b.conv("images", 3, 8))
    real = tmp_path / "real.onnx"
    real.write_bytes(b.model(b.head(b.conv(x, 8, 8), 8), metadata={}).SerializeToString())
    peers = ["onnxruntime", "onnxruntime-int8"]
    record = bench(str(model_file("classifier")), peers, real_model=str(real), rounds=2)
    assert [peer["name"] for peer in record["peers"]] == ["nasb-engine", *peers]
    assert all(peer["ratio"]["median"] > 0 for peer in record["peers"])
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    for name in peers:
        with pytest.raises(EngineError, match=r"broken\.onnx: "):
            bench(str(model_file("classifier")), [name], real_model=str(broken), rounds=1)
