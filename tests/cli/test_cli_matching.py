"""A network is evaluated on images like those that it was trained on, or not at all."""

import dataclasses
import re

import pytest

from nasb.cli.matching import check_images
from nasb.data import DataConfig, open_data
from nasb.errors import UserError

DIGITS = tuple("0123456789")


def test_images_that_fit_and_files_that_do_not_tell() -> None:
    data = open_data(DataConfig(), seed=0)
    check_images("run", data.preprocessing, DIGITS, data)
    check_images("model.onnx", None, (), data)


def test_other_images_are_refused() -> None:
    data = open_data(DataConfig(), seed=0)
    colour = dataclasses.replace(data.preprocessing, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(UserError, match=r"^run: was trained on images of 3 channel\(s\), but those of digits have 1;"):
        check_images("run", colour, DIGITS, data)
    larger = dataclasses.replace(data.preprocessing, size=16, resize=16)
    with pytest.raises(UserError, match=r"^run: was trained on images prepared as .*size=16.* give --data.image_size"):
        check_images("run", larger, DIGITS, data)


def test_other_classes_are_refused() -> None:
    data = open_data(DataConfig(), seed=0)
    says = "run: its classes are 1, 0, 2, those of the images 0, 1, 2, 3, 4, ..."
    with pytest.raises(UserError, match=f"^{re.escape(says)}$"):
        check_images("run", data.preprocessing, ("1", "0", "2"), data)
