"""What callers send: events, labels, questions. msgspec checks their shape while it reads them."""

from __future__ import annotations

import msgspec

MAX_ID = 256
"""Most characters of an id."""
Named = dict[str, float | bool | str | None]
Numbers = list[float | bool | None]
Features = Named | Numbers
"""An event's x; null means that the feature is left out."""


class Event(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A labelled event, for `/learn`."""

    x: Features
    y: float | bool
    id: str | None = None
    weight: float = 1.0


class Label(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A late label, for the prediction that was served with this id."""

    id: str
    y: float | bool
    weight: float = 1.0


class Question(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What to predict, for `/predict`. A prediction with an id is kept until its label comes."""

    x: Features
    id: str | None = None


class Explain(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What to explain, for `/explain`: x, or the id of a waiting prediction."""

    x: Features | None = None
    id: str | None = None
