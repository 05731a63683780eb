"""The names under which networks are made: hosts, and the conversions of each host.

For a host ``resnet18`` there are three names: ``resnet18`` (the real network), ``bireal_resnet18`` (hand-made binary:
every edge "none") and ``nasb_resnet18`` (derived from an architecture, or, without one, the searchable network).
Every network of torchvision and timm is a host as well, ``torchvision/densenet121``, and so are the user's own
factories (nasb.networks.families). Binary networks that others made by hand, and that are no conversion of a host, have
one name each (nasb.networks.rivals).
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasb.cells.architecture import Architecture
from nasb.cells.config import CellConfig
from nasb.errors import UserError, unknown_name
from nasb.registry import Registry

if TYPE_CHECKING:
    from torch import nn

HAND_MADE = "bireal_"
SEARCHED = "nasb_"


@dataclass(frozen=True, kw_only=True)
class Host:
    """A registered real network: how it is made, and the images and classes that it is made for by default."""

    build: Callable[..., "nn.Module"]
    input_shape: tuple[int, int, int]
    num_classes: int
    description: str

    def options(self) -> list[str]:
        """Return the names of the host's own options."""
        return [
            name
            for name, parameter in inspect.signature(self.build).parameters.items()
            if name not in ("num_classes", "in_channels") and parameter.kind is not parameter.VAR_KEYWORD
        ]

    def accepts(self, option: str) -> bool:
        """Whether it takes an option; one that takes any checks its options when it is built."""
        kinds = {parameter.kind for parameter in inspect.signature(self.build).parameters.values()}
        return option in self.options() or inspect.Parameter.VAR_KEYWORD in kinds


HOSTS: Registry[Host] = Registry("host network")
RIVALS: Registry[Host] = Registry("hand-made binary network")


def register_host(
    name: str, *, input_shape: tuple[int, int, int], num_classes: int
) -> Callable[[Callable[..., "nn.Module"]], Callable[..., "nn.Module"]]:
    """Return a decorator that registers a real CNN as a host, under its name and those of its conversions.

    The decorated function takes ``num_classes`` and ``in_channels`` (channels of the images) and options of its own,
    by name; the first line of its docstring describes it.

    Raises:
        ValueError: the name is taken, or begins like a conversion's.
    """
    if name.startswith((HAND_MADE, SEARCHED)):
        raise ValueError(f'a host cannot be called "{name}": {HAND_MADE} and {SEARCHED} name conversions')

    def enter(build: Callable[..., "nn.Module"]) -> Callable[..., "nn.Module"]:
        if build.__module__ != "nasb.networks.hosts":
            _register_own_hosts()  # so that their names are taken
        description = (build.__doc__ or name).strip().splitlines()[0]
        HOSTS.register(name)(
            Host(build=build, input_shape=input_shape, num_classes=num_classes, description=description)
        )
        return build

    return enter


def register_rival(
    name: str, *, input_shape: tuple[int, int, int], num_classes: int
) -> Callable[[Callable[..., "nn.Module"]], Callable[..., "nn.Module"]]:
    """Return a decorator that registers a hand-made binary network; the decorated function as in `register_host`."""

    def enter(build: Callable[..., "nn.Module"]) -> Callable[..., "nn.Module"]:
        description = (build.__doc__ or name).strip().splitlines()[0]
        RIVALS.register(name)(
            Host(build=build, input_shape=input_shape, num_classes=num_classes, description=description)
        )
        return build

    return enter


def list_networks(pattern: str = "*") -> list[str]:
    """Return the names that match a shell wildcard, e.g. ``"bireal_*"``.

    Those of torchvision and timm, of which there are many, only if asked: ``"torchvision/*"``.
    """
    import fnmatch

    from nasb.networks.families import family_names

    _register_own_hosts()
    names = [*RIVALS, *(prefix + host for host in HOSTS for prefix in ("", HAND_MADE, SEARCHED))]
    names += family_names(pattern)
    return sorted(name for name in names if fnmatch.fnmatchcase(name, pattern))


def describe_network(name: str) -> str:
    """Return one line on a registered network."""
    _register_own_hosts()
    if name in RIVALS:
        return f"{RIVALS[name].description.rstrip('.')}; binary, hand-made"
    prefix, host = _split(name)
    description = find_host(host).description.rstrip(".")
    if prefix == HAND_MADE:
        return f"{description}; binary, hand-made (Bi-Real Net)"
    return f"{description}; binary, searchable: what the search trains" if prefix == SEARCHED else description


