"""Hosts that are not registered one by one: torchvision/NAME, timm/NAME, and factories of the user's own.

A factory is named ``package.module:function`` or ``file.py:function``. Its code is run only where the user names it,
by `register_factory` (``--network.factory``, ``--plugin``): a file that nasb loads cannot name code that is then run.
"""

import importlib
import importlib.util
import inspect
import runpy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasb.errors import UserError, unknown_name
from nasb.networks.registry import HOSTS, Host
from nasb.plugin import import_from

if TYPE_CHECKING:
    from torch import nn

IMAGES, CLASSES = (3, 224, 224), 1000
TORCHVISION, TIMM = FAMILIES = "torchvision/", "timm/"
WEIGHTS = ("weights", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path")


def is_of_family(name: str) -> bool:
    """Whether a name is that of a network of torchvision or timm."""
    return name.startswith((TORCHVISION, TIMM))


def is_factory(name: str) -> bool:
    """Whether a name is that of a factory."""
    return ":" in name


def is_moved(reference: str, factory: str) -> bool:
    """Whether two references name the same function of a file of the same name, wherever the file is."""
    (file, _, function), (other, _, named) = reference.rpartition(":"), factory.rpartition(":")
    return file.endswith(".py") and function == named and Path(file).name == Path(other).name


def family_host(name: str) -> Host:
    """Return the host ``torchvision/NAME`` or ``timm/NAME``.

    Raises:
        UserError: there is no such model, or timm is not installed.
    """
    return _torchvision(name) if name.startswith(TORCHVISION) else _timm(name)


def family_names(pattern: str) -> list[str]:
    """Return the names of a family's models; of timm's only if it is installed."""
    if pattern.startswith(TORCHVISION):
        from torchvision import models

        return [TORCHVISION + name for name in models.list_models(module=models)]
    if pattern.startswith(TIMM) and importlib.util.find_spec("timm") is not None:
        import timm

        return [TIMM + name for name in timm.list_models()]
    return []


def _torchvision(name: str) -> Host:
    from torchvision import models

    own = name.removeprefix(TORCHVISION)
    known = models.list_models(module=models)
    if own not in known:
        raise UserError(unknown_name("torchvision model", own, known))

    def build(num_classes: int, in_channels: int, **options: Any) -> "nn.Module":
        return torchvision_model(own, num_classes, in_channels, **options)

    return Host(build=build, input_shape=IMAGES, num_classes=CLASSES, description=f"{own} of torchvision")


def torchvision_model(name: str, num_classes: int, in_channels: int, **options: Any) -> "nn.Module":
    """Build a classification network of torchvision, freshly initialized; `options` are its constructor's."""
    from torchvision import models

    _refuse_weights(TORCHVISION + name, options)
    if name in ("googlenet", "inception_v3"):  # their default is going to change, which they warn of
        options = {"init_weights": True, **options}
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **options)
    return _with_channels(network, in_channels)


def _timm(name: str) -> Host:
    own = name.removeprefix(TIMM)
    try:
        import timm
    except ImportError:
        raise UserError(f'{name}: needs the package timm; pip install "nasb[timm]"') from None
    if not timm.is_model(own):
        raise UserError(unknown_name("timm model", own, timm.list_models(f"*{own[:3]}*")))

    def build(num_classes: int, in_channels: int, **options: Any) -> "nn.Module":
        _refuse_weights(name, options)
        network: nn.Module = timm.create_model(own, num_classes=num_classes, in_chans=in_channels, **options)
        return network

    return Host(build=build, input_shape=IMAGES, num_classes=CLASSES, description=f"{own} of timm")


def _refuse_weights(name: str, options: dict[str, Any]) -> None:
    for key in WEIGHTS:
        if options.get(key):
            raise UserError(f"{name}: {key} is no option here; trained weights come in by --init (safetensors)")


class _FoundError(Exception):
    """Ends a forward pass where what was looked for is found."""


def _with_channels(network: "nn.Module", in_channels: int) -> "nn.Module":
    """Make the convolution that reads the images anew for another number of their channels."""
    from torch import nn

    convolutions = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    name = _first_of(convolutions, network)
    if name is not None and (first := convolutions[name]).in_channels != in_channels:
        changed = nn.Conv2d(
            in_channels, first.out_channels, first.kernel_size, first.stride, first.padding,  # type: ignore[arg-type]
            first.dilation, bias=first.bias is not None, padding_mode=first.padding_mode,  # type: ignore[arg-type]
        )  # fmt: skip
        network.set_submodule(name, changed)
    return network


def _first_of(layers: "Mapping[str, nn.Module]", network: "nn.Module") -> str | None:
    """Return the name of the first layer that runs; of the first one at all, if the network does not run that far."""
    import torch

    def stop(name: str, module: "nn.Module", inputs: object) -> None:
        raise _FoundError(name)

    hooks = [layer.register_forward_pre_hook(partial(stop, name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            network(torch.zeros(1, *IMAGES))
    except _FoundError as error:
        return str(error)
    except Exception:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return next(iter(layers), None)


def register_factory(reference: str) -> None:
    """Import a function that makes a CNN, and register it as a host under the reference itself.

    It is called with ``num_classes`` and ``in_channels`` as far as it takes them, and with the host's options by name.
    If it does not take ``in_channels``, its first convolution is made anew for images of another number of channels.

    Args:
        reference: ``package.module:function`` (also one of the working directory) or ``file.py:function``.

    Raises:
        UserError: there is no such module, file or function, or its code fails.
    """
    if reference in HOSTS:
        return
    where, _, name = reference.rpartition(":")
    if not where or not name:
        raise UserError(f"factory: {reference}: give package.module:function or file.py:function")
    made = _attributes(where)
    if name not in made:
        functions = [key for key, value in made.items() if callable(value) and not key.startswith("_")]
        raise UserError(f"factory: {where}: {unknown_name('function', name, functions)}")
    function = made[name]
    if not callable(function):
        raise UserError(f"factory: {reference}: is a {type(function).__name__}, which cannot be called")
    description = (inspect.getdoc(function) or reference).splitlines()[0]
    HOSTS.register(reference)(
        Host(build=_builder(reference, function), input_shape=IMAGES, num_classes=CLASSES, description=description)
    )


def _attributes(where: str) -> dict[str, Any]:
    """Return what a module or file defines."""
    is_file = where.endswith(".py")
    if is_file and not Path(where).is_file():
        raise UserError(f"factory: {where}: there is no such file")
    import_from(Path(where).parent if is_file else Path.cwd())
    try:
        return runpy.run_path(where) if is_file else vars(importlib.import_module(where))
    except (Exception, SystemExit) as error:
        raise UserError(f"factory: {where} cannot be imported: {type(error).__name__}: {error}") from None


def _builder(reference: str, function: Callable[..., Any]) -> Callable[..., "nn.Module"]:
    parameters = inspect.signature(function).parameters
    names = [name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_POSITIONAL]
    free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())

    def build(num_classes: int, in_channels: int, **options: Any) -> "nn.Module":
        from torch import nn

        for key in options:
            if key not in names and not free:
                raise UserError(f"{reference}: {unknown_name('option', key, names)}")
        if free or "num_classes" in names:
            options["num_classes"] = num_classes
        if "in_channels" in names:
            options["in_channels"] = in_channels
        network = function(**options)
        if not isinstance(network, nn.Module):
            raise UserError(f"{reference}: returns a {type(network).__name__}; it must return a torch.nn.Module")
        return network if "in_channels" in names else _with_channels(network, in_channels)

    return build
