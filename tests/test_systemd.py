"""docker/logstep.service: systemd finds nothing wrong with it, and it is what the service needs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service.settings import Settings

TEXT = (Path(__file__).resolve().parent.parent / "docker/logstep.service").read_text()
SET = dict(line.split("=", 1) for line in TEXT.splitlines() if re.match(r"[A-Z]\w+=", line))
ENVIRONMENT = dict(
    setting.split("=", 1) for line in re.findall(r"^Environment=(.*)$", TEXT, re.MULTILINE) for setting in line.split()
)

analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that is there."""
    file = tmp_path / "logstep.service"
    file.write_text(TEXT.replace("/opt/logstep/bin/logstep", str(Path(sys.executable).with_name("logstep"))))
    return file


@analyze
def test_systemd_finds_nothing_wrong_with_it(unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@analyze
def test_it_is_exposed_to_little(unit: Path) -> None:
    """systemd's score goes from 0 (nothing is allowed) to 10. A service without any of these lines has 9.6."""
    security = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    done = subprocess.run(security, capture_output=True, text=True, timeout=60, check=False)
    found = re.search(r"Overall exposure level for logstep.service: ([\d.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) <= 1.3


def test_its_folders_are_its_own_and_where_it_looks_for_them() -> None:
    assert SET["User"] == SET["Group"] == "logstep"
    assert ENVIRONMENT["LOGSTEP_DATA"] == f"/var/lib/{SET['StateDirectory']}"
    assert ENVIRONMENT["XDG_CACHE_HOME"] == f"/var/cache/{SET['CacheDirectory']}"
    assert (SET["UMask"], SET["StateDirectoryMode"], SET["CacheDirectoryMode"]) == ("0077", "0700", "0700")


def test_it_has_the_time_that_a_stop_takes() -> None:
    settings = Settings(
        **{name.removeprefix("LOGSTEP_").lower(): value for name, value in ENVIRONMENT.items() if name[:7] == "LOGSTEP"}
    )
    assert float(SET["TimeoutStopSec"]) >= settings.drain_seconds + settings.shutdown_seconds + 5
    assert settings.host == "127.0.0.1"


def test_kernels_may_be_compiled_in_it() -> None:
    assert "MemoryDenyWriteExecute" not in SET
    assert {"AF_INET", "AF_INET6", "AF_UNIX"} == set(SET["RestrictAddressFamilies"].split())
