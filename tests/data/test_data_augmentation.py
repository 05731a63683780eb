import numpy as np
import pytest
import torch
from PIL import Image

from nasb.data._augmentation import CropResizeFlip, ShiftFlip
from nasb.data._draws import draw_bits


def slow_shift_flip(pixels: np.ndarray, bits: int, padding: int, flip: bool) -> np.ndarray:
    """Shift and flip one image [C, H, W] pixel by pixel, as the docstrings say it."""
    _, height, width = pixels.shape
    top = (bits % 2**24) * (2 * padding + 1) // 2**24
    left = (bits // 2**24 % 2**24) * (2 * padding + 1) // 2**24
    result = np.zeros_like(pixels)
    for row in range(height):
        for column in range(width):
            from_row, from_column = row + top - padding, column + left - padding
            if 0 <= from_row < height and 0 <= from_column < width:
                to_column = width - 1 - column if flip and bits >= 2**63 else column
                result[:, row, to_column] = pixels[:, from_row, from_column]
    return result


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("channels", "height", "width", "padding"), [(3, 8, 8, 1), (1, 7, 9, 2), (3, 6, 6, 4)])
def test_batches_are_shifted_and_flipped_as_single_images(
    channels: int, height: int, width: int, padding: int, flip: bool
) -> None:
    images = np.random.default_rng(0).integers(1, 256, (50, channels, height, width), dtype=np.uint8)
    bits = draw_bits(np.arange(50), 0, "augment")
    before = images.copy()
    result = ShiftFlip(padding, flip)(torch.from_numpy(images), bits)
    expected = [
        slow_shift_flip(image, int(one), padding, flip) for image, one in zip(images, bits.tolist(), strict=True)
    ]
    assert result.dtype == torch.uint8
    assert (result.numpy() == np.stack(expected)).all()
    assert (images == before).all()


def test_all_places_are_equally_likely_and_half_is_flipped() -> None:
    top, left, flipped = ShiftFlip(4, True).choices(draw_bits(np.arange(81_000), 0, "augment"))
    counts = np.bincount(9 * top + left, minlength=81)
    # 81 cells of 1,000 expected: 5 standard deviations are 158.
    assert counts.size == 81
    assert np.abs(counts - 1000).max() < 158
    assert abs(flipped.float().mean().item() - 0.5) < 0.01


def photo() -> Image.Image:
    rows, columns = np.mgrid[0:60, 0:80]
    return Image.fromarray(np.stack([rows * 4, columns * 3, rows + columns], 2).astype(np.uint8))


def test_photos_are_cropped_by_their_bits_alone() -> None:
    crop, state = CropResizeFlip(24), torch.get_rng_state()
    bits = draw_bits(np.arange(8), 0, "augment").tolist()
    first = [crop(photo(), one) for one in bits]
    torch.rand(5)
    after = torch.get_rng_state()
    again = [crop(photo(), one) for one in reversed(bits)]
    assert (torch.get_rng_state() == after).all()
    torch.set_rng_state(state)
    assert all((a == b).all() for a, b in zip(first, reversed(again), strict=True))
    assert len({image.tobytes() for image in first}) == 8
    assert first[0].shape == (3, 24, 24)
    assert crop(photo().convert("L"), 5).shape == (1, 24, 24)


def test_photos_are_flipped_and_cover_8_to_100_percent() -> None:
    # Green rises with the column (3 a pixel), red with the row (4 a pixel): slopes tell the crop's sides in the photo.
    crop = CropResizeFlip(24)
    areas, flips = [], []
    for one in draw_bits(np.arange(300), 1, "augment").tolist():
        image = crop(photo(), one).astype(float)
        columns = (image[1, :, 20] - image[1, :, 3]).mean() / 3 / 17 * 24
        rows = (image[0, 20] - image[0, 3]).mean() / 4 / 17 * 24
        flips.append(columns < 0)
        areas.append(abs(columns) * rows / (60 * 80))
    assert 0.4 < np.mean(flips) < 0.6
    assert 0.05 < min(areas) < 0.15
    assert 0.85 < max(areas) < 1.05
