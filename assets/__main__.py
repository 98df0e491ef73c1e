"""`python -m assets`: commands of the code location."""

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from assets.materialize import FAILED, materialize
from foundry_pipeline.calls.slice_work import ASKED_AGAIN, CallOptions
from foundry_pipeline.errors import FoundryError
from resources import places_of


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments, execute the command, give its exit code."""
    arguments = _parser().parse_args(argv)
    if not arguments.verbose:
        warnings.simplefilter("ignore")  # Dagster's notes to developers
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that cannot show a name is no reason to fail
    try:
        return materialize(
            places_of(os.environ, arguments.home),
            arguments.runs,
            workers=arguments.workers,
            verbose=arguments.verbose,
            options=CallOptions(arguments.refresh, arguments.retry),
            only_previews=arguments.only_previews,
            environ=os.environ,
            out=sys.stdout,
            err=sys.stderr,
        )
    except (FoundryError, OSError) as error:
        print(error, file=sys.stderr)  # noqa: T201, a command line prints
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m assets", description="The pipeline without Dagster's UI.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    of_runs = argparse.ArgumentParser(add_help=False)
    of_runs.add_argument("runs", nargs="*", metavar="RUN", help="names of runs; all runs, where none is named")
    of_runs.add_argument("--home", type=Path, metavar="DIR", help="the home folder (FOUNDRY_HOME, or demo/home)")
    of_runs.add_argument("--verbose", action="store_true", help="with Dagster's own log")
    codes = "Exit code 0: all succeeded; 1: not so, or a bad file; 2: no such run; 130: stopped."
    preview = commands.add_parser(
        "preview", parents=[of_runs], help="a few rows of each run, called and drawn on a page", description=codes
    )
    preview.set_defaults(only_previews=True, workers=1, refresh=False, retry="failed")
    everything = commands.add_parser(
        "materialize",
        parents=[of_runs],
        help="data rows, then every slice of the named runs, then their annotation files and evaluation",
        description=codes,
    )
    everything.add_argument("--workers", type=_workers, default=1, metavar="N", help="processes that call, decode (1)")
    everything.add_argument("--refresh", action="store_true", help="call for every row again, answered or not")
    everything.add_argument("--retry", choices=list(ASKED_AGAIN), default="failed", help="rows to ask again (failed)")
    everything.set_defaults(only_previews=False)
    return parser


def _workers(text: str) -> int:
    workers = int(text)
    if not 1 <= workers <= 64:
        raise argparse.ArgumentTypeError("expected 1 to 64")
    return workers


if __name__ == "__main__":
    sys.exit(main())
