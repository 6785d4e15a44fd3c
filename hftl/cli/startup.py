"""Start without collecting garbage: torch and transformers make 400,000 objects that live as long as the process."""

from __future__ import annotations

import gc
from typing import Any

OBJECTS_OF_LIBRARIES = 400_000


def put_off_collection() -> None:
    """Let the first objects of this process be made without a collection, and never be looked through again.

    Python collects after every 700 objects, a thousand times until a model can be asked, and once more when the
    process ends, and finds next to nothing: a third of the time of a command that answers one question. From the
    first collection on all is as Python has it, but for the libraries' objects, which are frozen.
    """
    usual = gc.get_threshold()

    def as_usual(_phase: str, _info: dict[str, Any]) -> None:
        gc.callbacks.remove(as_usual)
        gc.freeze()
        gc.set_threshold(*usual)

    gc.callbacks.append(as_usual)
    gc.set_threshold(OBJECTS_OF_LIBRARIES, *usual[1:])
