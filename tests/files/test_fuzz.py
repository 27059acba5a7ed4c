"""A share of ``make fuzz``: damaged and forged files, in children, so that one that ends or hangs is told by number."""

import os
import subprocess
import sys
from pathlib import Path

import quantspec
from evidence import clause

TESTS = Path(__file__).resolve().parent.parent


def fuzz(*arguments: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join(map(str, (Path(quantspec.__file__).parent.parent, TESTS, TESTS / "harness")))
    command = [sys.executable, "-W", "ignore", "-m", "fuzz.fuzz", *arguments]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=300)


@clause("STA-FORMAT", "STA-NO-CODE")
def test_damaged_and_forged_files_end_no_process_and_take_what_they_may():
    ran = fuzz("--count", "300", "--seconds", "60", "--jobs", "1", "--seed", "1")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "fuzz: 0 findings" in ran.stdout


CRASH = """
import os, sys
from fuzz import fuzz
whole = fuzz.judged
def judged(kind, subject, path):
    if os.path.getsize(path) % 7 == 0:
        os.kill(os.getpid(), 11)
    return whole(kind, subject, path)
fuzz.judged = judged
sys.exit(fuzz.main(["--count", "40", "--jobs", "1", "--kind", "damaged"]))
"""


def test_a_crash_is_told_by_the_number_of_the_file_and_the_others_are_tried():
    paths = os.pathsep.join(map(str, (Path(quantspec.__file__).parent.parent, TESTS, TESTS / "harness")))
    environment = os.environ | {"PYTHONPATH": paths}
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", CRASH], env=environment, capture_output=True, text=True)
    found = ran.stdout.count("the process ended with -11")
    assert ran.returncode == 1 and 0 < found < 20, ran.stdout + ran.stderr
    assert f"damaged: {40 - found} files" in ran.stdout and f"fuzz: {found} findings" in ran.stdout
