"""Tiny image folders, made for each test."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Return a function that writes root/<part>/<class>/NN.png and returns root.

    Every image's first pixel is (part, class, number), so that it can be recognized after any reading.
    """

    def make(
        parts: dict[str, int],
        classes: tuple[str, ...] = ("ant", "bee"),
        side: int | Callable[[int], tuple[int, int]] = 8,
        name: str = "root",
    ) -> Path:
        root = tmp_path / name
        random = np.random.default_rng(0)
        for part_number, (part, count) in enumerate(parts.items()):
            for class_number, class_name in enumerate(classes):
                folder = root / part / class_name
                folder.mkdir(parents=True)
                for number in range(count):
                    width, height = side(number) if callable(side) else (side, side)
                    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
                    pixels[0, 0] = part_number, class_number, number
                    Image.fromarray(pixels).save(folder / f"{number:02}.png")
        return root

    return make


@pytest.fixture
def truncate() -> Callable[[Path], None]:
    """Return a function that replaces a file by a JPEG image that ends early."""

    def cut(path: Path) -> None:
        pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, format="JPEG")
        data = path.read_bytes()
        path.write_bytes(data[: len(data) - 60])

    return cut
