"""The entry point: `mana`, its global options, and the way from an error to an exit status."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mana.cli.exits import exit_status
from mana.domain.errors import ManaError


class ErrorsAsLines(TyperGroup):
    """Tells an error of Mana in one line with its code, and ends with its status."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except ManaError as error:
            typer.echo(f"mana: {error.message} [{error.code}] {error.advice}".rstrip(), err=True)
            raise typer.Exit(exit_status(error)) from error


app = typer.Typer(
    name="mana", cls=ErrorsAsLines, no_args_is_help=True, pretty_exceptions_enable=False
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"mana {version('mana')}")
        raise typer.Exit


@app.callback()
def mana(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Mana: a self-hosted, local-first, end-to-end-encrypted AI workbench."""
