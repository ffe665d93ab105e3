"""Write the reference pages from the code: settings, commands, metrics, routes, spec.

    python docs/reference.py

A test fails when a page is not what this writes (tests/test_docs.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from core import spec
from core.rules import RULES
from service.commands import cli
from service.http import access
from service.http.app import Service
from service.settings import Settings

DOCS = Path(__file__).resolve().parent
_GENERATED = "<!-- Generated from the code by docs/reference.py. Change the code, then run that. -->"
_BOUNDS = {
    "exclusiveMinimum": "above {}",
    "minimum": "from {}",
    "exclusiveMaximum": "below {}",
    "maximum": "to {}",
}


def pages() -> dict[str, str]:
    """The text of each page, by its name."""
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Settings.model_validate({"data": folder}))
        return {
            "settings.md": _settings(),
            "commands.md": _commands(),
            "metrics.md": _metrics(service),
            "routes.md": _routes(service.api.openapi()),
            "spec.md": _spec(),
        }


def _page(title: str, lead: str, *parts: str) -> str:
    return "\n".join([f"# {title}", "", _GENERATED, "", lead, "", *parts]).rstrip() + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


# -- settings


def _settings() -> str:
    lead = (
        "`logstep serve --queue-events 1000` and `LOGSTEP_QUEUE_EVENTS=1000` are the same. The flag wins over the\n"
        "environment."
    )
    schema = Settings.model_json_schema()["properties"]
    rows = [
        (
            f"`--{name.replace('_', '-')}`",
            "" if field.default in ("", None) else f"`{field.default}`",
            _bounds(schema[name]),
            " ".join((field.description or "").split()),
        )
        for name, field in Settings.model_fields.items()
    ]
    return _page("Settings", lead, _table(("flag", "default", "bounds", "meaning"), rows))


def _bounds(schema: Mapping[str, Any]) -> str:
    return ", ".join(
        text.format(f"{schema[key]:g}" if isinstance(schema[key], float) else schema[key])
        for key, text in _BOUNDS.items()
        if key in schema
    )


# -- commands


def _commands() -> str:
    lead = (
        "Exit codes: 0 fine, 1 failed, 2 wrong usage, 3 a record stopped `consume --strict`, 130 interrupted.\n"
        "Commands that talk to a service send the token in `--token-file`, `LOGSTEP_TOKEN` or `LOGSTEP_TOKEN_FILE`."
    )
    return _page("Commands", lead, *_sections(cli._parser()))


def _sections(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A section for each command below a parser."""
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        said = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, command in action.choices.items():
            yield f"## `{command.prog}`\n\n{_sentence(said[name])}\n"
            if name == "serve":
                yield "Its flags are the [settings](settings.md).\n"
            else:
                rows = [
                    (_flag(option), _sentence((option.help or "").replace("%%", "%")))
                    for option in command._actions
                    if _is_shown(option)
                ]
                if rows:
                    yield _table(("argument", "meaning"), rows)
                yield from _sections(command)


def _is_shown(option: argparse.Action) -> bool:
    return not isinstance(option, argparse._HelpAction | argparse._SubParsersAction)


def _flag(option: argparse.Action) -> str:
    if not option.option_strings:
        return f"`{option.metavar or option.dest}`"
    value = option.metavar or "|".join(map(str, option.choices or ())) or option.dest.upper()
    return ", ".join(f"`{flag}`" if option.nargs == 0 else f"`{flag} {value}`" for flag in option.option_strings)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", ")")) or not text else ".")


# -- metrics


def _metrics(service: Service) -> str:
    lead = (
        "`GET /metrics` is for Prometheus. Counts are since the start of the process. The first `--metrics-models`\n"
        "models have series of their own."
    )
    rows = []
    for family in service.engine.telemetry.families():
        # A family without samples yet has its labels here alone.
        labels = getattr(family, "_labelnames", ())
        name = family.name + ("_total" if family.type == "counter" else "")
        rows.append((f"`{name}{'{' + ','.join(labels) + '}' if labels else ''}`", family.type, family.documentation))
    return _page("Metrics", lead, _table(("metric", "type", "meaning"), rows))


# -- routes


def _routes(document: Mapping[str, Any]) -> str:
    lead = (
        "[api.md](api.md) explains bodies, replies and errors. The scopes are those of [security.md](security.md); a\n"
        "service without tokens asks for none. A running service shows the same with examples at `/docs`."
    )
    rows, details = [], []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            route = f"`{method.upper()} {path}`"
            wants = access.wanted(method.upper(), access.parse(path))
            rows.append((route, operation["summary"], wants, ", ".join(sorted(operation["responses"]))))
            if "description" in operation or operation.get("parameters"):
                details.append(_details(route, operation))
    others = [
        ("`GET /`", "The page", access.OPEN, "200"),
        ("`GET /docs`, `GET /openapi.json`", "The API, with examples", f"{access.OPEN}; {access.ANY}", "200"),
    ]
    return _page("Routes", lead, _table(("route", "what it does", "scope", "statuses"), [*rows, *others]), *details)


def _details(route: str, operation: Mapping[str, Any]) -> str:
    parameters = [
        f"- `{one['name']}`: {one['description']}"
        for one in operation.get("parameters", ())
        if "description" in one and one["name"] != "model"
    ]
    if "description" not in operation and not parameters:
        return ""
    return f"## {route}\n\n" + "\n".join([operation.get("description", ""), *parameters]).strip() + "\n"


# -- the spec


def _spec() -> str:
    lead = (
        "A spec is a JSON object: the body of `PUT /models/{model}`, or a file for `--spec`. A field that is left out\n"
        "has its default. [models.md](models.md) says which fields to use when."
    )
    rules = ", ".join(f"`{rule}`" for rule in [*RULES, "auto"])
    parts = [f"The rules are {rules}.\n"]
    for title, kind in (("The spec", spec.Spec), ("`join`", spec.Join), ("`breaker`", spec.Breaker)):
        parts += [f"## {title}\n", _fields(kind)]
    return _page("The spec of a model", lead, *parts)


def _fields(kind: type) -> str:
    """A row for each field."""
    schema = TypeAdapter(kind).json_schema()["properties"]
    rows = []
    for field in dataclasses.fields(kind):
        about = schema[field.name]
        bounds = spec.bounds(field.metadata.get("number", field.metadata))
        words = about["description"].replace("\n", " ")
        rows.append((f"`{field.name}`", _type(about), _default(field, kind), bounds, words))
    return _table(("field", "type", "default", "bounds", "meaning"), rows)


def _type(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(part) for part in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value!r}`".replace("'", '"') for value in schema["enum"])
    if "$ref" in schema:
        return _REFERENCES[schema["$ref"].rpartition("/")[2]]
    return _TYPES[schema["type"]]


_REFERENCES = {
    "InverseScaling": "schedule",
    "Optimal": "schedule",
    "Join": "[object](#join)",
    "Breaker": "[object](#breaker)",
}
_TYPES = {
    "null": "null",
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "object": "object",
    "array": "array",
}


def _default(field: dataclasses.Field[Any], kind: type) -> str:
    """A field's default; for one whose default is its rule's, the rules of each."""
    if field.default not in (dataclasses.MISSING, None):
        return f"`{json.dumps(field.default)}`"
    rules: dict[str, list[str]] = {}
    for name, rule in RULES.items() if kind is spec.Spec else ():
        if rule.defaults.get(field.name) is not None:
            rules.setdefault(json.dumps(rule.defaults[field.name]), []).append(name)
    return "; ".join(f"`{value}` with {', '.join(names)}" for value, names in rules.items())


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).write_text(text)
