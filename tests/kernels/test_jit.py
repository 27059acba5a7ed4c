"""What the compiled engine's machine code depends on: the CPU, the folder it is stored in, and nothing before it is
needed.
"""

import os
import subprocess
import sys

import pytest

import emulated

FEATURES = {"generic": set(), "avx2": {"avx2", "fma"}, "avx512vl": {"avx512vl", "avx512vnni", "avx512bw", "avx512dq"}}


def digest_of(environment: dict[str, str]) -> subprocess.CompletedProcess:
    """Runs ``emulated`` in a process with such an environment."""
    command = [sys.executable, emulated.__file__]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize("cpu", FEATURES)
def test_other_cpus_give_the_same_bits(cpu, tmp_path):
    from llvmlite import binding

    have = {name for name, there in binding.get_host_cpu_features().items() if there}
    if missing := FEATURES[cpu] - have:
        pytest.skip(f"this CPU has no {', '.join(sorted(missing))}, so that code for {cpu} does not run on it")
    environment = os.environ | {"QUANTSPEC_CPU": cpu, "QUANTSPEC_KERNELS": str(tmp_path)}
    run = digest_of(environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == emulated.digest()


def test_an_unknown_cpu_is_refused():
    environment = os.environ | {"QUANTSPEC_CPU": "z80"}
    run = digest_of(environment)
    assert run.returncode != 0 and "expected one of generic, avx2, avx512vl, got 'z80'" in run.stderr


def test_importing_the_package_loads_no_compiler():
    script = "import sys, quantspec; sys.exit('llvmlite' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=200).returncode == 0


def test_stored_kernels_that_are_torn_are_compiled_again(tmp_path):
    environment = os.environ | {"QUANTSPEC_KERNELS": str(tmp_path)}
    for _ in range(2):
        run = digest_of(environment)
        assert run.returncode == 0 and run.stdout.strip() == emulated.digest(), run.stderr
        stored = list(tmp_path.iterdir())
        assert len(stored) > 4 and all(path.suffix == ".o" for path in stored)
        for path in stored:
            path.write_bytes(path.read_bytes()[:-100])


def test_a_folder_that_cannot_be_written_to_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    environment = os.environ | {"QUANTSPEC_KERNELS": str(tmp_path / "file" / "folder")}
    run = digest_of(environment)
    assert run.returncode == 0 and run.stdout.strip() == emulated.digest(), run.stderr
