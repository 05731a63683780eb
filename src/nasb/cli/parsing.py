"""What all commands share: parsers whose errors are one line, and the run's config from YAML and flags."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from jsonargparse import ArgumentParser, set_parsing_settings

from nasb.errors import UserError, closest, unknown_name
from nasb.recipes import recipe_path

if TYPE_CHECKING:
    import yaml

    from nasb.training.config import RunConfig

PLUGIN_HELP = "Python file that registers your own networks, or a factory: file.py:function; repeatable"

# How jsonargparse tells that a value is of another type, and our words for the types.
WRONG_VALUE = re.compile(r'Parser key "(?P<key>[^"]+)":.*?(?:Got|Given) value: (?P<value>[^\n]*)$', re.DOTALL)
WRONG_KIND = re.compile(r"Expected a <class '(\w+)'>")
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "tuple": "a list",
    "dict": "a mapping",
}
UNKNOWN_FLAG = re.compile(r"unrecognized arguments: (?P<flag>--[^\s=]+)")
FLAGS_ONLY = {"out": None, "devices": None, "nodes": None}
"""What a config file may hold beside a run's keys, as --print_config writes it."""

set_parsing_settings(docstring_parse_attribute_docstrings=True)


class Parser(ArgumentParser):
    """A parser that raises UserError instead of printing its usage and leaving."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message as a UserError, in our words where a value is of another type."""
        wrong = WRONG_VALUE.search(message)
        kinds = [KINDS[kind] for kind in WRONG_KIND.findall(message) if kind in KINDS]
        if wrong is not None and kinds:
            message = f"--{wrong['key']} is {wrong['value']}; give {' or '.join(dict.fromkeys(kinds))}"
        if (unknown := UNKNOWN_FLAG.search(message)) is not None:
            close = closest(unknown["flag"], self._option_string_actions)
            message = f"unknown option {unknown['flag']}{close}; {self.prog} --help shows all"
        raise UserError(message) from None


def parser(command: str, description: str) -> Parser:
    """Return an empty parser of a command."""
    return Parser(prog=f"nasb {command}", description=description, default_env=False, allow_abbrev=False)


def run_parser(command: str, description: str) -> Parser:
    """Return a parser with the whole run config, --config and --out."""
    from nasb.training.config import RunConfig

    p = parser(command, description)
    p.add_argument("--config", action="config", help="YAML file with the keys below, or the name of a recipe")
    p.add_argument("--out", type=str, default=None, help="run directory")
    p.add_argument("--devices", type=int, default=None, help="short for --hardware.devices")
    p.add_argument("--nodes", type=int, default=None, help="short for --hardware.nodes")
    p.add_class_arguments(RunConfig, None)
    return p


def parse_run(command: str, description: str, arguments: Sequence[str]) -> "tuple[RunConfig, Path]":
    """Return the config and the run directory that the command line asks for.

    A run directory that holds a run brings its config, unless --config is given.

    Raises:
        UserError: what is wrong, by key.
    """
    from nasb.training.config import RunConfig

    p = run_parser(command, description)
    arguments = _with_recipe_paths(list(arguments))
    out = _value(arguments, "--out")
    if out is not None and _value(arguments, "--config") is None and (Path(out) / "config.yaml").is_file():
        arguments = ["--config", str(Path(out) / "config.yaml"), *arguments]
    for config in _values(arguments, "--config"):
        check_yaml(Path(config))
        try:
            p.parse_args(["--config", config])
        except UserError as error:
            raise UserError(f"{config}: {str(error).removeprefix('--')}") from None
    values = p.parse_args(arguments)
    if not values.out:
        raise UserError(f"nasb {command}: --out is missing: give the run directory")
    made = p.instantiate(values)
    fields = {key: made[key] for key in RunConfig.__dataclass_fields__}
    for key in ("devices", "nodes"):
        if values[key] is not None:
            fields["hardware"] = replace(fields["hardware"], **{key: values[key]})
    return RunConfig(**fields), Path(values.out)


def check_yaml(path: Path) -> None:
    """Refuse a config file that is not YAML, or whose keys are not those of a run, by file and key.

    Raises:
        UserError: names the file and the key, with the closest known ones.
    """
    import yaml

    from nasb.training.config import RunConfig

    try:
        text = path.read_text(encoding="utf-8")
        repeated = _repeated_key(yaml.compose(text, yaml.SafeLoader))
        values = yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a mapping of keys, not {type(values).__name__}")
    if repeated is not None:
        raise UserError(f"{path}: the key {repeated} stands there twice; keep one of them")
    known = RunConfig().to_dict() | FLAGS_ONLY
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{path}: {unknown_name('key', key, known)}")
        if isinstance(known[key], dict):
            if not isinstance(value, dict):
                raise UserError(f"{path}: {key} must be a mapping of keys, not {value!r}")
            for inner in value:
                if inner not in known[key]:
                    raise UserError(
                        f"{path}: {unknown_name('key', f'{key}.{inner}', [f'{key}.{k}' for k in known[key]])}"
                    )


def _repeated_key(node: "yaml.Node | None", prefix: str = "") -> str | None:
    """Return the first key that stands twice in one mapping, up to two levels deep; YAML's reader keeps the last."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        return None
    seen = set()
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if name in seen:
            return name
        seen.add(name)
        inner = None if prefix else _repeated_key(value, f"{name}.")
        if inner is not None:
            return inner
    return None


def _value(arguments: Sequence[str], flag: str) -> str | None:
    return next(reversed(_values(arguments, flag)), None)


def _values(arguments: Sequence[str], flag: str) -> list[str]:
    """Return what is given to a flag, each time that it is given."""
    found = []
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        if argument.startswith(f"{flag}="):
            found.append(argument.split("=", 1)[1])
        elif argument == flag and following is not None:
            found.append(following)
    return found


def _with_recipe_paths(arguments: list[str]) -> list[str]:
    """Put the path in place of a recipe's name behind --config."""
    for index, argument in enumerate(arguments):
        if argument == "--config" and index + 1 < len(arguments):
            arguments[index + 1] = str(recipe_path(arguments[index + 1]))
        elif argument.startswith("--config="):
            arguments[index] = f"--config={recipe_path(argument.split('=', 1)[1])}"
    return arguments


def load_plugins(paths: Sequence[str]) -> None:
    """Execute what --plugin names."""
    from nasb.plugin import load_plugin

    for path in paths:
        load_plugin(path)
