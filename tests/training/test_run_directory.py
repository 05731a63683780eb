import dataclasses
import errno
import json
import multiprocessing
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from nasb.errors import UserError
from nasb.training.checkpoint import Position, _write, load_checkpoint, save_checkpoint
from nasb.training.config import HardwareConfig, RunConfig, first_difference
from nasb.training.run_directory import RunDirectory, read_config


def test_resolved_config_and_environment_are_written(tmp_path: Path) -> None:
    config = RunConfig(seed=3)
    RunDirectory(tmp_path / "run", config).close()
    assert read_config(tmp_path / "run") == config.to_dict()
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]


def test_another_config_is_refused_by_its_first_key(tmp_path: Path) -> None:
    RunDirectory(tmp_path, RunConfig()).close()
    other = RunConfig(search=dataclasses.replace(RunConfig().search, budget=1.2))
    with pytest.raises(UserError, match=r"search\.budget is 1\.2 now, but the run was begun with 1\.1\."):
        RunDirectory(tmp_path, other)


def test_hardware_may_change(tmp_path: Path) -> None:
    RunDirectory(tmp_path, RunConfig()).close()
    RunDirectory(tmp_path, RunConfig(hardware=HardwareConfig(threads=1), checkpoint_minutes=1)).close()


def test_first_difference_names_nested_and_new_keys() -> None:
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1}}) is None
    assert "a.b is 2 now" in str(first_difference({"a": {"b": 1}}, {"a": {"b": 2}}))
    assert "c is None now" in str(first_difference({"c": 1}, {}))


def test_keys_that_an_earlier_version_did_not_have_count_as_their_defaults() -> None:
    begun, now = RunConfig().to_dict(), RunConfig().to_dict()
    del begun["search"]["trials"], begun["resume"], begun["init_partial"]
    assert first_difference(begun, now) is None
    now["search"]["trials"] = 50
    assert "search.trials is 50 now, but the run was begun with 200" in str(first_difference(begun, now))


def test_resume_never_refuses_a_run(tmp_path: Path) -> None:
    RunDirectory(tmp_path, RunConfig()).close()
    with pytest.raises(UserError, match="resume is never"):
        RunDirectory(tmp_path, RunConfig(resume="never"))


def test_resume_never_is_of_a_command_not_of_the_run(tmp_path: Path) -> None:
    RunDirectory(tmp_path, RunConfig(resume="never")).close()
    assert read_config(tmp_path)["resume"] == "auto"


@pytest.mark.parametrize(("old", "new", "same"), [(None, False, True), (False, None, True), (None, True, False)])
def test_photos_in_memory_are_another_run(old: bool | None, new: bool | None, same: bool) -> None:
    begun, now = ({"data": {"in_memory": value}} for value in (old, new))
    assert (first_difference(begun, now) is None) is same


def census(*classes: str, train: list[int]) -> dict[str, Any]:
    return {"classes": list(classes), "images": {"train": train, "validation": [1] * len(classes)}}


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (census("ant", "wolf", train=[8, 8]), "classes ant, wolf: 16 train, 2 validation"),
        (census("cat", "dog", train=[9, 8]), "now classes cat, dog: 17 train"),
        (census("cat", "dog", train=[9, 7]), "now classes cat, dog: 16 train"),
    ],
)
def test_a_run_does_not_go_on_with_other_images(tmp_path: Path, now: dict[str, Any], says: str) -> None:
    begun = census("cat", "dog", train=[8, 8])
    RunDirectory(tmp_path, RunConfig(), images=begun).close()
    RunDirectory(tmp_path, RunConfig(), images=begun).close()
    with pytest.raises(UserError, match=f"begun with other images .*{says}.*another directory to --out"):
        RunDirectory(tmp_path, RunConfig(), images=now)
    (tmp_path / "images.json").write_text("[1")
    with pytest.raises(UserError, match=r"images\.json: is damaged"):
        RunDirectory(tmp_path, RunConfig(), images=begun)
    (tmp_path / "images.json").write_text("[1]")
    with pytest.raises(UserError, match="begun with other images \\(unknown ones; now classes cat, dog"):
        RunDirectory(tmp_path, RunConfig(), images=begun)
    (tmp_path / "images.json").unlink()  # of an earlier version
    RunDirectory(tmp_path, RunConfig(), images=now).close()


def test_other_validation_images_of_their_own_are_told_and_taken(tmp_path: Path) -> None:
    begun = census("cat", "dog", train=[8, 8]) | {"held_out": False}
    now = {**begun, "images": {"train": [8, 8], "validation": [1, 0]}}
    RunDirectory(tmp_path, RunConfig(), images=begun).close()
    with pytest.warns(UserWarning, match=r"16 train, 2 validation; now .*16 train, 1 validation\); it goes on"):
        RunDirectory(tmp_path, RunConfig(), images=now).close()
    with pytest.raises(UserError, match="begun with other images"):
        RunDirectory(tmp_path, RunConfig(), images=now | {"held_out": True})


def linger(there: Event) -> None:
    there.set()
    time.sleep(60)


