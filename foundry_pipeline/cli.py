"""The command line, `foundry-pipeline`: what a person asks of a home folder without Dagster.

Owns words, exit codes and what is printed. The environment is read here and nowhere else in the package.
"""

from __future__ import annotations

import argparse
import difflib
import io
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from foundry_pipeline.calls.ledgers import ledgers_at
from foundry_pipeline.config.secrets import bearer
from foundry_pipeline.data_rows import DataRow, rows_of
from foundry_pipeline.doctor import diagnose
from foundry_pipeline.errors import ConfigError, FoundryError, Problem
from foundry_pipeline.exports import FORMATS, ExportReport, export_run
from foundry_pipeline.home import Home, Run, home_root_of, ledger_of, load_home, warehouse_of
from foundry_pipeline.invoke import Invoker
from foundry_pipeline.ledger_view import pending_lines
from foundry_pipeline.quality.drift import forget
from foundry_pipeline.recovery import Recovered, recover, select
from foundry_pipeline.rows.content import RowReader
from foundry_pipeline.rows.datasets import load_dataset
from foundry_pipeline.send.platform import API_KEY, URL, Platform
from foundry_pipeline.send.send import CONFLICTS, Annotate, Order, SendReport, send_run
from foundry_pipeline.sql import WRITERS, Questions
from foundry_pipeline.store import Store
from foundry_pipeline.tables import DATA_ROWS

