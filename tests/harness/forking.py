"""Processes that are copies of one which has imported what they need: torch alone takes longer to import than most of
what is asked of them.

``run(code, ...)`` is ``python -c code`` but for how it begins. The process that is copied runs this file, one for each
environment; it imports what it is told to and nothing of ours besides, and ends when whoever started it does.
"""

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import warnings
from types import CodeType, ModuleType

LENGTH, STATUS = struct.Struct("<q"), struct.Struct("<ii")  # STATUS: the number of a copy, or how it ended


def send(to: socket.socket, request: dict, files: list[int]) -> None:
    """A request, and files for whom it asks for."""
    text = json.dumps(request).encode()
    socket.send_fds(to, [LENGTH.pack(len(text))], files)
    to.sendall(text)


def receive(source: socket.socket) -> tuple[dict, list[int]]:
    """The next request. EOFError when there are no more."""
    head, files, _, _ = socket.recv_fds(source, LENGTH.size, 8)
    if len(head) < LENGTH.size:
        raise EOFError
    (left,), text = LENGTH.unpack(head), b""
    while len(text) < left:
        text += source.recv(left - len(text))
    return json.loads(text), files


def serve(requests: socket.socket) -> None:
    """Makes copies until nobody can ask for more."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who watch copies
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            request, files = receive(requests)
            for name in request["modules"]:
                with contextlib.suppress(Exception):  # a copy that needs it fails in its own words
                    __import__(name)
            if not fork():
                requests.close()
                watch(request, files)
            for file in files:
                os.close(file)


def fork() -> int:
    """``os.fork``, which warns of threads: what libraries keep for later work is not working."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return os.fork()


def watch(request: dict, files: list[int]) -> None:
    """Makes one copy, which tells its number, and tells how it ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *own, status = files
    if not (copy := fork()):
        os.setsid()  # before its number is known, by which its group may be ended
        os.write(status, STATUS.pack(0, os.getpid()))
        for number, file in enumerate(own):
            os.dup2(file, number)
        os.closerange(3, max(files) + 1)
        live(request)
    for file in own:
        os.close(file)
    with contextlib.suppress(BrokenPipeError):
        os.write(status, STATUS.pack(1, os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])))
    os._exit(0)


def live(request: dict) -> None:
    """The life of a copy: as a process that was started with ``-c``."""
    os.chdir(request["folder"])
    sys.path.insert(0, "")
    main = sys.modules["__main__"] = ModuleType("__main__")
    sys.argv = ["-c", *request["arguments"]]
    code: CodeType = compile(request["code"], "<string>", "exec")
    try:
        exec(code, main.__dict__)  # noqa: S102
        end = 0
    except SystemExit as error:
        end = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        end = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(end)


class Source:
    """A process that is copied. It has the ``environment``, by Python's flags ``options``."""

    def __init__(self, environment: dict[str, str], options: tuple[str, ...] = ()) -> None:
        self.requests, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, *options, __file__, str(theirs.fileno())]
            self.process = subprocess.Popen(
                command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )

    def close(self) -> None:
        self.requests.close()
        self.process.wait()


class Copy:
    """A copy, with as much of ``subprocess.Popen`` as whoever runs workers needs."""

    def __init__(self, source: Source, request: dict, stderr: int) -> None:
        self.args = request["code"]
        self.returncode: int | None = None
        (theirs_in, ours_in), (ours_out, theirs_out), (self.status, theirs_status) = (os.pipe() for _ in range(3))
        send(source.requests, request, [theirs_in, theirs_out, stderr, theirs_status])
        for file in (theirs_in, theirs_out, theirs_status):
            os.close(file)
        self.stdin, self.stdout = open(ours_in, "wb", 0), open(ours_out, "rb", 0)
        _, self.pid = STATUS.unpack(os.read(self.status, STATUS.size))

    def wait(self, timeout: float | None = None) -> int:
        """How it ended; subprocess.TimeoutExpired where it has not."""
        if self.returncode is None:
            if not select.select([self.status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            _, self.returncode = STATUS.unpack(os.read(self.status, STATUS.size))
            os.close(self.status)
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None


class Sources:
    """A process to copy for each environment, started when it is first asked for."""

    def __init__(self) -> None:
        self.made: dict[tuple, Source] = {}

    def copy(
        self, code: str, *arguments: str, environment: dict[str, str], stderr: int, folder: str = ".",
        options: tuple[str, ...] = (), modules: tuple[str, ...] = (),
    ) -> Copy:  # fmt: skip
        """A process that runs the code, of one that has imported the modules."""
        environment = {name: value for name, value in environment.items() if name != "PYTEST_CURRENT_TEST"}
        key = tuple(sorted(environment.items())), options
        if key not in self.made:
            self.made[key] = Source(environment, options)
        request = {"code": code, "arguments": arguments, "folder": os.path.abspath(folder), "modules": modules}
        return Copy(self.made[key], request, stderr)

    def run(
        self, code: str, told: str, *, environment: dict[str, str], folder: str = ".", options: tuple[str, ...] = (),
        modules: tuple[str, ...] = (),
    ) -> subprocess.CompletedProcess:  # fmt: skip
        """What comes of code that reads all it is told before it says anything, as ``subprocess.run`` gives it; of a
        process of its own where none can be copied."""
        if not hasattr(os, "fork"):
            command = [sys.executable, *options, "-c", code]
            captured = {"capture_output": True, "text": True}
            return subprocess.run(command, input=told, env=environment, cwd=folder, **captured)
        with tempfile.TemporaryFile("w+") as said_aside:
            how = {"environment": environment, "folder": folder, "options": options, "modules": modules}
            copy = self.copy(code, stderr=said_aside.fileno(), **how)
            with copy.stdout:
                with copy.stdin:
                    copy.stdin.write(told.encode())
                said = copy.stdout.read().decode()
            said_aside.seek(0)
            return subprocess.CompletedProcess(copy.args, copy.wait(), said, said_aside.read())

    def close(self) -> None:
        for source in self.made.values():
            source.close()


if __name__ == "__main__":
    del sys.path[0]  # this folder's
    serve(socket.socket(fileno=int(sys.argv[1])))
