"""Makes the golden data folder: `python tests/golden/make.py`. Run it again whenever the schema changes.

The folder `data` is in the state after a kill: snapshots, newer events in the write-ahead log, ids, waiting
predictions. `pinned.json` has the SHA-256 of each model's weights, which never changes: if a model's weights differ,
this script writes nothing. It pins models that are not pinned yet.

On a processor without fused multiply-add (FMA), the C library's `pow` rounds one value in a thousand differently. So a
new model learns the events of the first seed that gives the same weights with and without FMA.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))
from harness import Service

from core import Learner, Spec
from core.rules import RULES

HERE = Path(__file__).parent
PINNED = HERE / "pinned.json"
EVENTS = 70
LAST = 10
"""Number of a model's events after its snapshots."""
SEEDS = 100
WITHOUT_FMA = {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-FMA,-AVX2,-FMA4"}

SPECS: dict[str, dict[str, Any]] = {
    **{rule: {"rule": rule} for rule in RULES},
    "sgd-scheduled": {
        "l2": 0.01,
        "learning_rate": {"schedule": "inverse_scaling", "learning_rate": 0.5, "power": 0.5},
        "bias_learning_rate": {"schedule": "optimal", "alpha": 0.05},
    },
    "sgd-hashed": {"hash_bits": 8, "l1": 0.001, "learning_rate": 0.1},
    "sgd-clipped": {"clip": 0.3, "class_weights": {"0": 0.5, "1": 2.0}, "bias_learning_rate": 0.001},
    "momentum-l1": {"rule": "momentum", "l1": 0.001},
    "nesterov-l2": {"rule": "nesterov", "l2": 0.01},
    "adagrad-standard": {"rule": "adagrad", "scale": "standard"},
    "rmsprop-maxabs": {"rule": "rmsprop", "scale": "maxabs"},
    "adam-standard": {"rule": "adam", "scale": "standard"},
    "ftrl-penalty": {"rule": "ftrl", "l1": 0.1, "l2": 0.5},
    "ftrl-at-once": {"rule": "ftrl", "lag": False, "l1": 0.01, "scale": "standard"},
}
WAITING = ["waits-1", "waits-2"]


def events(seed: int, scaled: bool) -> list[dict[str, Any]]:
    """Events with ids, weights, and features that first appear late. Values are numbers; without scaling also text and
    booleans."""
    numbers = random.Random(seed)
    found = []
    for i in range(EVENTS):
        x: dict[str, Any] = {"age": numbers.gauss(0.4, 0.2), "size": numbers.uniform(-3, 3), f"late-{i // 20}": 0.5}
        if not scaled:
            x |= {"country": numbers.choice(["FR", "DÉ"]), "vip": numbers.random() < 0.5}
        y = int(x["age"] + x["size"] / 5 + numbers.gauss(0, 0.3) > 0.4)
        found.append({"x": x, "y": y, "id": f"event-{i}", "weight": 1.0 if i % 5 else 0.5})
    return found


def events_of(name: str, seed: int) -> list[dict[str, Any]]:
    """The events of a model."""
    return events(seed, SPECS[name].get("scale", "none") != "none")


def pinned() -> dict[str, Any]:
    """The seed and the SHA-256 of each model."""
    found: dict[str, Any] = json.loads(PINNED.read_text())
    return found


def learned(name: str, seed: int) -> str:
    """The SHA-256 of a model that learns the events of a seed in this process."""
    learner = Learner(Spec.from_dict(SPECS[name]))
    for event in events_of(name, seed):
        learner.learn_one(event["x"], event["y"], event["weight"])
    return learner.sha256()


def new_pins(names: list[str]) -> dict[str, Any]:
    """For each model the first seed with the same weights with and without FMA, and their SHA-256."""
    if "fma" not in Path("/proc/cpuinfo").read_text().split():
        sys.exit("pinning a model needs a processor with FMA, to try both with and without it")
    command = [sys.executable, __file__, "--learn", *names]
    without = subprocess.run(command, env={**os.environ, **WITHOUT_FMA}, check=True, stdout=subprocess.PIPE).stdout
    pins = {}
    for name, others in json.loads(without).items():
        mine = ((seed, learned(name, seed)) for seed in range(SEEDS))
        seed, sha256 = next((seed, sha256) for seed, sha256 in mine if sha256 == others[seed])
        pins[name] = {"seed": seed, "sha256": sha256}
    return pins


def write(folder: Path, pins: dict[str, Any]) -> dict[str, str]:
    """Write a folder with the service and kill it. Returns the SHA-256 of each model."""
    with Service(folder, "--snapshot-seconds", "0.00001").wait_until_ready() as service:
        for name, spec in SPECS.items():
            assert service.request("PUT", f"/models/{name}", spec)[0] == 201
        assert service.request("PUT", "/models/auto", {"rule": "auto"})[0] == 201
        assert service.request("PUT", "/models/joined", {"join": {"keep": "3650d"}})[0] == 201
        for first in range(0, EVENTS - LAST, 20):
            learn(service, pins, first, first + 20)
        assert service.stop() == 0
    with Service(folder, "--snapshot-seconds", "1000").wait_until_ready() as service:
        learn(service, pins, EVENTS - LAST, EVENTS)
        for id_ in ("joined", *WAITING):
            assert service.request("POST", "/models/joined/predict", {"x": {"age": 2.0}, "id": id_})[0] == 200
        service.learn([{"id": "joined", "y": 1}], "joined")
        found = {name: service.get(f"/models/{name}")["sha256"] for name in SPECS}
    (folder / "lock").unlink()
    (folder / "log.db-shm").unlink(missing_ok=True)
    return found


def learn(service: Service, pins: dict[str, Any], first: int, end: int) -> None:
    for name, pin in pins.items():
        service.learn(events_of(name, pin["seed"])[first:end], name)
    service.learn(events(0, scaled=False)[first:end], "auto")


def make() -> None:
    pins = pinned() if PINNED.exists() else {}
    if new := [name for name in SPECS if name not in pins]:
        pins |= new_pins(new)
    with tempfile.TemporaryDirectory() as below:
        folder = Path(below, "data")
        found = write(folder, pins)
        wrong = [name for name in SPECS if found[name] != pins[name]["sha256"]]
        if wrong:
            sys.exit(f"the weights of {', '.join(wrong)} differ from the pinned ones; nothing was written")
        shutil.rmtree(HERE / "data", ignore_errors=True)
        shutil.copytree(folder, HERE / "data")
    PINNED.write_text(json.dumps(pins, indent=2) + "\n")
    print(f"{HERE / 'data'}: {len(pins)} pinned models, {len(new)} of them new")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--learn"]:
        print(json.dumps({name: [learned(name, seed) for seed in range(SEEDS)] for name in sys.argv[2:]}))
    elif sys.argv[1:] == ["--pinned"]:
        print(json.dumps({name: learned(name, pin["seed"]) for name, pin in pinned().items()}))
    else:
        make()
