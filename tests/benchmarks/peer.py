"""The plain peer: what a good FastAPI user writes to serve an online logistic regression.

FastAPI, pydantic and river in one process. The model is only in memory, so a restart loses it. The endpoints are
`async def`, so no request pays for a thread pool. uvicorn runs with uvloop and httptools.

    python tests/benchmarks/peer.py --port 8001
    python tests/benchmarks/peer.py --port 8001 --keep events.db

With `--keep` each event is a row of an SQLite database (WAL, synchronous=FULL) before the reply, so that the model
could be learned again after a crash: what logstep promises, as a few lines would do it.
"""

import argparse
import sqlite3
from collections.abc import Callable
from itertools import count
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from river import linear_model


class Features(BaseModel):
    x: dict[str, float]


class Event(Features):
    y: bool


class Prediction(BaseModel):
    p: float


class Learned(Prediction):
    seq: int


app = FastAPI()
model: Any = linear_model.LogisticRegression()  # Any: river's methods are untyped
numbers = count(1)


def forget(_: Event) -> None:
    """Keep nothing."""


def kept_in(path: str) -> Callable[[Event], None]:
    """What writes an event to a database and syncs it."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY, event TEXT)")

    def keep(event: Event) -> None:
        database.execute("INSERT INTO events (event) VALUES (?)", [event.model_dump_json()])

    return keep


keep: Callable[[Event], None] = forget


@app.post("/learn")
async def learn(event: Event) -> Learned:
    keep(event)
    p = model.predict_proba_one(event.x)[True]
    model.learn_one(event.x, event.y)
    return Learned(seq=next(numbers), p=p)


@app.post("/predict")
async def predict(features: Features) -> Prediction:
    return Prediction(p=model.predict_proba_one(features.x)[True])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The plain peer: FastAPI, pydantic and river in memory.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--keep", metavar="FILE", help="write each event to this SQLite database before the reply")
    options = parser.parse_args()
    if options.keep:
        keep = kept_in(options.keep)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=options.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
