"""nasb shards: a folder of images as tar files."""

import sys
from collections.abc import Sequence
from pathlib import Path

from nasb.cli.parsing import parser
from nasb.errors import UserError


def shards_command(arguments: Sequence[str]) -> None:
    """Pack a folder of images into shards, or index shards that are there."""
    p = parser(
        "shards",
        "Pack root/train/<class>/* (and val/, test/) into tar files as the WebDataset library reads them, with an "
        "index. --data.root OUT then stands for --data.root ROOT, with the same batches.",
    )
    p.add_argument("root", type=str, help="the folder; with --index, the folder of the shards")
    p.add_argument("-o", "--output", type=str, default=None, help="folder of the shards: empty, or not there yet")
    p.add_argument("--megabytes", type=int, default=256, help="megabytes (1e6) of images after which a shard is full")
    p.add_argument("--seed", type=int, default=0, help="seed of the order of the images in the shards")
    p.add_argument("--index", action="store_true", help="index shards that others have written: *train*.tar, *val*.tar")
    values = p.parse_args(list(arguments))
    if values.megabytes < 1:
        raise UserError(f"--megabytes is {values.megabytes}; it must be at least 1")
    if values.index == (values.output is not None):
        raise UserError("give either --output, the folder of the shards to write, or --index, for shards that exist")
    from nasb.data._folders import VALIDATION, existing_folder, image_folder
    from nasb.data._shards import holds_shards, write_index, write_shards

    if values.index:
        images = write_index(existing_folder(values.root))
        print(f"{values.root}: " + ", ".join(f"{part} {count:,} images" for part, count in images.items()))
        return
    if holds_shards(values.root):
        raise UserError(f"{values.root}: holds shards already; give the folder of images that they were made of")
    source = image_folder(values.root, validation=VALIDATION, test="test")
    print(", ".join(f"{part} {len(images.targets):,} images" for part, images in source.parts.items()), file=sys.stderr)
    out = Path(values.output).expanduser()
    shards = write_shards(source, out, shard_bytes=values.megabytes * 10**6, seed=values.seed)
    print(f"{out}: " + ", ".join(f"{part} {count:,} shards" for part, count in shards.items()))
