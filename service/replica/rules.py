"""What must be the same on every node, since it decides what is learned. It is the first record of the topic."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

from core.arithmetic import arithmetic
from core.spec import Spec
from service.settings import DECIDING, Settings

LOG = 1
"""The version of the records' meaning."""
WHAT = {
    "bits": "the major version of logstep",
    "arithmetic": "how the processor and the C library compute exp, log and pow (a digest)",
    "default": "the spec of a new default model",
}


def rules_of(settings: Settings) -> dict[str, Any]:
    """The rules of a node with these settings."""
    return {
        "log": LOG,
        "bits": version("logstep").partition(".")[0],  # only a major version may change them
        "arithmetic": arithmetic(),
        "default": Spec().as_dict(),
        **{name: getattr(settings, name) for name in DECIDING},
    }


def encoded(rules: dict[str, Any]) -> str:
    return json.dumps(rules, sort_keys=True, separators=(",", ":"))


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """How the rules of a topic differ from a node's, in words; "" if they do not.

    >>> differences({"log": 1, "max_event_features": 10}, {"log": 1, "max_event_features": 20})
    '--max-event-features is 10 in the topic and 20 here'
    """
    told = []
    for name in sorted(theirs | ours):
        if theirs.get(name) != ours.get(name):
            flag = f"--{name.replace('_', '-')}" if name in DECIDING else WHAT.get(name, name)
            told.append(f"{flag} is {theirs.get(name, 'not set')} in the topic and {ours.get(name, 'not set')} here")
    return "; ".join(told)
