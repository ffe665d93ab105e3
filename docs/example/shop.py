"""A shop that shows offers. It asks the service how likely a click is, and tells it when somebody clicks.

    python shop.py [URL] [OFFERS]

It needs Python alone. Clicks come up to two seconds after the offer. An offer that nobody clicks has no label, and
the service learns it as 0 when it has waited long enough (`join.keep` in clicks.json).
"""

from __future__ import annotations

import argparse
import heapq
import http.client
import json
import math
import random
import time
from typing import Any
from urllib.parse import urlsplit

CATEGORIES = {"books": 0.5, "shoes": 0.0, "garden": -1.0}
"""What each category adds to the true log odds of a click."""


class Model:
    """A model of a service, over one connection."""

    def __init__(self, url: str, name: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        self._path = f"/models/{name}"

    def ask(self, method: str, path: str = "", body: Any = None) -> Any:
        """The service's reply, or an error that says what it said."""
        text = None if body is None else json.dumps(body)
        self._connection.request(method, self._path + path, text, {"content-type": "application/json"})
        response = self._connection.getresponse()
        reply = json.loads(response.read())
        if response.status >= 400:
            raise SystemExit(reply["detail"])
        return reply


def offer(chance: random.Random) -> tuple[dict[str, Any], bool]:
    """An offer's features, and whether somebody will click it."""
    category, price, returning = chance.choice(list(CATEGORIES)), chance.uniform(5, 200), chance.random() < 0.3
    score = -0.5 + CATEGORIES[category] - 0.015 * (price - 80) + 1.2 * returning
    return {"category": category, "price": round(price, 2), "returning": returning}, chance.random() < 1 / (
        1 + math.exp(-score)
    )


def main() -> None:
    """Show so many offers, 200 a second, and send each click when it comes."""
    parser = argparse.ArgumentParser(description="Show offers, and tell the service of each click.")
    parser.add_argument("url", nargs="?", default="http://localhost:8000", metavar="URL")
    parser.add_argument("offers", nargs="?", type=int, default=1_000, metavar="OFFERS")
    arguments = parser.parse_args()
    url, offers = arguments.url, arguments.offers
    model, chance, clicks = Model(url, "clicks"), random.Random(1), list[tuple[float, str]]()
    shop = f"{time.time():.0f}"  # so that a second run has other ids
    for number in range(offers):
        x, clicked = offer(chance)
        id_ = f"{shop}-{number}"
        model.ask("POST", "/predict", {"x": x, "id": id_})
        if clicked:
            heapq.heappush(clicks, (time.monotonic() + chance.uniform(0, 2), id_))
        send_clicks(model, clicks, until=time.monotonic())
        time.sleep(0.005)
    send_clicks(model, clicks, until=math.inf)
    while model.ask("GET")["join"]["waiting"]:
        time.sleep(0.2)
    told = model.ask("GET")
    join, served = told["join"], told["served"]["window"]
    print(f"{offers} offers: {join['joined']} clicks, {join['expired']} offers that nobody clicked")
    print(f"log loss of what was served: {served['log_loss']:.3f}; of guessing: {served['base_rate_log_loss']:.3f}")


def send_clicks(model: Model, clicks: list[tuple[float, str]], until: float) -> None:
    """Send the clicks that come before a time; wait for those that are still to come."""
    while clicks and clicks[0][0] <= until:
        due, id_ = heapq.heappop(clicks)
        time.sleep(max(0.0, due - time.monotonic()))
        model.ask("POST", "/learn", {"id": id_, "y": 1})


if __name__ == "__main__":
    main()
