"""The plain peer: what a good FastAPI user writes to serve an online logistic regression.

FastAPI, pydantic and river in one process. The model is only in memory, so a restart loses it. The endpoints are
`async def`, so no request pays for a thread pool. uvicorn runs with uvloop and httptools.

    python tests/benchmarks/peer.py --port 8001
"""

import argparse
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


@app.post("/learn")
async def learn(event: Event) -> Learned:
    p = model.predict_proba_one(event.x)[True]
    model.learn_one(event.x, event.y)
    return Learned(seq=next(numbers), p=p)


@app.post("/predict")
async def predict(features: Features) -> Prediction:
    return Prediction(p=model.predict_proba_one(features.x)[True])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The plain peer: FastAPI, pydantic and river in memory.")
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    uvicorn.run(
        app, host="127.0.0.1", port=port, loop="uvloop", http="httptools", access_log=False, log_level="warning"
    )
