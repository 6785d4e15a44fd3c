"""The processes that decode: one clean interpreter that imports what a backbone needs, and what it forks.

A fork of the process that trains would inherit the locks of its threads and the state of its GPU, and `multiprocessing`
would run the user's script again in every process. This interpreter has neither, and its processes share what it
imported: sixteen of them start as fast as one, and take hardly more memory.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import warnings
from contextlib import suppress
from pathlib import Path

import torch

from hftl.backbones.protocol import Backbone, Encoded
from hftl.decoding.request import Request, Unread, encoded_rows
from hftl.decoding.wire import receive_message, send_message
from hftl.lifetime import SECONDS_BETWEEN_LOOKS, end_with_parent
from hftl.wording import named_error

# Where memory is short, the system is to end a process that decodes, whose work is done elsewhere, not the run.
FIRST_TO_END = "500"
# Warnings that Python does not show a person.
UNSEEN: list[type[Warning]] = [DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning]


def serve(control: int, workers: list[int], parent: int) -> None:
    """Read a backbone and one row, say how that row is read here, and fork processes that read others.

    Args:
        control: socket on which backbone and row come; when it closes, all ends.
        workers: one socket for each process.
        parent: who started this.
    """
    channel = socket.socket(fileno=control)
    sockets = [socket.socket(fileno=number) for number in workers]
    torch.set_num_threads(1)
    try:
        # The row also brings in what the backbone imports late, before there are processes that would each do it.
        backbone, sample = receive_message(channel)
        answer = encoded_rows(backbone, sample)
    except EOFError:
        return
    except Exception as error:  # classes that are not here, or settings that a plugin made only there
        send_message(channel, f"its preprocessing does not work in another process ({named_error(error)[:160]})")
        return
    if (threads := len(list(Path("/proc/self/task").iterdir()))) > 1:
        send_message(channel, f"its preprocessing starts threads ({threads - 1}), after which no process can be forked")
        return
    # Objects that are never looked at again stay in memory that all processes share.
    gc.collect()
    gc.freeze()
    # The kernel forgets processes that end; whose socket closes is known to have ended.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    server = os.getpid()
    for own in sockets:
        if os.fork() == 0:
            for other in (channel, *sockets):
                if other is not own:
                    other.close()
            _work(own, backbone, server)
    for each in sockets:
        each.close()
    send_message(channel, answer)
    while not select.select([channel], [], [], SECONDS_BETWEEN_LOOKS)[0] and os.getppid() == parent:
        pass


def _work(channel: socket.socket, backbone: Backbone, server: int) -> None:
    """Answer requests until nobody is there to ask."""
    try:
        end_with_parent()
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(FIRST_TO_END)
        while os.getppid() == server:
            send_message(channel, _answered(backbone, receive_message(channel)))
    finally:
        # Nothing of the server's is closed or written a second time.
        os._exit(0)


def _answered(backbone: Backbone, request: Request) -> list[Encoded] | Unread:
    """Rows as the model reads them; where anything is odd, the process that asks is to meet it itself."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for category in UNSEEN:
            warnings.simplefilter("ignore", category)
        try:
            rows = encoded_rows(backbone, request)
        except Exception:
            return Unread.REFUSED
    return Unread.WARNED if seen else rows