def test_a_forked_worker_does_not_hold_the_lock(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, RunConfig())
    context = multiprocessing.get_context("fork")
    there = context.Event()
    worker = context.Process(target=linger, args=(there,))
    worker.start()
    assert there.wait(60)
    try:
        with pytest.raises(UserError, match="another process"):
            RunDirectory(tmp_path, RunConfig())
        run.close()
        RunDirectory(tmp_path, RunConfig()).close()
    finally:
        worker.kill()
        worker.join()


def test_two_processes_cannot_work_on_one_run(tmp_path: Path) -> None:
    first = RunDirectory(tmp_path, RunConfig())
    with pytest.raises(UserError, match="another process"):
        RunDirectory(tmp_path, RunConfig())
    first.close()
    RunDirectory(tmp_path, RunConfig()).close()


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(UserError, match="cannot be locked against other processes: No locks available"):
        RunDirectory(tmp_path, RunConfig())


@pytest.mark.parametrize("name", ["checkpoints/search.pt", "race.json", "population.jsonl", "optuna.journal"])
def test_what_a_run_left_is_not_taken_over_without_its_config(tmp_path: Path, name: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=f"holds {name}, but no config.yaml"):
        RunDirectory(tmp_path, RunConfig())
    assert (tmp_path / name).read_text() == "x"


def test_what_was_judged_goes_with_the_weights_that_judged_it(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, RunConfig())
    for name in ("population.jsonl", "optuna.journal", "race.json"):
        (tmp_path / name).write_text("x")
    run.save("search", Position(), {})
    assert run.restore("search") is not None
    assert (tmp_path / "population.jsonl").exists()
    (tmp_path / "checkpoints" / "search.pt").unlink()
    assert run.restore("search") is None
    assert not (tmp_path / "population.jsonl").exists()
    assert not (tmp_path / "optuna.journal").exists()
    assert (tmp_path / "race.json").exists()  # by weights of its own
    run.close()


def test_what_a_kill_left_half_written_is_deleted(tmp_path: Path) -> None:
    RunDirectory(tmp_path, RunConfig()).close()
    left = [tmp_path / "checkpoints" / ".search.pt.ab_12xyz.tmp", tmp_path / ".model.safetensors.ab_12xyz.tmp"]
    kept = [tmp_path / "checkpoints" / "search.pt", tmp_path / "model.safetensors", tmp_path / ".notes.tmp"]
    for path in left + kept:
        path.write_bytes(b"x")
    RunDirectory(tmp_path, RunConfig()).close()
    assert [path.exists() for path in left + kept] == [False, False, True, True, True]


def test_a_run_begins_when_all_that_describes_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before config.yaml is there, the next attempt writes environment.json again."""

    def killed(path: Path, text: str) -> None:
        if path.name == "environment.json":
            raise KeyboardInterrupt
        path.write_text(text)

    with monkeypatch.context() as patch:
        patch.setattr("nasb.training.run_directory.write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            RunDirectory(tmp_path, RunConfig())
    RunDirectory(tmp_path, RunConfig()).close()
    assert (tmp_path / "environment.json").exists()
    assert (tmp_path / "config.yaml").exists()


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, RunConfig())
    run.log({"stage": "pretrain", "epoch": 0, "train_loss": 1.0})
    run.save("pretrain", Position(1, 0, 5.0), {"x": torch.ones(2)})
    run.log({"stage": "pretrain", "epoch": 1, "train_loss": 0.5})
    restored = run.restore("pretrain")
    assert restored is not None
    assert restored[0] == Position(1, 0, 5.0)
    assert torch.equal(restored[1]["x"], torch.ones(2))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    run.close()


def test_a_stage_that_begins_anew_drops_its_own_lines_only(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, RunConfig())
    run.log({"stage": "search", "epoch": 0, "loss": 1.0})
    run.log({"stage": "pretrain", "epoch": 0, "loss": 1.0})
    assert run.restore("pretrain") is None
    assert [json.loads(line)["stage"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == ["search"]
    run.close()


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "other stage", "pickle"])
def test_a_damaged_checkpoint_is_refused_with_what_to_do(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "pretrain.pt"
    stage = "search" if damage == "other stage" else "pretrain"
    save_checkpoint(path, stage, Position(), 0, {"x": torch.zeros(1000)})
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-500])
    elif damage == "garbage":
        path.write_bytes(b"\x00\xff" * 500)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "pickle":
        torch.save({"version": 1, "stage": stage, "state": Path("x")}, path)
    with pytest.raises(
        UserError, match=r"pretrain\.pt: is (damaged, or no checkpoint of this run|a checkpoint of stage search)"
    ):
        load_checkpoint(path, "pretrain")


@pytest.mark.parametrize("kind", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("file write failed")])
def test_a_full_disk_leaves_the_former_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Exception
) -> None:
    path = tmp_path / "search.pt"
    save_checkpoint(path, "search", Position(1, 0, 0.0), 0, {})
    before = path.read_bytes()

    def write_half(values: object, target: BinaryIO) -> None:
        target.write(b"half")
        raise kind

    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(UserError, match=r"search\.pt: cannot be written.*the former file is untouched"):
        save_checkpoint(path, "search", Position(2, 0, 0.0), 0, {})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["search.pt"]


def test_a_full_disk_is_called_so() -> None:
    with pytest.raises(OSError, match="No space left on device"):
        _write({"x": torch.zeros(100_000)}, Path("/dev/full"))