def find_host(name: str) -> Host:
    """Return a host by its name: a registered one, or one of torchvision or timm.

    Raises:
        UserError: there is none; or it is a factory, whose code is not run unasked.
    """
    from nasb.networks.families import family_host, is_factory, is_moved, is_of_family

    _register_own_hosts()
    if name in HOSTS:
        return HOSTS[name]
    if is_of_family(name):
        return family_host(name)
    if is_factory(name):
        moved = [own for own in HOSTS if is_moved(name, own)]
        if len(moved) == 1:  # the user has named it from another folder, or another machine
            return HOSTS[moved[0]]
        raise UserError(
            f"{name}: is a factory, whose code is run only where you name it: --plugin {name}, wherever the file is "
            f'now (in Python: nasb.register_factory("{name}"))'
        )
    known = unknown_name("host network", name, [*HOSTS, *RIVALS])
    raise UserError(f"{known}; one of your own is known by --plugin FILE.py (in Python: nasb.register_host)")


def _split(name: str) -> tuple[str, str]:
    from nasb.networks.families import FAMILIES, family_names, is_factory, is_of_family

    _register_own_hosts()
    for prefix in (HAND_MADE, SEARCHED):
        host = name.removeprefix(prefix)
        if host != name and (host in HOSTS or is_of_family(host) or is_factory(host)):
            return prefix, host
    if name in HOSTS or is_of_family(name) or is_factory(name):
        return "", name
    if name.endswith(".py"):
        raise UserError(f"{name}: is a file; name the function in it that makes the network: {name}:FUNCTION")
    prefix = next((prefix for prefix in (HAND_MADE, SEARCHED) if name.startswith(prefix)), "")
    for family in FAMILIES:
        if (model := family + name.removeprefix(prefix)) in family_names(model):
            raise UserError(f'unknown network "{name}"; there is {prefix}{model}')
    raise UserError(unknown_name("network", name, list_networks()))


def is_searchable(name: str) -> bool:
    """Whether a name is that of a registered host with a cell to search: "nasb_resnet18"."""
    with suppress(UserError):
        return _split(name)[0] == SEARCHED
    return False


def host_of(name: str) -> str:
    """Return the host of a registered name: "resnet18" for "bireal_resnet18"."""
    return _split(name)[1]


def _register_own_hosts() -> None:
    import nasb.networks.hosts
    import nasb.networks.rivals  # noqa: F401 - both register on import


def host_defaults(name: str) -> tuple[tuple[int, int, int], int]:
    """Return (input shape, number of classes) that a registered network is made for by default."""
    _register_own_hosts()
    host = RIVALS[name] if name in RIVALS else find_host(_split(name)[1])
    return host.input_shape, host.num_classes


