"""Which models learn a file: their names and their specs."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from service.commands import options
from service.commands.files import Source
from service.commands.terminal import Failed, WrongUsage
from service.events import DEFAULT, LONGEST_NAME


class GivenSpec(NamedTuple):
    """A spec for a new model. text: for people, its file or JSON. stem: its part of the model's name. json: what the
    service gets."""

    text: str
    stem: str
    json: bytes


class Target(NamedTuple):
    """A model to learn into, created with `spec` if it does not exist.

    as_it_is: accept an existing model with any spec; else its spec must be this one. hint: other choices, for people
    who named neither a model nor a spec.
    """

    name: str
    spec: GivenSpec
    as_it_is: bool = False
    hint: str = ""


AUTO = GivenSpec('{"rule": "auto"}', "auto", b'{"rule": "auto"}')
"""The default spec of a file's model. It needs no tuning, whatever the columns are."""
CHOOSE = "; --model NAME learns into another model, --spec SPEC uses another rule"
_ENDINGS = re.compile(
    r"(\.(csv|tsv|txt|data|ndjson|jsonl|json|libsvm|svm|parquet|pq|arrow|feather))?(\.(gz|bz2|xz|zst))?$", re.IGNORECASE
)


def targets(sources: list[Source], model: str | None, texts: list[str]) -> list[Target]:
    """The models that learn: the named one, else one named after the file; with specs, one model for each."""
    if model is None and len(sources) > 1:
        raise WrongUsage("several files need --model NAME: which model learns them")
    if model is None and not sources[0].has_name:
        raise WrongUsage("standard input needs --model NAME: which model learns it")
    specs = [_given_spec(text) for text in texts]
    if len(specs) > 1:
        _check_specs(specs)
        names = model_names(stem_of(sources[0].name) if model is None else model, specs)
        return [Target(name, spec) for name, spec in zip(names, specs, strict=True)]
    if specs:
        name = model_names(stem_of(sources[0].name), specs)[0] if model is None else model
        return [Target(name, specs[0])]
    if model is None:
        return [Target(model_name(sources[0].name), AUTO, hint=CHOOSE)]
    return [Target(model, AUTO, as_it_is=True)]


def of_topic(topic: str, model: str | None, text: str | None) -> Target:
    """The model that learns a topic: the named one, else one named after it."""
    name = model_name(topic) if model is None else model
    hint = CHOOSE if model is None else ""
    return Target(name, AUTO, as_it_is=True, hint=hint) if text is None else Target(name, _given_spec(text), hint=hint)


def _given_spec(text: str) -> GivenSpec:
    data, file = options.json_of(text), options.spec_file(text)
    if file is not None:
        return GivenSpec(str(file), file.stem, data)
    found = json.loads(data)
    rule = found.get("rule", "sgd") if isinstance(found, dict) else "spec"
    return GivenSpec(text, str(rule), data)


def _check_specs(specs: list[GivenSpec]) -> None:
    """Raise Failed if one of several specs is wrong, before any model is made. The service checks a single spec."""
    from core.spec import Spec, SpecError

    for spec in specs:
        try:
            Spec.from_dict(json.loads(spec.json))
        except SpecError as error:
            raise Failed(f"{spec.text}: {error.field}: {error.message}") from None


def model_name(file: str) -> str:
    """A name for a file's model. Never `default`, which has its own spec.

    >>> model_name("2024 orders.csv.gz"), model_name("default.csv")
    ('2024-orders', 'default-file')
    """
    name = _as_name(stem_of(file))[:LONGEST_NAME]
    return f"{DEFAULT}-file" if name == DEFAULT else name


def model_names(stem: str, specs: Sequence[GivenSpec]) -> list[str]:
    """A name for each spec's model, always the same, so that the same command finds its models again.

    >>> model_names("elec", [GivenSpec("", stem, b"") for stem in ("sgd", "my spec", "sgd")])
    ['elec-sgd', 'elec-my-spec', 'elec-sgd-2']
    """
    names: list[str] = []
    for spec in specs:
        base = _as_name(f"{stem}-{spec.stem}")
        endings = itertools.chain([""], (f"-{n}" for n in itertools.count(2)))
        choices = (base[: LONGEST_NAME - len(ending)] + ending for ending in endings)
        names.append(next(name for name in choices if name not in names))
    return names


def stem_of(file: str) -> str:
    """A file's name without the endings of its compression and its format.

    >>> stem_of("clicks.2024.CSV.GZ"), stem_of("clicks.2024")
    ('clicks.2024', 'clicks.2024')
    """
    return _ENDINGS.sub("", file) or file


def _as_name(text: str) -> str:
    """A model's name: only these characters, first a letter or digit, accents dropped. A text without any becomes a
    hash.

    >>> _as_name("\u00e9t\u00e9 2024")
    'ete-2024'
    """
    plain = "".join(mark for mark in unicodedata.normalize("NFKD", text) if not unicodedata.combining(mark))
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", plain).lstrip("_.-")
    return name or f"model-{hashlib.blake2b(text.encode(errors='replace'), digest_size=4).hexdigest()}"
