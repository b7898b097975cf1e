"""The command `vecstore config`: every option of a server, its value, where that comes from, what it means."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from ..errors import InvalidArgument
from .output import Output, reporting
from .where import missing

if TYPE_CHECKING:
    from ..server.settings import Option

__all__ = ["config_command"]


@click.command("config")
@click.option("--config", "file", type=click.Path(), metavar="FILE", help="TOML file of options.")
@reporting
def config_command(out: Output, *, file: str | None) -> None:
    """Print the configuration that `vecstore serve` would use: as a TOML file, with the origin of each value.

    A value comes from its default, the file, the environment, or a flag of `vecstore serve`; the later ones win.
    """
    try:
        from ..server import settings
    except ImportError as exc:
        raise missing(exc.name or str(exc), "server") from exc
    try:
        options = settings.options(settings.load(file))
    except InvalidArgument as exc:
        out.say(f"error: {exc}")
        raise SystemExit(2) from None
    out.result(_tree(options), lambda: print(_toml(options)))


def _tree(options: list[Option]) -> dict[str, Any]:
    return {
        section: {
            option.name: {
                "value": option.value,
                "origin": option.origin,
                "environment": option.variable,
                "doc": option.doc,
            }
            for option in group
        }
        for section, group in groupby(options, lambda option: option.section)
    }


def _toml(options: list[Option]) -> str:
    lines: list[str] = []
    for section, group in groupby(options, lambda option: option.section):
        lines += ["", f"[{section}]"]
        for option in group:
            lines += [f"# {option.doc}", f"{option.name} = {_value(option.value)}  # {_origin(option)}"]
    return "\n".join(lines[1:])


def _origin(option: Option) -> str:
    return f"environment {option.variable}" if option.origin == "environment" else option.origin


def _value(value: Any) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(each) for each in value)}]"
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
