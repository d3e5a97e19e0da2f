"""What an exception means to a user: one line, and an exit code.

1    training failed: NaN or infinity
2    bad input, or a disk, device or memory that does not do what it should
130  stopped by Ctrl-C
"""

from __future__ import annotations

import errno
import os

import click


class Refused(click.ClickException):
    """Options that cannot be done as they stand."""

    exit_code = 2


def explain(error: BaseException) -> tuple[str, int] | None:
    """(line, exit code) for an error that the user can do something about; None for a bug.

    Notes that were added to the error (add_note) become the end of the line.
    """
    found = _explain(error)
    if found is None:
        return None
    text, code = found
    ended = "; ".join([text, *getattr(error, "__notes__", [])])
    return f"minigan: {' '.join(ended.split())}", code


def _explain(error: BaseException) -> tuple[str, int] | None:
    from minigan.array import DeviceError
    from minigan.checkpoint import CheckpointError
    from minigan.data import DataError
    from minigan.kernels.sim.nvrtc import CompileError, CompilerMissing
    from minigan.recipes import RecipeError
    from minigan.runs import RunError
    from minigan.train import NonFinite

    if isinstance(error, KeyboardInterrupt):
        return "stopped", 130
    if isinstance(error, click.UsageError) and error.ctx:
        command = error.ctx.command_path
        return f"{_lower(error.format_message())} (see {command} --help)", error.exit_code
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, (DataError, RecipeError, RunError, CheckpointError, DeviceError)):
        return str(error), 2
    if isinstance(error, CompilerMissing):
        return str(error), 2
    if isinstance(error, CompileError):
        return f"{error}; what minigan doctor says may help", 2
    if isinstance(error, NonFinite):
        return f"{error}; train anew with smaller lr_g and lr_d", 1
    if isinstance(error, MemoryError):
        return f"out of memory{_detail(error)}; try a smaller --batch, or a smaller set", 2
    if isinstance(error, OSError):
        what = error.strerror or str(error) or type(error).__name__
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what += ": free some space"
        return (f"{os.fsdecode(error.filename)}: {what}" if error.filename else what), 2
    return None


def _lower(text: str) -> str:
    text = text.rstrip(".")
    return text[:1].lower() + text[1:]


def _detail(error: BaseException) -> str:
    return f": {error}" if str(error) else ""
