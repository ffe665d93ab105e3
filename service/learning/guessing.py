"""Whether a model is worse than guessing, and what its owner should try next.

Guessing predicts the base rate, the share of label 1, for every event. A useful model has a lower log loss than that
over the same events.
"""

from __future__ import annotations

from typing import Any

from core.progressive import Brief
from core.spec import Spec

LEAST_EVENTS = 200
"""Up to this many events there is no verdict, because a model needs some to begin."""
NOISE = 1.02
"""Margin for the last events: over few events, a model as good as guessing is at times a little worse."""


def worse_than_guessing(spec: Spec, scores: Brief) -> dict[str, Any] | None:
    """None if the model is not worse. Else `over`, the events over which it is worse, the last ones (`window`) or all
    (`total`), and `advice`, a text for people: what is wrong and what to do.

    >>> from core.progressive import Brief
    >>> worse_than_guessing(Spec(), Brief(1000, 7000.0, 0.69, 0.5, 300, 0.2, 0.69, 0.9))["over"]
    'total'
    """
    if not scores.events:
        return None
    of_all = f"all {scores.events:,} events"
    if _is_worse(scores.events_window, scores.loss_window, scores.base_rate_loss_window, NOISE):
        of_last = f"the last {scores.events_window:,} events" if scores.events_window < scores.events else of_all
        said = _compared(of_last, scores.loss_window, scores.base_rate_loss_window)
        return {"over": "window", "advice": f"{said}. {_next_step(spec)}"}
    loss = scores.loss / scores.events
    if scores.events <= LEAST_EVENTS or scores.base_rate_loss is None or loss <= scores.base_rate_loss:
        return None
    over = "total" if scores.events_window < scores.events else "window"
    if not scores.base_rate_loss:
        said = f"All {scores.events:,} labels so far are the same, so guessing is perfect"
        return {"over": over, "advice": f"{said}. {_LOOK}"}
    said = _compared(of_all, loss, scores.base_rate_loss)
    if over == "total" and scores.loss_window is not None:
        lately = f"{_loss(scores.loss_window)} against {_loss(scores.base_rate_loss_window)}"
        said += f"; over the last {scores.events_window:,} it is {lately}"
    return {"over": over, "advice": f"{said}. {_next_step(spec)}"}


def _is_worse(events: int, loss: float | None, base_rate_loss: float | None, margin: float) -> bool:
    """Never worse if all labels are the same: then guessing is perfect, and a rare label is no fault of the model."""
    return events > LEAST_EVENTS and loss is not None and bool(base_rate_loss) and loss > margin * (base_rate_loss or 0)


def _compared(events: str, loss: float | None, base_rate_loss: float | None) -> str:
    return f"Worse than guessing over {events}: log loss {_loss(loss)}, guessing {_loss(base_rate_loss)}"


def _loss(value: float | None) -> str:
    return "none" if value is None else f"{value:,.4f}" if value < 1e6 else f"{value:.2e}"


_LOOK = "Check which column is the label: --label and --positive of replay"
_IDS = "and whether ids are among the columns: each id is a feature that never repeats"


def _next_step(spec: Spec) -> str:
    if spec.rule != "auto" and spec.scale != "standard":
        return 'Learn the same events into a new model with {"rule": "auto"}, or with "scale": "standard" in its spec'
    return f"{_LOOK}; {_IDS}"
