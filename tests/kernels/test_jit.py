"""What the compiled engine's machine code depends on: the CPU, the folder it is stored in, and nothing before it is
needed.
"""

import hashlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import emulated
from quantspec.kernels import jit

FEATURES = {"generic": set(), "avx2": {"avx2", "fma"}, "avx512vl": {"avx512vl", "avx512vnni", "avx512bw", "avx512dq"}}


def digest_of(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    """Runs ``emulated`` in a process with such an environment."""
    command = [sys.executable, emulated.__file__, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize("cpu", FEATURES)
def test_other_cpus_give_the_same_bits(cpu):
    from llvmlite import binding

    have = {name for name, there in binding.get_host_cpu_features().items() if there}
    if missing := FEATURES[cpu] - have:
        pytest.skip(f"this CPU has no {', '.join(sorted(missing))}, so that code for {cpu} does not run on it")
    run = digest_of(os.environ | {"QUANTSPEC_CPU": cpu})
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == emulated.digest()


def test_an_unknown_cpu_is_refused():
    environment = os.environ | {"QUANTSPEC_CPU": "z80"}
    run = digest_of(environment)
    assert run.returncode != 0 and "expected one of generic, avx2, avx512vl, got 'z80'" in run.stderr


def test_importing_the_package_loads_no_compiler():
    script = "import sys, quantspec; sys.exit(bool({'llvmlite', 'torch._dynamo'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], timeout=200).returncode == 0


def test_stored_kernels_that_are_torn_are_compiled_again(tmp_path):
    environment = os.environ | {"QUANTSPEC_KERNELS": str(tmp_path)}
    for _ in range(2):
        run = digest_of(environment, "arrays")
        assert run.returncode == 0 and run.stdout.strip() == emulated.digest_of_arrays(), run.stderr
        stored = list(tmp_path.iterdir())
        assert len(stored) > 4 and all(path.suffix == ".o" for path in stored)
        for path in stored:
            path.write_bytes(path.read_bytes()[:-100])


def test_a_folder_that_cannot_be_written_to_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    environment = os.environ | {"QUANTSPEC_KERNELS": str(tmp_path / "file" / "folder")}
    run = digest_of(environment, "arrays")
    assert run.returncode == 0 and run.stdout.strip() == emulated.digest_of_arrays(), run.stderr


PLACES = {
    "/given": {"QUANTSPEC_KERNELS": "/given", "XDG_CACHE_HOME": "/cache"},
    "/cache/quantspec/kernels": {"XDG_CACHE_HOME": "/cache"},
    "/home/.cache/quantspec/kernels": {"QUANTSPEC_KERNELS": "", "XDG_CACHE_HOME": ""},
}


@pytest.mark.parametrize("place", PLACES)
def test_kernels_are_stored_where_the_environment_says_or_in_the_users_cache(place, monkeypatch):
    for name in ("QUANTSPEC_KERNELS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in PLACES[place].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Path, "home", lambda: Path("/home"))
    assert jit.folder() == Path(place)
    one, other = jit.code_file("one"), jit.code_file("other")
    assert one.parent == other.parent == Path(place) and one.suffix == other.suffix == ".o"
    assert one.name.startswith("one-") and other.name.startswith("other-") and one == jit.code_file("one")


def kernel_file(folder):
    """A file as the store has them, whose code is ``code``."""
    path = folder / "kernel.o"
    path.write_bytes(hashlib.sha256(b"code").digest() + b"code")
    path.chmod(0o600)
    return path


def as_link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def as_pipe(path):
    path.unlink()
    os.mkfifo(path)


def as_folder(path):
    path.unlink()
    path.mkdir()


NOT_OURS_ALONE = {
    "a link": as_link,
    "a pipe, which would wait for a writer": as_pipe,
    "a folder": as_folder,
    "a file for the group": lambda path: path.chmod(0o620),
    "a file for all": lambda path: path.chmod(0o602),
    "another's file": lambda path: os.chown(path, 12345, -1),
    "a folder for the group": lambda path: path.parent.chmod(0o770),
    "a folder for all": lambda path: path.parent.chmod(0o1777),
    "another's folder": lambda path: os.chown(path.parent, 12345, -1),
    "a folder in one for all": lambda path: path.parents[1].chmod(0o777),
}


@pytest.mark.skipif(os.name != "posix", reason="elsewhere files have no mode that says who may write")
@pytest.mark.parametrize("change", NOT_OURS_ALONE)
def test_code_that_others_could_have_written_is_not_run_and_told_once(change, tmp_path):
    if "another's" in change and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    folder = tmp_path / "around" / "kernels"
    folder.mkdir(parents=True)
    path = kernel_file(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert jit.stored(path) == b"code"
    NOT_OURS_ALONE[change](path)
    jit.warned.clear()
    with pytest.warns(RuntimeWarning, match=f"^kernel {path} is ignored and compiled again: "):
        assert jit.stored(path) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert jit.stored(path) is None
        jit.store(path, b"new")
    # Nothing is put where others can write; elsewhere a file of our own takes the place.
    replaced = path.is_file() and path.read_bytes() == b"new"
    assert replaced == ("folder" not in change)


def test_a_folder_that_is_made_is_for_the_user_alone(tmp_path):
    before = os.umask(0o002)
    try:
        jit.store(tmp_path / "a" / "b" / "kernel.o", hashlib.sha256(b"code").digest() + b"code")
    finally:
        os.umask(before)
    assert jit.stored(tmp_path / "a" / "b" / "kernel.o") == b"code"
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b")} == {0o700}
