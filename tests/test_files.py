"""Atomic writing: it follows links, and replaces nothing but regular files."""

import os
import socket
from pathlib import Path

import pytest
import torch

from nasb.errors import UserError
from nasb.files import load_safetensors, save_safetensors, write_text


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far/file").write_text("former")
    (tmp_path / "link").symlink_to("far/file")
    (tmp_path / "link of link").symlink_to("link")
    write_text(tmp_path / "link of link", "new")
    assert (tmp_path / "far/file").read_text() == "new"
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "link of link").is_symlink()
    assert os.listdir(tmp_path / "far") == ["file"]  # noqa: PTH208 - the temporary file is gone


def test_a_link_to_nothing_yet(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize("kind", ["fifo", "socket", "directory", "link to fifo"])
def test_what_is_no_regular_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    path = tmp_path / "it"
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("it")
    elif kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(tmp_path / "fifo" if kind == "link to fifo" else path)
    if kind == "link to fifo":
        path.symlink_to("fifo")
    before = {entry.name: entry.lstat() for entry in tmp_path.iterdir()}
    with pytest.raises(UserError, match="it: cannot be written: it is not a regular file; give another name"):
        write_text(path, "new")
    assert {entry.name: entry.lstat() for entry in tmp_path.iterdir()} == before


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="loop: cannot be written: Too many levels of symbolic links"):
        write_text(tmp_path / "loop", "new")


def test_tensors_that_share_memory_are_written_each(tmp_path: Path) -> None:
    a = torch.arange(6.0)
    save_safetensors(tmp_path / "x.safetensors", {"a": a, "tied": a, "part": a[2:4]}, {})
    found, _ = load_safetensors(tmp_path / "x.safetensors")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "a": [0, 1, 2, 3, 4, 5], "tied": [0, 1, 2, 3, 4, 5], "part": [2, 3],
    }  # fmt: skip
