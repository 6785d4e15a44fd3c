"""The process of a command: ``hftl``, ``python -m hftl`` and ``accelerate launch -m hftl``."""

import gc

from hftl.cli import main
from hftl.cli.startup import put_off_collection, read_models_once


def command() -> None:
    """Run the command line in a process of its own."""
    put_off_collection()
    read_models_once()
    try:
        main()
    finally:
        # What is left dies with the process; Python would look through all of it first.
        gc.freeze()


if __name__ == "__main__":
    command()
