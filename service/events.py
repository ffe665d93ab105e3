"""What callers send: events, labels, questions, and to which model. msgspec checks their shape while it reads them.

The annotations also say in the OpenAPI document what is accepted. msgspec does not check those: the decoders do, and
their errors say more.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import msgspec


def _says(**schema: Any) -> msgspec.Meta:
    return msgspec.Meta(extra_json_schema=schema)


JSON, NDJSON, ARROW = "application/json", "application/x-ndjson", "application/vnd.apache.arrow.stream"
CSV, TSV = "text/csv", "text/tab-separated-values"
PARQUET, ARROW_FILE = "application/vnd.apache.parquet", "application/vnd.apache.arrow.file"
"""The types of bodies."""
DEFAULT = "default"
"""The model of /learn and /predict."""
LONGEST_NAME = 64
MODEL_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{LONGEST_NAME - 1}}}")
MAX_ID = 256
"""Most characters of an id."""
NO_ID = f"must have 1 to {MAX_ID} characters and no zero byte"
NO_WEIGHT = "must be a number, 0 or above"
_SHORT = {"maxLength": MAX_ID, "pattern": "^[^\\x00]*$"}
Id = Annotated[str, _says(minLength=1, **_SHORT)]
Number = Annotated[
    float, _says(minimum=-1e100, maximum=1e100, description="The bounds are the max_value of the model.")
]
Text = Annotated[str, _says(**_SHORT)]
Named = Annotated[dict[str, Number | bool | Text | None], _says(propertyNames={"minLength": 1, **_SHORT})]
Numbers = Annotated[
    list[Number | bool | None], _says(description="An array of numbers, whose names are their positions.")
]
_ANY = {"x-go-type": "any"}  # for oapi-codegen; else every value of a Go client would be a union to be filled
Features = Annotated[Named | Numbers, _says(description="Features by name or position. A null is left out.", **_ANY)]
"""An event's x."""
Y = Annotated[float | bool, _says(enum=[0, 1, False, True], description="The label.", **_ANY)]
Weight = Annotated[float, msgspec.Meta(ge=0, description="Multiplies the gradient. 0: checked, but not learned.")]
if TYPE_CHECKING:
    AnId = Id
    NoneOrId = Id | None
else:  # msgspec reads whole numbers too, and the decoders make them text
    _TEXT = _says(**{"x-go-type": "string"})
    AnId = Annotated[Id | int, _TEXT]
    NoneOrId = Annotated[Id | int | None, _TEXT]


def is_id(text: str) -> bool:
    return 0 < len(text) <= MAX_ID and "\0" not in text


class Event(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A labelled event, for `/learn`."""

    x: Features
    y: Y
    id: NoneOrId = None
    weight: Weight = 1.0


class Label(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A late label, for the prediction that was served with this id."""

    id: AnId
    y: Y
    weight: Weight = 1.0


class Question(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What to predict, for `/predict`. A prediction with an id is kept until its label comes."""

    x: Features
    id: NoneOrId = None


class Explain(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What to explain, for `/explain`: x, or the id of a waiting prediction."""

    x: Features | None = None
    id: NoneOrId = None
