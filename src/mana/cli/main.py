"""The entry point: `mana`, its global options, and the way from an error to an exit status.

Commands are loaded when they are asked for, so that `mana note add` never waits for what only
the hub needs. What the list of commands says of each stands here; a test compares it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, Final

import typer
from typer._click.exceptions import ClickException, NoArgsIsHelpError
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from mana.cli.exits import exit_status
from mana.domain.errors import Invalid, ManaError

AS_JSON: Final = "mana.as_json"
COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "up": ("up", "Start PostgreSQL, hub, runner and device, and print the address of the page."),
    "demo": ("demo", "Play the main job on a throw-away instance, and check every step."),
    "account": ("account", "Accounts: create, sign in, invite, remove."),
    "status": ("status", "Show account, sync, runner, model and what waits for you."),
    "sync": ("status", "Send and fetch once, now."),
    "space": ("space", "Spaces: what you share with others, and who is in them."),
    "note": ("note", "Notes: titled texts."),
    "task": ("task", "Tasks: things to do."),
    "agent": ("agent", "Agents: who works for you, and what each may do."),
    "mission": ("mission", "Missions: standing goals given to an agent."),
    "work": ("work", "All work: stop it, let it go on, and what a day may cost."),
    "usage": ("work", "Show the tokens and costs of your missions."),
    "model": ("model", "Models: endpoints of your own, and what an agent can be given."),
    "inputs": ("mission", "List what can be given to a mission as input."),
    "grant": ("grant", "Grants: what a mission may read while you are away."),
    "inbox": ("inbox", "Proposals that wait for your decision."),
    "approve": ("inbox", "Approve proposals: they happen exactly as shown, once."),
    "reject": ("inbox", "Reject proposals; the agent is told why."),
    "timeline": ("timeline", "Show what AI did, newest first."),
    "revert": ("timeline", "Undo what AI did: a step, an iteration or a mission."),
    "redo": ("timeline", "Take a revert back."),
    "audit": ("audit", "Show what the runner read, and whether the record of it is whole."),
    "refused": ("refused", "Changes that the hub refused."),
    "security": (
        "security",
        "Security: mode, password, recovery, keys, second factors, sessions, devices, grants.",
    ),
    "conflict": ("conflict", "What you wrote and somebody's newer edit replaced."),
    "letters": ("letters", "Letters: a word by mail when something waits for you."),
    "hub": ("hub", "Serve the hub on the database that MANA_DATABASE_URL names."),
    "runner": ("runner", "Serve the runner on the database that MANA_DATABASE_URL names."),
    "device": (
        "device",
        "Serve the page of this device; the hub is the one that MANA_HUB_URL names.",
    ),
}
"""Name of the command to its file under `commands`, and its line in the list."""


class WrongUsage(Invalid):
    """The command line names a command, option or value that does not exist."""

    code = "USAGE"
    advice = ""


class FolderUnusable(ManaError):
    """The operating system refused a file or folder, as in a MANA_HOME that is read-only."""

    code = "FOLDER_UNUSABLE"
    advice = "Check that MANA_HOME is a folder that you may write to, and that its disk has room."


class ErrorsAsLines(TyperGroup):
    """Loads a command when it is asked for, and tells an error in one line with its code."""

    listing = False

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """Parse the global options."""
        as_json = "--json" in (args[: args.index("--")] if "--" in args else args)
        try:
            ctx = super().make_context(info_name, args, parent, **extra)
        except NoArgsIsHelpError:
            raise
        except ClickException as error:
            raise _ended(_usage(error), as_json=as_json) from error
        ctx.meta[AS_JSON] = as_json
        return ctx

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except NoArgsIsHelpError:
            raise
        except ClickException as error:
            raise _ended(_usage(error), as_json=ctx.meta[AS_JSON]) from error
        except ManaError as error:
            raise _ended(error, as_json=ctx.meta[AS_JSON]) from error
        except OSError as error:
            if error.filename is None:
                raise
            raise _ended(_refused(error), as_json=ctx.meta[AS_JSON]) from error

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands, in the order of the list."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; for the list of commands only its name and its line."""
        if cmd_name not in COMMANDS:
            return None
        file, line = COMMANDS[cmd_name]
        if self.listing:
            return TyperCommand(cmd_name, help=line)
        module = import_module(f"mana.cli.commands.{file}")
        found = getattr(module, cmd_name)
        if isinstance(found, typer.Typer):
            return get_command(found)
        single = typer.Typer(add_completion=False)
        single.command(cmd_name)(found)
        return get_command(single)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands without loading them."""
        self.listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self.listing = False


def _usage(error: ClickException) -> WrongUsage:
    """Return a wrong command line as an error of Mana, with where to read more."""
    where = getattr(getattr(error, "ctx", None), "command_path", "mana")
    # What checks the values puts its own words before ours.
    said = error.format_message().replace(": Value error, ", ": ")
    stop = "" if said.endswith((".", "?")) else "."
    return WrongUsage(f"{said}{stop} See `{where} --help`.")


def _refused(error: OSError) -> FolderUnusable:
    """Return what the operating system said of a path as an error of Mana."""
    return FolderUnusable(f"{error.filename}: {error.strerror or type(error).__name__}")


def _ended(error: ManaError, *, as_json: bool) -> typer.Exit:
    """Tell the error and return what ends the process with its status."""
    from mana.cli.output import print_error

    print_error(error, as_json=as_json)
    return typer.Exit(exit_status(error))


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


if __name__ == "__main__":
    app()
