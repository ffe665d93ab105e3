"""`logstep crosscheck`: compares a model's weights with river's, from a file, a service or a data folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.commands import options
from service.commands.terminal import Failed, WrongUsage, number, show

if TYPE_CHECKING:
    from service.commands.files import Source


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", help="learn this file here, without a service")
    options.add_source(parser)
    where = parser.add_mutually_exclusive_group()
    options.add_url(where, default=None)
    where.add_argument("--data", type=Path, metavar="DIR", help="check the log in this data folder; changes nothing")
    options.add_token_file(parser)
    options.add_model(parser)
    parser.add_argument("--spec", metavar="SPEC", help="with FILE: the model's spec, a file or JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.file is not None and (arguments.url or arguments.data):
        raise WrongUsage("give only one of FILE, --url and --data")
    if arguments.spec is not None and arguments.file is None:
        raise WrongUsage("--spec needs FILE; a service and a data folder have their models' specs")
    if arguments.file is not None:
        source = options.source(arguments, arguments.file)
        what, report = source.name, _learn_file(source, arguments.spec or "{}")
    elif arguments.data is not None:
        from service.learning.crosscheck import check

        what, report = f"{arguments.model} in {arguments.data}", check(arguments.data, arguments.model)
    else:
        url = arguments.url or options.URL
        with options.client(url, arguments.token_file) as client:
            what, report = f"{arguments.model} at {url}", client.crosscheck(arguments.model)
    show(f"Cross-check of {what}", _rows(report))
    print(verdict(report))
    return 0 if report["equal"] and report.get("replay_equal", True) else 1


def _learn_file(source: Source, spec: str) -> dict[str, Any]:
    """The report on a file's events, which this process and river both learn."""
    from core.parity import crosscheck
    from core.spec import Spec, SpecError
    from service.learning.crosscheck import require_twin
    from service.rows.columns import Kept

    data, named = options.json_of(spec), options.spec_file(spec) or "--spec"
    try:
        parsed = Spec.from_dict(json.loads(data))
    except SpecError as error:
        raise WrongUsage(f"{named}: {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise WrongUsage(f"{named} is not a spec: {error}") from None
    require_twin(parsed)
    line = 0
    with source.open() as opened:
        opened.look(Kept("the spec", parsed.columns or {}))

        def events() -> Any:
            nonlocal line
            for row in opened.rows():
                line = row.line
                if row.event.weight == 0:
                    continue
                yield row.event.x, row.event.y, row.event.weight

        from core.features import EventError

        try:
            report = crosscheck(events(), parsed)._asdict()
        except EventError as error:
            raise Failed(f"{source.name} line {line}: {error}") from None
        opened.tell_what_was_left_out()
        if never := opened.labels.never_came():
            raise Failed(never)
        return report


def _rows(report: dict[str, Any]) -> list[tuple[str, float | str | None]]:
    """A report as rows of a table."""
    rows: list[tuple[str, float | str | None]] = [
        ("events", report["events"]),
        ("weights compared", report["features"] + 1),
        ("largest difference", f"{report['max_abs_diff']:g}"),
        ("in units in the last place", report["max_ulp"]),
    ]
    if report.get("from_seq"):
        rows.insert(0, ("begins with the snapshot at seq", report["from_seq"]))
    if report["not_taken"]:
        rows.append(("steps not taken", report["not_taken"]))
    if "replay_equal" in report:
        rows.append(("replay of the log equal", "yes" if report["replay_equal"] else "NO"))
    return rows


def verdict(report: dict[str, Any]) -> str:
    """A report in one sentence, or in two."""
    seq = report.get("bits_may_differ_from")
    if seq is None or (report["equal"] and report["replay_equal"]):
        return _verdict(report)
    return (
        f"{_verdict(report)}. Events from seq {number(seq)} on were learned on a machine that rounds exp, log or pow "
        "otherwise than this one, so last bits may differ, and nothing need be damaged"
    )


def _verdict(report: dict[str, Any]) -> str:
    if not report.get("replay_equal", True):
        return "NOT EQUAL: a replay of the log does not give the weights of the model"
    events = f"{number(report['events'])} events"
    if report.get("from_seq"):
        events += f" after seq {number(report['from_seq'])}, where the log begins (--keep-events)"
    if report["equal"]:
        return f"equal to river {report['river']} to the last bit on {events}"
    place = "in the bias" if report["feature"] is None else f"at the weight of {report['feature']!r}"
    return (
        f"NOT EQUAL to river {report['river']} on {events}: the largest difference is "
        f"{report['max_ulp']:,} units in the last place, {place}"
    )
