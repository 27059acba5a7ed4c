"""Where a network is saved: links, modes, what is no file, and what killed processes left."""

import hashlib
import os
import stat
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

import quantspec as qs
from evidence import clause
from quantspec.storage import file


@pytest.fixture(scope="module")
def network():
    torch.default_generator.manual_seed(0)
    return qs.quantize_dynamic(nn.Linear(3, 2).eval())


def drafts(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".part")


@clause("STA-FILE")
def test_a_link_stays_one_and_what_it_leads_to_is_written(network, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    real, link, chain = tmp_path / "elsewhere" / "real.safetensors", tmp_path / "link", tmp_path / "chain"
    link.symlink_to(real)
    chain.symlink_to("link")
    network.save(chain)  # nothing is there yet
    first = real.read_bytes()
    real.write_bytes(b"other")
    network.save(chain)
    assert real.read_bytes() == first and link.is_symlink() and chain.is_symlink()
    assert not drafts(tmp_path) and not drafts(real.parent)


@clause("STA-FILE")
@pytest.mark.skipif(os.name != "posix", reason="elsewhere files have no such mode")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o777])
def test_the_mode_of_a_file_that_was_there_stays(network, mode, tmp_path):
    path = tmp_path / "q.safetensors"
    path.write_bytes(b"")
    path.chmod(mode)
    network.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode and qs.load(path)


@clause("STA-FILE")
@pytest.mark.skipif(os.name != "posix", reason="elsewhere there are no devices and pipes among files")
def test_what_is_no_file_is_refused_and_stays(network, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for path in (tmp_path / "pipe", "/dev/null", tmp_path / "link", tmp_path):
        before = os.stat(path).st_mode
        with pytest.raises(OSError, match="expected the path of a file"):
            network.save(path)
        with pytest.raises(OSError, match="expected the path of a file"):
            file.write_whole(path, b"")
        assert os.stat(path).st_mode == before
    assert not drafts(tmp_path)


@clause("STA-FILE")
def test_drafts_of_killed_processes_are_taken_away_by_the_next_save(network, tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path, old = tmp_path / "q.safetensors", time.time() - 10 * file.DRAFT_SECONDS
    gone = f".q.safetensors.{ended.pid}-00000000.part"
    kept = [f".q.safetensors.{os.getpid()}-00000000.part", f".other.{ended.pid}-00000000.part", "mine.part"]
    for name in (gone, *kept):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (old, old))
    fresh = f".q.safetensors.{ended.pid}-11111111.part"  # perhaps another machine's, in a folder of both
    (tmp_path / fresh).write_bytes(b"")
    network.save(path)
    assert drafts(tmp_path) == sorted([*kept, fresh])


@clause("STA-FILE")
@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, "n" * 201, "n" * 200, "n" * 199])
def test_a_name_may_be_as_long_as_names_may_be(network, name, tmp_path):
    network.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name] and qs.load(tmp_path / name)


@clause("STA-FILE")
@pytest.mark.parametrize("name", ["n" * 200, "n" * 255])
def test_drafts_of_long_names_are_taken_away_too(network, name, tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    stem = name if len(name) == 200 else hashlib.sha256(name.encode()).hexdigest()
    left = tmp_path / f".{stem}.{ended.pid}-00000000.part"
    left.write_bytes(b"")
    os.utime(left, (0, 0))
    network.save(tmp_path / name)
    assert not drafts(tmp_path)


@clause("STA-FILE")
@pytest.mark.parametrize("name, kind", [
    ("none/q", FileNotFoundError), ("n" * 256, OSError), ("file/q", NotADirectoryError),
])  # fmt: skip
def test_what_cannot_be_written_is_named_as_it_was_given(network, name, kind, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(kind) as raised:
        network.save(tmp_path / name)
    assert raised.value.filename == os.path.realpath(tmp_path / name)
