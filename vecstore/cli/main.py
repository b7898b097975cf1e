"""The command `vecstore`: which commands there are, and nothing else.

Commands are loaded when they are run: `vecstore --help` imports click alone, so it is fast and works on a thin install.
A command that needs a library that is not there ends in `EngineMissing`, which names the extra that brings it.

Exit codes: 0 done; 1 an error, or damage that was found; 2 wrong usage; 3 `doctor` cannot know; 130 interrupted.
"""

from __future__ import annotations

from importlib import import_module

import click

__all__ = ["cli", "main"]

_COMMANDS = {
    "demo": ("demo", "See it work: create, import, search, kill -9, prove that nothing is lost."),
    "create": ("data", "Create a collection, and the store where there is none."),
    "import": ("data", "Write the rows of files into a collection; continues where it was interrupted."),
    "export": ("data", "Write a collection to a Parquet file."),
    "search": ("data", "Find the points nearest to a point or a vector."),
    "collections": ("data", "List the collections of a store."),
    "rename": ("data", "Give a collection another name."),
    "drop": ("data", "Drop a collection."),
    "status": ("operate", "Say what there is to know of a store."),
    "verify": ("operate", "Recompute chain and digests from the bytes; fails where something is damaged."),
    "plan": ("plan", "Say what a collection takes: memory of the process and of GPUs."),
    "serve": ("serve", "Serve a store to clients over gRPC."),
    "config": ("config", "Print the configuration of a server: each value, its origin, what it means."),
    "token": ("token", "Make a token for a server's callers, and the entry for its file."),
    "snapshot": ("backup", "Write a snapshot of a store to a repository: a path, or a URL of s3, gs or az."),
    "snapshots": ("backup", "List the snapshots of a repository, and what can be restored."),
    "restore": ("backup", "Restore a store, or one collection, to an LSN or a time."),
    "prune": ("backup", "Remove snapshots and archived log that are not to be kept."),
    "promote": ("replicate", "Make a standby the primary."),
    "step-down": ("replicate", "Make a primary take no writes any more."),
    "switchover": ("replicate", "Hand over from a primary to its standby; nothing is lost."),
    "history": ("replicate", "Say who wrote the log: epochs, writers, forks."),
    "slots": ("replicate", "List the places in the log that are held for standbys, or drop one."),
    "rejoin": ("rejoin", "Make a store whose history parted a standby again; what it alone has is exported."),
    "adopt": ("rejoin", "Say what a copied directory is: moved, or a clone."),
    "diverged": ("diverged", "List, show, replay or drop what a rejoin has left behind."),
    "drill": ("drill", "Rehearse a failover on a clone of a standby: RPO, RTO, the same answers."),
    "compare": ("compare", "Compare a standby with its primary, point by point, at one LSN."),
    "doctor": ("operate", "Say what is wrong with a store that does not open; whether a standby could take over."),
}


class _Commands(click.Group):
    """A group that knows its commands by name and imports one only when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"{__package__}.{_COMMANDS[cmd_name][0]}")
        command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="WHERE is the directory of a store, or host:port of a server. Every command has --help and --json. "
    "Begin with: vecstore demo",
)
@click.version_option(message="%(version)s", package_name="vecstore-db", prog_name="vecstore")
def cli() -> None:
    """A vector store in one directory: one log, many collections, proven by digests."""


def main() -> None:
    """Run the command line; the installed `vecstore` calls this."""
    cli(prog_name="vecstore")


if __name__ == "__main__":
    main()
