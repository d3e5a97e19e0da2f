"""The command `minigan`. One file a command; errors.py says what an exception means to a user.

Commands import what they need when they run, so that --help answers at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any, NoReturn

import click

from minigan import __version__
from minigan.cli.doctor import doctor
from minigan.cli.errors import Refused, explain
from minigan.cli.info import info
from minigan.cli.kernels import kernels
from minigan.cli.recipes import recipes
from minigan.cli.sample import sample
from minigan.cli.train import train


class Commands(click.Group):
    """A group whose errors are one line on stderr, without a traceback."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)  # in the order in which a user meets them

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:  # type: ignore[override]
        for stream in (sys.stdout, sys.stderr):  # a character that it lacks is no reason to stop
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        # Training looks for NaN and infinity by itself, and says more than NumPy's warning does.
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="minigan")
        warnings.formatwarning = lambda text, *_, **__: f"minigan: {text}\n"
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except Exception as error:
            code = _tell(error)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt as error:  # here, as click would drop what it says
            context.exit(_tell(error))


def _tell(error: BaseException) -> int:
    """Print what the error means and return the exit code; a bug keeps its traceback."""
    explained = explain(error)
    if explained is None:
        raise error
    line, code = explained
    click.echo(line, err=True)
    return code


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="minigan")
@click.pass_context
def main(context: click.Context) -> None:
    """A GAN framework from scratch on NumPy and CuPy.

    \b
    minigan train mnist-dcgan     train on handwritten digits, into runs/0001-mnist-dcgan
    minigan sample                draw new ones from the newest run
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
    elif context.invoked_subcommand != "doctor" and "MINIGAN_NUM_THREADS" in os.environ:
        from minigan.kernels import threads

        try:
            threads.count()
        except ValueError as error:
            raise Refused(str(error)) from None


for command in (train, sample, recipes, info, doctor, kernels):
    main.add_command(command)

__all__ = ["main"]