DEFAULT_HOME = "demo/home"
TARGETS = {"pre-labels": "pre_labels", "ground-truth": "ground_truth", "model-run": "model_run"}
DOCTOR_ATTEMPTS = 2
DOCTOR_PATIENCE_S = 10.0
"""A person waits: the run itself has the manifest's attempts and the deployment's patience."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code: 0 fine, 1 problems in the person's files, 2 not a command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that cannot show a name is no reason to fail
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.command(arguments, os.environ, sys.stdout)
    except ConfigError as error:
        for problem in error.problems:
            print(f"problem: {problem}")
        return 1
    except FoundryError as error:
        print(f"failed: {error}")
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="foundry-pipeline", description="Models, datasets and runs of a home folder.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    home = argparse.ArgumentParser(add_help=False)
    home.add_argument("--home", metavar="DIR", help=f"the home folder; default: FOUNDRY_HOME, else {DEFAULT_HOME}")
    check = commands.add_parser("check", parents=[home], help="every problem in models, datasets and runs, at once")
    check.set_defaults(command=check_home)
    doctor = commands.add_parser(
        "doctor", parents=[home], help="send one data row; what in the answer breaks the contract"
    )
    doctor.add_argument("run", metavar="RUN")
    doctor.add_argument("--row", metavar="GLOBAL_KEY", help="the data row; default: the first of the dataset")
    doctor.set_defaults(command=doctor_run)
    export = commands.add_parser("export", parents=[home], help="write a run's annotation files")
    export.add_argument("run", metavar="RUN")
    export.add_argument("format", metavar="FORMAT", choices=list(FORMATS), help=", ".join(FORMATS))
    export.add_argument("--out", metavar="DIR", type=Path, help="a folder; default: annotations/ in the warehouse")
    export.add_argument("--fresh", action="store_true", help="read every slice, and take nothing from earlier exports")
    export.set_defaults(command=export_annotations)
    accept = commands.add_parser(
        "accept", parents=[home], help="let what a run's quality checks compare with be what they find next"
    )
    accept.add_argument("run", metavar="RUN")
    accept.set_defaults(command=accept_run)
    _add_send(commands.add_parser("send", parents=[home], help="send a run's labelbox export to the platform"))
    sql = commands.add_parser("sql", parents=[home], help="ask the warehouse's tables, such as: select * from boxes")
    sql.add_argument("query", metavar="QUERY")
    sql.add_argument("--format", choices=list(WRITERS), default="table", help="default: table, for people")
    sql.set_defaults(command=ask_warehouse)
    ledger = commands.add_parser(
        "ledger", parents=[home], help="answers that are paid for and not in tables yet, and who works on them"
    )
    ledger.add_argument("run", metavar="RUN", nargs="?", help="default: every run, also one that is not there any more")
    ledger.add_argument("slice", metavar="SLICE", nargs="?")
    ledger.add_argument("--recover", action="store_true", help="finish what can be finished without a call")
    ledger.set_defaults(command=show_ledger)
    return parser


def _add_send(send: argparse.ArgumentParser) -> None:
    send.add_argument("run", metavar="RUN")
    send.add_argument("--as", dest="target", required=True, choices=list(TARGETS), help="what the lines become there")
    place = send.add_mutually_exclusive_group(required=True)
    place.add_argument("--project", metavar="ID", help="for pre-labels and ground-truth")
    place.add_argument("--model-run", metavar="ID", help="for model-run")
    send.add_argument("--batch", action="store_true", help="put the data rows into the project first")
    send.add_argument("--to-project", metavar="ID", help="send the model run's data rows on to this project")
    send.add_argument("--step", metavar="NAME", help="of its workflow, or done; default: where labeling begins")
    send.add_argument("--priority", type=int, choices=range(1, 6), default=5, help="of batches; 1 is the highest")
    send.add_argument("--conflict", choices=list(CONFLICTS), default="keep", help="what wins where both have an answer")
    send.add_argument("--exclude-in-project", action="store_true", help="leave out data rows that are there already")
    send.add_argument("--url", default=URL, help=argparse.SUPPRESS)
    send.add_argument("--dry-run", action="store_true", help="say what would be sent, and contact nobody")
    send.set_defaults(command=send_export)


def check_home(arguments: argparse.Namespace, environ: Mapping[str, str], out: TextIO) -> int:
    """Print every problem and warning with file and place, then the counts; 1 where there is a problem."""
    home = load_home(home_root_of(arguments.home, environ, DEFAULT_HOME), environ)
    for problem in home.problems:
        print(f"problem: {problem}", file=out)
    for warning in home.warnings:
        print(f"warning: {warning}", file=out)
    if not (home.models or home.datasets or home.runs or home.problems):
        print(f"warning: {home.root}: there are no models, datasets or runs here", file=out)
    print(_summary(home), file=out)
    return 1 if home.problems else 0


def doctor_run(arguments: argparse.Namespace, environ: Mapping[str, str], out: TextIO) -> int:
    """Send one data row of a run and print what came back; 1 where the answer breaks the contract."""
    home = load_home(home_root_of(arguments.home, environ, DEFAULT_HOME), environ)
    run = _run_named(home, arguments.run)
    store = Store(warehouse_of(home.root, environ))
    slice_key, row = _row_to_send(home, run, store, arguments.row)
    ledger = ledger_of(home.root, environ)
    run = replace(run, model=replace(run.model, max_attempts=min(DOCTOR_ATTEMPTS, run.model.max_attempts)))
    settings = replace(home.settings, endpoint_patience_s=DOCTOR_PATIENCE_S, preflight_patience_s=DOCTOR_PATIENCE_S)
    invoker = Invoker(run, store, settings, home_root=home.root, ledger=ledger, environ=environ)
    with invoker, RowReader(home.root, home.settings, encoding=run.dataset.encoding) as reader:
        diagnosis = diagnose(run, slice_key, row, invoker, reader.text)
    print(*diagnosis.lines(), sep="\n", file=out)
    return 0 if diagnosis.sound else 1


def _row_to_send(home: Home, run: Run, store: Store, global_key: str | None) -> tuple[str, DataRow]:
    """(slice key, data row); the dataset is loaded first where it has not been."""
    if not store.slices(DATA_ROWS, run.dataset.name):
        load_dataset(run.dataset, home.root, home.settings, store)
    for slice_key, table in store.read_all(DATA_ROWS, run.dataset.name):
        for row in rows_of(table):
            if global_key in (None, row.global_key):
                return slice_key, row
    wanted = f"no data row {global_key!r}" if global_key else "no data rows"
    raise ConfigError([Problem(run.dataset.file, f"the dataset has {wanted}")])


def export_annotations(arguments: argparse.Namespace, environ: Mapping[str, str], out: TextIO) -> int:
    """Write a run's annotation files and say what the format could not hold."""
    home = load_home(home_root_of(arguments.home, environ, DEFAULT_HOME), environ)
    run = _run_named(home, arguments.run)
    store = Store(warehouse_of(home.root, environ))
    with RowReader(home.root, home.settings, encoding=run.dataset.encoding) as reader:
        report = export_run(run, store, arguments.format, arguments.out, read_text=reader.text, fresh=arguments.fresh)
    print(*_export_lines(report), sep="\n", file=out)
    return 0


def accept_run(arguments: argparse.Namespace, environ: Mapping[str, str], out: TextIO) -> int:
    """Forget a run's last good state and its canaries' first answers: its next checks keep what they find."""
    home = load_home(home_root_of(arguments.home, environ, DEFAULT_HOME), environ)
    run = _run_named(home, arguments.run)
    names = forget(Store(warehouse_of(home.root, environ)), run.name)
    for name in names:
        print(f"removed: {name}", file=out)
    then = "its next checks keep what they find, and later ones compare with that"
    print(f"{run.name}: {then if names else 'there was nothing to compare with'}", file=out)
    return 0


def send_export(arguments: argparse.Namespace, environ: Mapping[str, str], out: TextIO) -> int:
    """Send a run's export to the platform and say what it said of the lines; 1 where one failed."""
    home = load_home(home_root_of(arguments.home, environ, DEFAULT_HOME), environ)
    run, order = _run_named(home, arguments.run), _order(arguments)
    store = Store(warehouse_of(home.root, environ))
    if arguments.dry_run:
        print("dry run: nothing is sent", file=out)
        return _print_sending(send_run(run, store, order, None), out, is_dry=True)
    sent_with, scrub = bearer(API_KEY, arguments.url, environ, home.settings)
    with Platform(sent_with, scrub, url=arguments.url) as platform:
        return _print_sending(send_run(run, store, order, platform), out)


