"""The command ``mpq``: finds the verb, and turns every error into one message and an exit code.

Nothing heavy is imported before a verb runs, so ``mpq --help`` answers within half a second. A
verb is a file ``orchestrator/commands/<verb>.py`` with a click command named ``command``; it may
return an ``ExitCode``.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO, cast

import click

from orchestrator.errors import (
    ExitCode,
    ResourceError,
    UserError,
    is_storage_refusal,
    room_exit_code,
)
from orchestrator.redact import redacted_text

# One line each, here and not in the files, so that listing the verbs imports none of them.
VERBS: Mapping[str, str] = {
    "run": "Run an experiment, or go on with it where it stopped.",
    "plan": "Say what a run would do, and which limits are infeasible; touches nothing.",
    "submit": "Hand a run to a Ray cluster as a job, and follow it.",
    "study": "Run methods x budgets x seeds, and put them into one table.",
    "status": "Say how a run stands; needs no cluster.",
    "logs": "Print what a run said; needs no cluster.",
    "cancel": "Ask a run to save and end.",
    "report": "Write a run's report and figures again from its records.",
    "compare": "Put the results of several runs into one table.",
    "export": "Write a trained policy as integer codes, steps and rules.",
    "sync": "Bring MLflow up to date with a run's journal.",
    "push": "Copy a run to storage by URI, verified.",
    "pull": "Bring a pushed run back.",
    "costs": "Print what a network costs, layer by layer.",
    "literature": "Print what the papers report, row by row.",
    "solve": "Assign bits from tables on disk; no torch, no Ray.",
    "sweep": "Solve many alphas and limits from saved indicators.",
    "explain": "Say why layers got their bits.",
    "data": "Prepare images: pack an image folder into Parquet shards.",
    "doctor": "Check versions, names, disk and security settings.",
}


# What these make is what they print: nobody waits for the rest when the reader has left.
_ONLY_PRINT = frozenset(
    {"compare", "costs", "doctor", "explain", "literature", "logs", "plan", "status"}
)


class _Unbroken:
    """A text stream that goes on without its reader.

    ``mpq run ... | head`` reads ten lines; the run is not over then, and driver.log has the rest.

    Args:
        stream: standard output or standard error.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write it, or let it go."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            _to_nobody(self._stream)
            return len(text)

    def flush(self) -> None:
        """Hand on what was written, or let it go."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            _to_nobody(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _to_nobody(stream: TextIO) -> None:
    nobody = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nobody, stream.fileno())
    os.close(nobody)


class _LazyGroup(click.Group):
    """Imports a verb's file when the verb is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        folder = Path(__file__).parent / "commands"
        return [verb for verb in VERBS if (folder / f"{verb}.py").is_file()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"orchestrator.commands.{cmd_name}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            from difflib import get_close_matches

            close = get_close_matches(args[0], self.list_commands(ctx), n=2)
            hint = f"did you mean {' or '.join(close)}?" if close else "see mpq --help"
            raise click.UsageError(f"no such command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            rows = [(verb, VERBS[verb]) for verb in self.list_commands(ctx)]
            formatter.write_dl(rows or [("(none)", "no verb is installed")])


def _version() -> str:
    try:
        return version("mpq-orchestrator")
    except PackageNotFoundError:
        return "unknown (not installed)"


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_version(), prog_name="mpq")
def cli() -> None:
    """Mixed-precision quantization experiments, on a laptop or a Ray cluster."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and leave the process with its exit code."""
    code = run_command(arguments)
    if code is ExitCode.RESOURCES and "ray" in sys.modules:
        # Where the head is gone, what is left of Ray's client may crash as Python ends, and a crash
        # has an exit code of its own (seen: SIGSEGV, -11). All that we hold is closed by now.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(code))
    sys.exit(int(code))


def run_command(arguments: Sequence[str] | None = None) -> ExitCode:
    """Run the command; every error becomes a message on stderr and an exit code."""
    asked = list(sys.argv[1:] if arguments is None else arguments)
    verb = next((word for word in asked if not word.startswith("-")), "")
    if verb in _ONLY_PRINT:
        return _ended(asked)
    out, err = cast(TextIO, _Unbroken(sys.stdout)), cast(TextIO, _Unbroken(sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):
        return _ended(asked)


def _ended(arguments: list[str]) -> ExitCode:
    try:
        result = _invoke(arguments)
        sys.stdout.flush()
    except click.exceptions.Exit as leaving:
        return ExitCode(leaving.exit_code)
    except click.ClickException as error:
        error.show()
        return ExitCode.BAD_INPUT
    except (click.Abort, KeyboardInterrupt):
        click.echo("mpq: interrupted", err=True)
        return ExitCode.INTERRUPTED
    except UserError as error:
        click.echo(f"mpq: {error}", err=True)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output left (mpq status | head); keep Python from complaining at exit.
        _to_nobody(sys.stdout)
        return ExitCode.DONE
    except SystemExit as leaving:
        if isinstance(leaving.__context__, BrokenPipeError):
            return ExitCode.DONE  # rich prints tables, and leaves with 1 over the same reader
        raise
    except OSError as error:
        if not is_storage_refusal(error):
            return _report_defect(error)
        told = ResourceError(
            f"storage refused: {error.strerror}", str(error.filename or ""),
            "", "mend that, then run the same command again; finished steps are safe",
        )  # fmt: skip
        click.echo(f"mpq: {told}", err=True)
        return told.exit_code
    except Exception as error:
        code = room_exit_code(error)
        if code is not None:
            # Another room's words may quote what it was given.
            click.echo(f"mpq: {redacted_text(str(error))}", err=True)
            return code
        return _report_defect(error)
    return result if isinstance(result, ExitCode) else ExitCode.DONE


def _invoke(arguments: list[str]) -> object:
    """Parse and run; not ``cli.main``, which turns a reader that left into exit code 1."""
    with cli.make_context("mpq", arguments) as context:
        return cli.invoke(context)


def _report_defect(error: Exception) -> ExitCode:
    """Keep the traceback in a private file and say where it is."""
    handle, path = tempfile.mkstemp(prefix="mpq-error-", suffix=".txt")
    with os.fdopen(handle, "w") as stream:
        stream.write(redacted_text("".join(traceback.format_exception(error))))
    first_line = redacted_text(str(error)).splitlines()[0] if str(error) else ""
    click.echo(
        f"mpq: internal error: {type(error).__name__}: {first_line}\n"
        f"  where: the traceback is in {path}\n"
        "  do:    please report it with that file; finished steps are safe",
        err=True,
    )
    return ExitCode.INTERNAL


if __name__ == "__main__":
    main()
