"""A start that leaves out what libraries do for nothing: collecting garbage, and reading their own sources twice."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

OBJECTS_OF_LIBRARIES = 400_000
MODELS, PREFIX = "transformers.models", "models."


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


def read_models_once() -> None:
    """Let transformers find the classes of its models once.

    It reads the 1,600 files of its models to list their classes when it is imported, and again, to the same end, when
    its package of models is; half a second of CPU time each. The second list is made of the first.
    """
    sys.meta_path.insert(0, _ModelsFinder())


class _ModelsFinder(MetaPathFinder):
    """Finds the package of transformers' models, once."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != MODELS:
            return None
        sys.meta_path.remove(self)
        found = PathFinder.find_spec(name, path, target)
        if found and found.loader:
            found.loader = _ModelsLoader(found.loader)
        return found


class _ModelsLoader(Loader):
    """Loads that package as its own code does, which is run where this transformers has no such list."""

    def __init__(self, usual: Loader) -> None:
        self.usual = usual

    def exec_module(self, module: ModuleType) -> None:
        file = str(module.__file__)
        try:
            from transformers.utils.import_utils import _LazyModule, define_import_structure

            # It keeps what it found when it was imported, by these arguments.
            found = define_import_structure(Path(file).parent, prefix=PREFIX[:-1])
        except (ImportError, TypeError):
            self.usual.exec_module(module)
            return
        structure = {
            needs: {name.removeprefix(PREFIX): classes for name, classes in modules.items() if name.startswith(PREFIX)}
            for needs, modules in found.items()
        }
        sys.modules[MODELS] = _LazyModule(MODELS, file, structure, module_spec=module.__spec__)
