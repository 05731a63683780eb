"""The preprocessing in the file, applied as docs/onnx-file.md says with Pillow and NumPy alone, is nasb's own."""

import json

import numpy as np
import onnx
import pytest
import torch
from deploy_reference import export, zoo
from PIL import Image

from nasb.data import Preprocessing, load_image


def as_documented(path, record):
    image = Image.open(path)
    if image.mode.startswith("I"):
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    mode = "L" if record["channels"] == 1 else "RGB"
    if image.mode != mode:
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        image = image.convert(mode)
    size, resize = record["size"], record["resize"]
    width, height = image.size
    if resize == size:
        wanted = (size, size)
    elif width <= height:
        wanted = (resize, resize * height // width)
    else:
        wanted = (resize * width // height, resize)
    if image.size != wanted:
        image = image.resize(wanted, Image.Resampling.BILINEAR)
    if resize != size:
        left, top = round((wanted[0] - size) / 2), round((wanted[1] - size) / 2)
        image = image.crop((left, top, left + size, top + size))
    x = np.asarray(image).astype(np.float32).reshape(size, size, -1) / np.float32(255)
    x = (x - np.array(record["mean"], np.float32)) / np.array(record["std"], np.float32)
    return x.transpose(2, 0, 1)


def draw(path, kind, size):
    generator = np.random.default_rng(0)
    width, height = size
    pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if kind == "16 bit":
        image = Image.fromarray(generator.integers(0, 65536, (height, width), dtype=np.uint16))
    elif kind == "palette":
        image = image.quantize(16)
        image.info["transparency"] = 3
    elif kind != "RGB":
        image = image.convert(kind)
    image.save(path, **({"transparency": 3} if kind == "palette" else {}))


@pytest.mark.parametrize("size", [(16, 16), (37, 23), (18, 41), (19, 18)])
@pytest.mark.parametrize("kind", ["RGB", "L", "RGBA", "palette", "16 bit"])
@pytest.mark.parametrize("resize", [16, 19])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_document_is_enough(channels, resize, kind, size, tmp_path):
    mean, std = (0.485, 0.456, 0.406)[:channels], (0.229, 0.2, 0.3)[:channels]
    preprocessing = Preprocessing(channels=channels, size=16, resize=resize, mean=mean, std=std)
    draw(tmp_path / "image.png", kind, size)
    record = json.loads(json.dumps(preprocessing.to_dict()))
    expected = preprocessing(load_image(tmp_path / "image.png"))
    assert torch.equal(torch.from_numpy(as_documented(tmp_path / "image.png", record)), expected)


def test_the_record_is_in_the_file(tmp_path):
    preprocessing = Preprocessing(channels=3, size=16, resize=19, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    export(zoo().build(), tmp_path / "m.onnx", (3, 16, 16), preprocessing=preprocessing)
    values = {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert json.loads(values["nasb.preprocessing"]) == preprocessing.to_dict()