def _order(arguments: argparse.Namespace) -> Order:
    target = TARGETS[arguments.target]
    place = arguments.model_run if target == "model_run" else arguments.project
    options = {"--to-project": arguments.to_project, "--batch": arguments.batch}
    wrong = "--batch" if target == "model_run" else "--to-project"
    faults = [] if place else [f"--as {arguments.target} needs {'--model-run' if wrong == '--batch' else '--project'}"]
    faults += [f"{wrong} is not for --as {arguments.target}"] if options[wrong] else []
    needs_project = {"--step": arguments.step, "--exclude-in-project": arguments.exclude_in_project}
    faults += [
        f"{name} needs --to-project" for name, given in needs_project.items() if given and not options["--to-project"]
    ]
    if faults:
        raise ConfigError(Problem("foundry-pipeline send", fault) for fault in faults)
    annotate = None
    if arguments.to_project:
        more = (arguments.step, arguments.priority, arguments.conflict, arguments.exclude_in_project)
        annotate = Annotate(arguments.to_project, *more)
    return Order(target, place, arguments.priority if arguments.batch else None, annotate)


def _print_sending(sending: Iterable[str | SendReport], out: TextIO, *, is_dry: bool = False) -> int:
    failed = 0
    for said in sending:
        if isinstance(said, str):
            print(said, file=out, flush=True)
            continue
        failed = said.failed
        did = f"{said.sent} lines would be sent" if is_dry else f"{said.sent} lines sent, {said.failed} of them failed"
        left_out = f"; {said.unsendable} relationships are for pre-labels alone" if said.unsendable else ""
        print(f"{did}; {said.already} were there already{left_out}", file=out)
        for message, count in said.messages.most_common(5):
            print(f"  {count} failed: {message}", file=out)
    return 1 if failed else 0


def ask_warehouse(arguments: argparse.Namespace, environ: Mapping[str, str], out: TextIO) -> int:
    """Print the answer to a SQL query over every table of the warehouse."""
    store = Store(warehouse_of(home_root_of(arguments.home, environ, DEFAULT_HOME), environ))
    with Questions(store) as questions:
        WRITERS[arguments.format](questions.ask(arguments.query), out)
    return 0


def show_ledger(arguments: argparse.Namespace, environ: Mapping[str, str], out: TextIO) -> int:
    """Print what is pending, or recover it and say what was done; 1 where a person should look."""
    home = load_home(home_root_of(arguments.home, environ, DEFAULT_HOME), environ)
    store = Store(warehouse_of(home.root, environ))
    wanted = arguments.run, arguments.slice
    with closing(ledgers_at(ledger_of(home.root, environ), environ)) as ledgers:
        if arguments.recover:
            return _recover(recover(home.runs, store, ledgers, *wanted), str(ledgers), out)
        pending = select(ledgers.pending(), *wanted)
        print(*pending_lines(pending, ledgers, store), sep="\n", file=out)
        return 1 if any(p.damage for p in pending) else 0


def _recover(recovering: Iterator[Recovered], place: str, out: TextIO) -> int:
    recovered = []
    for one in recovering:
        print(f"{one.run} {one.slice_key}: {one.words}", file=out)
        recovered.append(one)
    if not recovered:
        print(f"{place}: nothing to recover", file=out)
    return 0 if all(one.done for one in recovered) else 1


def _export_lines(report: ExportReport) -> Iterator[str]:
    rows = f"{report.answered} data rows answered, {report.unanswered} not"
    yield f"{report.format}: {report.predictions_out} of {report.predictions_in} predictions, {rows}: {report.folder}"
    for what, counts in (("left out", report.lost), ("changed", report.changed)):
        for reason, count in counts.items():
            yield f"  {what}, {reason}: {count}"


def _run_named(home: Home, name: str) -> Run:
    """The run, or ConfigError with what is wrong with it or what there is instead."""
    if name in home.runs:
        return home.runs[name]
    near = difflib.get_close_matches(name, home.runs, 1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(home.runs) or 'none'}"
    raise ConfigError([*home.problems, Problem(str(home.root / "runs"), f"no sound run {name!r}{hint}")])


def _summary(home: Home) -> str:
    fine = ", ".join(
        _count(len(things), word)
        for things, word in ((home.models, "model"), (home.datasets, "dataset"), (home.runs, "run"))
    )
    wrong = f"{_count(len(home.problems), 'problem')}, {_count(len(home.warnings), 'warning')}"
    return f"{home.root}: {wrong}; fine: {fine}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


if __name__ == "__main__":
    sys.exit(main())
