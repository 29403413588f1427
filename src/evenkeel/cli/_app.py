"""The command ``evenkeel``: its commands, and how errors are shown.

Nothing heavy is imported here, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from evenkeel.cli._console import errors_to
from evenkeel.cli.calibrate import calibrate
from evenkeel.cli.compare import compare
from evenkeel.cli.components import components
from evenkeel.cli.demo import demo
from evenkeel.cli.finetune import finetune
from evenkeel.cli.methods import methods
from evenkeel.cli.pack import pack
from evenkeel.cli.report import report
from evenkeel.cli.status import status
from evenkeel.cli.study import study
from evenkeel.errors import EvenkeelError

__all__ = ["app", "main"]

USAGE_ERROR = 2

app = typer.Typer(
    name="evenkeel",
    help="Keep the fine-tuning of language models on an even keel: compare ways of fine-tuning over many seeds, see "
    "why runs fail, and clip the gradient of every component on its own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (demo, study, status, report, compare, pack, finetune, calibrate, components, methods):
    app.command()(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        from evenkeel import __version__

        typer.echo(f"evenkeel {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of the command itself."""


def main() -> None:
    """Run the command line; what the user can mend is one message and exit code 2, without a traceback."""
    try:
        app()
    except EvenkeelError as error:
        errors_to(sys.stderr).print(f"[bold red]error:[/] {_escaped(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(USAGE_ERROR)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
