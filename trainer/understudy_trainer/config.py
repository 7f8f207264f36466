"""Options of a training command, from the dataclass that holds them: its field docstrings are the help.

One place says what an option is called, means, defaults to and may be; a command line that repeated it would drift.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

from pydantic import ConfigDict, ValidationError

Config = TypeVar("Config")

DOCUMENTED = ConfigDict(use_attribute_docstrings=True)
"""For `pydantic.dataclasses.dataclass(config=…)`: the docstring under a field becomes its description."""


def add_options(parser: argparse.ArgumentParser, config: type[Any]) -> None:
    """Add one `--option` per field of a pydantic dataclass."""
    for name, field in config.__pydantic_fields__.items():
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=field.annotation,
            default=field.default,
            help=f"{field.description} Default: %(default)s.".replace("`", ""),
        )


def parse(parser: argparse.ArgumentParser, config: type[Config], argv: Sequence[str] | None) -> Any:
    """Parse a command line and check it.

    Args:
        parser: whose options may be more than those of the config.
        config: a pydantic dataclass.
        argv: the arguments; None: those of the process.

    Returns:
        The namespace of all options, with the checked config as `config`. Ends the process with one sentence that
        names the option, its value and the limit where a value is refused.
    """
    add_options(parser, config)
    options = parser.parse_args(argv)
    try:
        options.config = config(**{field.name: getattr(options, field.name) for field in fields(config)})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        parser.error(f"{option} is {first['input']}: {first['msg'].lower()}")
    return options
