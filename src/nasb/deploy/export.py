"""export_onnx(): a trained network in, one ONNX file out that holds one bit per binary weight (docs/onnx-file.md)."""

import copy
import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from nasb.cells.architecture import Architecture
from nasb.cells.searchable import SearchableEdge
from nasb.cost import count
from nasb.data import Preprocessing
from nasb.deploy.graph import GraphBuilder
from nasb.deploy.lowering import Lowering
from nasb.deploy.report import Export, contents
from nasb.deploy.step import is_layer
from nasb.deploy.tracing import trace
from nasb.deploy.verify import verify
from nasb.errors import UserError
from nasb.files import destination, is_text, write_atomically
from nasb.model_file import Model

LAYOUT_VERSION = 1
"""Of packed weights and of the metadata; a reader refuses what is newer than itself."""
LARGEST = 2**31
"""Bytes of a protobuf message."""


def export_model(model: Model, path: str | Path) -> Export:
    """Export a trained network with all that belongs to it; see `export_onnx`."""
    return export_onnx(
        model.network,
        path,
        model.architecture.input_shape,
        class_names=model.class_names,
        preprocessing=model.preprocessing,
        architecture=model.architecture,
    )


def export_onnx(
    module: nn.Module,
    path: str | Path,
    input_shape: Sequence[int],
    *,
    class_names: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    architecture: Architecture | None = None,
) -> Export:
    """Write a network as an ONNX file, after the file has been compared with the network.

    Args:
        module: a network of nasb, or any network of layers that the file can hold; it is not changed, and exported as
            it is in evaluation mode.
        path: the file; what stood there stands until the new one is whole.
        input_shape: [channels, height, width] of one image. The number of images is free.
        class_names: one for each output, all different; by default the numbers from 0.
        preprocessing: how an image becomes the network's input; goes into the metadata.
        architecture: of which the network was built; goes into the metadata.

    Returns:
        What was written, byte by byte, and how it was verified.

    Raises:
        UserError: the network is searchable or in its phase of pretraining, has a layer that the file cannot hold, does
            not run on `input_shape`, the class names are no texts or not different, or the file cannot be written or
            differs from the network.
    """
    path = Path(path)
    check_path(path)
    shape = _check_shape(input_shape, preprocessing)
    _check_class_names(class_names)
    network, lowering, output = _lowered(module, shape)
    classes = lowering.classes
    names = [str(number) for number in range(classes)] if class_names is None else list(class_names)
    if len(names) != classes:
        raise UserError(f"export: {len(names)} class names are given, the network has {classes} outputs")
    metadata = {
        "nasb.layout_version": str(LAYOUT_VERSION),
        "nasb.version": version("nasb"),
        "nasb.input_shape": json.dumps(shape),
        "nasb.class_names": json.dumps(names, ensure_ascii=False),
    }
    if preprocessing is not None:
        metadata["nasb.preprocessing"] = json.dumps(preprocessing.to_dict())
    if architecture is not None:
        metadata["nasb.architecture"] = json.dumps(architecture.to_dict())
    model = lowering.graph.model(output, shape, classes, metadata, version("nasb"))
    if model.ByteSize() >= LARGEST:
        raise UserError(f"export: the file would have {model.ByteSize():,} bytes; an ONNX file holds less than 2^31")
    data = model.SerializeToString(deterministic=True)
    verification = verify(data, lowering, shape)

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    write_atomically(path, write)
    parts, real = contents(network, lowering, model)
    return Export(
        path=path,
        predicted_bytes=count(network, shape).memory_bits / 8,
        file_bytes=len(data),
        parts=parts,
        real_layers=real,
        verification=verification,
    )


def refusal(module: nn.Module, input_shape: Sequence[int]) -> str | None:
    """Return why a network could not be exported, None if it could: to be known before it is trained."""
    try:
        _lowered(module, _check_shape(input_shape, None))
    except UserError as error:
        return str(error)
    return None


def _lowered(module: nn.Module, shape: tuple[int, int, int]) -> tuple[nn.Module, Lowering, str]:
    """Return a copy of a network, its graph as the file holds it, and the name of the output there."""
    _check_network(module)
    network = copy.deepcopy(module).cpu().eval()
    if is_layer(network):
        network = nn.Sequential(network)  # a layer is called by name in a network; alone it would be traced into
    found = trace(network, shape, is_layer)
    lowering = Lowering(found, GraphBuilder(found.names.values()))
    return network, lowering, lowering.run()


def check_path(path: str | Path) -> None:
    """Refuse what cannot become a file, before any work is done.

    Raises:
        UserError: a directory or another thing that is no regular file, a directory that is missing or that cannot be
            written.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a directory; give the name of a file, e.g. {path / 'model.onnx'}")
    if not path.parent.is_dir():
        raise UserError(f"{path}: cannot be written: there is no directory {path.parent}")
    folder = destination(path).parent
    if not folder.is_dir():
        raise UserError(f"{path}: cannot be written: it leads to {folder}, and there is no such directory")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{path}: cannot be written: no permission to write in {folder}")


def _check_shape(input_shape: Sequence[int], preprocessing: Preprocessing | None) -> tuple[int, int, int]:
    shape = tuple(input_shape)
    if len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
        raise UserError(f"export: input_shape is {shape}; give (channels, height, width)")
    if preprocessing is not None and shape != (preprocessing.channels, preprocessing.size, preprocessing.size):
        raise UserError(
            f"export: input_shape is {shape}, but the preprocessing gives {preprocessing.channels} channels of "
            f"{preprocessing.size}x{preprocessing.size}"
        )
    return shape[0], shape[1], shape[2]


def _check_class_names(names: Sequence[str] | None) -> None:
    if isinstance(names, str):
        raise UserError(f"export: class_names is the text {names!r}; give a list of texts")
    seen: set[str] = set()
    for index, name in enumerate(names or ()):
        if not isinstance(name, str):
            raise UserError(f"export: class_names[{index}] is {name!r}; give texts, such as {str(name)!r}")
        if not is_text(name):
            raise UserError(f"export: class_names[{index}] is {name!r}, which is not valid Unicode")
        if name in seen:
            raise UserError(f"export: class_names has {name!r} twice; classes are told apart by their names")
        seen.add(name)


def _check_network(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if isinstance(part, SearchableEdge):
            raise UserError(f"export: {name} is searchable; derive an architecture and train it first")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype is not torch.float32:
            raise UserError(f"export: {name} is {str(tensor.dtype).removeprefix('torch.')}; the file holds float32")
