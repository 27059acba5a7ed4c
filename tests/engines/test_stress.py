"""A share of ``make stress``: threads, kills, interrupts, exits and forks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import quantspec

TESTS = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_nothing_is_wrong_hangs_or_cannot_be_read():
    paths = os.pathsep.join(map(str, (Path(quantspec.__file__).parent.parent, TESTS)))
    command = [sys.executable, "-W", "ignore", "-m", "stress.stress", "--share", "0.04", "--seed", "1"]
    ran = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=230)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count(" 0 wrong, 0 hangs, 0 unreadable") == 6