def create_host(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> "nn.Module":
    """Build a registered real network, or a hand-made binary one (`is_rival`), as it is: nothing is converted.

    Raises:
        UserError: the name or an option is unknown, or an option's value is refused.
    """
    _register_own_hosts()
    found = RIVALS[name] if name in RIVALS else find_host(name)
    return _build(name, found, num_classes, in_channels, options)


def is_rival(name: str) -> bool:
    """Whether a name is that of a hand-made binary network, which is no conversion of a host and has no cells."""
    _register_own_hosts()
    return name in RIVALS


def _build(
    name: str, host: Host, num_classes: int | None, in_channels: int | None, options: Mapping[str, Any] | None
) -> "nn.Module":
    options = dict(options or {})
    for key, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value is not None and value < 1:
            raise UserError(f"{name}: {key} is {value}; it must be at least 1")
    for key in options:
        if not host.accepts(key):
            raise UserError(f"{name}: {unknown_name('option', key, host.options())}")
    try:
        return host.build(
            num_classes=host.num_classes if num_classes is None else num_classes,
            in_channels=host.input_shape[0] if in_channels is None else in_channels,
            **options,
        )
    except UserError:
        raise
    except Exception as error:  # it may be of another library, or of the user
        plain = isinstance(error, TypeError | ValueError | RuntimeError)
        reason = str(error) if plain else f"{type(error).__name__}: {error}"
        raise UserError(f"{name}: cannot be built with {options}: {reason}") from None


def create_network(
    name: str,
    *,
    num_classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    architecture: "Architecture | str | Path | None" = None,
    keep_real: Sequence[str] = (),
    **options: Any,
) -> "nn.Module":
    """Build a registered network: a host, its hand-made binary or its searched form.

    Args:
        name: see `list_networks`.
        num_classes: number of classes; by default what the host was published with.
        input_shape: [channels, height, width]; by default what the host was published with.
        architecture: for ``nasb_...``: an `Architecture` or the path of its JSON. Without it ``nasb_...`` is the
            searchable network, with every candidate present.
        keep_real: for binary networks: shell wildcards of what stays real, see `nasb.convert`.
        options: the host's own (``width``, ``stem_stride``, ...) and those of `CellConfig` (``bases``,
            ``activation``, ...).

    Raises:
        UserError: unknown name or option, or an architecture of another host.
    """
    from nasb.networks.convert import convert

    if input_shape is not None:
        input_shape = (input_shape[0], input_shape[1], input_shape[2])
    _register_own_hosts()
    if name in RIVALS:
        if architecture is not None:
            raise UserError(f"{name}: an architecture is for {SEARCHED}... networks")
        channels = None if input_shape is None else input_shape[0]
        return create_host(name, num_classes=num_classes, in_channels=channels, options=options)
    prefix, host_name = _split(name)
    found = find_host(host_name)
    shape = input_shape or found.input_shape
    cell_keys = [field.name for field in fields(CellConfig)]
    cell_options = {key: value for key, value in options.items() if key in cell_keys}
    host_options = {key: value for key, value in options.items() if key not in cell_keys}
    if not prefix and (cell_options or keep_real):
        keys = ", ".join([*cell_options, *(["keep_real"] if keep_real else [])])
        raise UserError(f"{name}: {keys} are options of binary networks; try {HAND_MADE}{name}")
    unknown = [key for key in host_options if not found.accepts(key)]
    if prefix and unknown:
        raise UserError(f"{name}: {unknown_name('option', unknown[0], [*found.options(), *cell_keys])}")
    if architecture is not None:
        if prefix != SEARCHED:
            raise UserError(f"{name}: an architecture is for {SEARCHED}{host_name}")
        if keep_real:
            raise UserError(f"{name}: keep_real is in the architecture already")
        return _from_architecture(architecture, name, host_name, num_classes, input_shape, options)
    host = create_host(host_name, num_classes=num_classes, in_channels=shape[0], options=host_options)
    if not prefix:
        return host
    return convert(host, shape, cell=CellConfig(**cell_options), search=prefix == SEARCHED, keep_real=tuple(keep_real))


def _from_architecture(
    architecture: "Architecture | str | Path",
    name: str,
    host_name: str,
    num_classes: int | None,
    input_shape: tuple[int, int, int] | None,
    options: Mapping[str, Any],
) -> "nn.Module":
    if not isinstance(architecture, Architecture):
        architecture = Architecture.load(architecture)
    if architecture.host != host_name:
        raise UserError(f'{name}: the architecture is of the host "{architecture.host}", not of "{host_name}"')
    if options:
        raise UserError(f"{name}: {', '.join(options)} are in the architecture already")
    if input_shape is not None and input_shape != architecture.input_shape:
        raise UserError(f"{name}: input_shape is {input_shape}, the architecture's is {architecture.input_shape}")
    if num_classes is not None and num_classes != architecture.num_classes:
        raise UserError(f"{name}: num_classes is {num_classes}, the architecture's is {architecture.num_classes}")
    return build_architecture(architecture)


def build_architecture(architecture: Architecture, host: "nn.Module | None" = None) -> "nn.Module":
    """Build the derived network of an architecture; see `Architecture.build`. A hand-made one is not converted."""
    from nasb.networks.convert import convert

    if host is None:
        _register_own_hosts()
        host = create_host(
            architecture.host,
            num_classes=architecture.num_classes,
            in_channels=architecture.input_shape[0],
            options=architecture.options,
        )
    if is_rival(architecture.host):
        if architecture.cells:
            raise UserError(
                f"{architecture.host}: is a hand-made binary network without cells; the architecture has some"
            )
        return host
    # The host's conversion was checked when the architecture was made.
    return convert(
        host,
        architecture.input_shape,
        cell=architecture.cell,
        cells=architecture.cells,
        keep_real=architecture.keep_real,
        check=False,
    )
