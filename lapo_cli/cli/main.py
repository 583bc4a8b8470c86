"""The table of subcommands, and nothing else: each one is described in its module."""

from typing import Annotated

import typer

import lapo_cli
from lapo_cli.cli.download import download
from lapo_cli.cli.evaluate import evaluate
from lapo_cli.cli.import_ import import_
from lapo_cli.cli.info import info
from lapo_cli.cli.label import label
from lapo_cli.cli.options import grouped
from lapo_cli.cli.play import play
from lapo_cli.cli.record import record, train_expert
from lapo_cli.cli.report import report
from lapo_cli.cli.run_all import run_all, run_chain
from lapo_cli.cli.terminal import Program
from lapo_cli.cli.train import decode_offline, finetune_online, run_stage, train_idm, train_policy

app = typer.Typer(
    name="lapo",
    cls=Program,
    help="Latent action policies: learn to act from videos without actions (LAPO, ICLR 2024).",
    epilog="First steps: lapo run-all --games maze --preset quick",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_PANELS = {
    "All stages": (run_all, run_chain),
    "Single stages": (download, train_idm, train_policy, decode_offline, finetune_online, evaluate, run_stage),
    "Results": (report, play),
    "Your own demonstrations": (import_, label, train_expert, record),
    "Information": (info,),
}
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        _name = _command.__name__.strip("_").replace("_", "-")  # 'import' cannot be the name of a function.
        app.command(_name, rich_help_panel=_panel)(grouped(_command))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lapo {lapo_cli.__version__}")
        raise typer.Exit


@app.callback()
def _lapo(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass
