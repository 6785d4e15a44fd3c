"""`Pool`: processes that encode rows, asked by threads, each of which waits for its answer."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from hftl.backbones.protocol import Backbone, Encoded
from hftl.decoding.request import Request, Unread, encoded_rows
from hftl.decoding.wire import receive_message, same_message, send_message
from hftl.lifetime import SECONDS_BETWEEN_LOOKS
from hftl.wording import named_error

# Run before anything else in the new interpreter, which must not look for modules in the folder where it starts.
START = "import sys; sys.path[:] = {path!r}; import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
SERVE = "from hftl.decoding.server import serve; serve({control}, {workers}, {parent})"
# Threads that libraries would start when they are imported, after which no process can be forked. No GPU is used.
ALONE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
ALONE["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
# In a notebook or a server the run is over long before this process is; between two epochs less time passes.
IDLE_SECONDS = 60.0


class Pool:
    """Processes that encode rows.

    They start in the background and answer nothing until they are ready; whatever goes wrong with one, it is not asked
    again. They end when this process does, however that ends, because they see their sockets close.

    Raises:
        OSError: there are no more files that may be open.

    Args:
        backbone: who encodes.
        sample: a row that was encoded here; processes that make anything else of it are not used.
        count: of processes.
        idle: called when no row was asked for in a minute.

    Attributes:
        why_not: why the processes cannot be used, once that is known.
        lost: how many ended without being asked to.
    """

    def __init__(self, backbone: Backbone, sample: Request, count: int, idle: Callable[[], None]) -> None:
        self._ready = False
        self.why_not: str | None = None
        self.lost = 0
        self._idle = idle
        self._asked = time.monotonic()
        self._ended = threading.Event()
        self._owner = os.getpid()
        self._state = threading.Condition()
        self._free: list[socket.socket] = []
        self._server: subprocess.Popen[bytes] | None = None
        pairs: list[tuple[socket.socket, socket.socket]] = []
        try:
            pairs += (socket.socketpair() for _ in range(count + 1))
        except OSError:
            for each in (side for pair in pairs for side in pair):
                each.close()
            raise
        self._control, *ours = [pair[0] for pair in pairs]
        self._live = set(ours)
        atexit.register(self.close)
        arguments = (backbone, sample, [pair[1] for pair in pairs])
        threading.Thread(target=self._run, args=arguments, name="decoders", daemon=True).start()

    @property
    def ready(self) -> bool:
        """Whether rows are taken."""
        # A process that the user forked has the same sockets, and answers would go to whoever reads first.
        return self._ready and bool(self._live) and os.getpid() == self._owner

    @property
    def left(self) -> int:
        """Processes that can be asked."""
        return len(self._live)

    def __call__(self, request: Request) -> list[Encoded] | Unread | None:
        """Rows as the model reads them, or why this process is to read them; None where no process answers."""
        if not self.ready:
            return None
        with self._state:
            while self._live and not self._free:
                self._state.wait()
            if not self._live:
                return None
            channel = self._free.pop()
            self._asked = time.monotonic()
        try:
            send_message(channel, request)
            answer: list[Encoded] | Unread = receive_message(channel)
        except BaseException as error:
            # An answer that nobody took must not be that of the next row.
            self._drop(channel)
            if not isinstance(error, Exception):
                raise
            return None
        with self._state:
            if channel in self._live:
                self._free.append(channel)
                self._asked = time.monotonic()
                self._state.notify()
                return answer
        channel.close()
        return answer

    def close(self) -> None:
        """End the processes; rows that they work on are answered with None."""
        if os.getpid() != self._owner:
            return
        atexit.unregister(self.close)
        with self._state:
            # Those that are asked are closed by the threads that wait for their answers.
            unasked = [*self._free, self._control] if self._ready else list(self._live)
            asked = self._live.difference(unasked)
            self._ready = False
            self._ended.set()
            self._live, self._free = set(), []
            self._state.notify_all()
        for channel in (*unasked, *asked, self._control):
            with suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)
        for channel in unasked:
            channel.close()
        if self._server is not None:
            # It keeps nothing, and may be busy importing; the processes that it forked end with it.
            self._server.kill()
            self._server.wait()

    def _drop(self, channel: socket.socket) -> None:
        with self._state:
            if channel in self._live:
                self._live.remove(channel)
                self.lost += 1
            self._state.notify_all()
        channel.close()

    def _run(self, backbone: Backbone, sample: Request, theirs: list[socket.socket]) -> None:
        """Start the processes, and say when nobody asks them any more."""
        self._start(backbone, sample, theirs)
        while not self._ended.wait(SECONDS_BETWEEN_LOOKS):
            with self._state:
                unasked = len(self._free) == len(self._live) and time.monotonic() - self._asked > IDLE_SECONDS
            if unasked:
                self._idle()

    def _start(self, backbone: Backbone, sample: Request, theirs: list[socket.socket]) -> None:
        """Start the processes and see that they read a row as this one does."""
        try:
            numbers = [each.fileno() for each in theirs]
            command = START.format(path=sys.path) + SERVE.format(
                control=numbers[0], workers=numbers[1:], parent=os.getpid()
            )
            with self._state:
                if not self._ended.is_set():
                    self._server = subprocess.Popen(
                        [sys.executable, *(["-B"] if sys.dont_write_bytecode else []), "-c", command],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        pass_fds=numbers,
                        env=os.environ | ALONE | NO_GPU,
                    )
            for each in theirs:
                each.close()
            send_message(self._control, (backbone, sample))
            (expected,) = encoded_rows(backbone, sample)
            answer = receive_message(self._control)
            why_not = answer if isinstance(answer, str) else _unlike(answer[0], expected)
        except (EOFError, ConnectionError):
            self._fail("the process that was to decode ended at its start")
        except Exception as error:
            self._fail(f"its preprocessing cannot be handed to another process ({named_error(error)[:160]})")
        else:
            if why_not is not None:
                self._fail(why_not)
            with self._state:
                self._free = list(self._live)
                self._ready = not self._ended.is_set()
                self._asked = time.monotonic()
        finally:
            for each in theirs:
                each.close()
            if not self._ready:
                self._control.close()

    def _fail(self, why: str) -> None:
        self.why_not = why
        self.close()


def _unlike(one: Encoded, other: Encoded) -> str | None:
    """What of a row is other where another process reads it; None where it is the same to the bit."""
    shown = (type(one), one.inputs.keys(), one.cost, one.truncated)
    if shown != (type(other), other.inputs.keys(), other.cost, other.truncated):
        return "its preprocessing gives other inputs in another process"
    # One by one: pickles of more than one value depend on which of their parts are the same object.
    for name, value in one.inputs.items():
        if not same_message(value, other.inputs[name]):
            return f"its {name!r} is not the same in another process (the bytes, or how they lie in memory)"
    return None
