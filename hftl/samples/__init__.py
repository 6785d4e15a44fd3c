"""The embedded default: small data and weights that ship in the wheel, so that the main job runs with no network.

``path("glyph-vit-tiny")`` is a standard transformers folder; ``DATASETS`` maps the NAME of a data reference
``sample:NAME`` to a function that returns its splits.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hftl.errors import BackboneError

SPLIT_SEED = 0


class SampleRow(NamedTuple):
    """One labelled image of a sample data set.

    Attributes:
        name: a stable name for a person, such as ``digits/0042``.
        encoded: the bytes of an image file (PNG).
        label: the class as a string.
    """

    name: str
    encoded: bytes
    label: str


def path(name: str) -> Path:
    """Return the folder of a model that ships with hftl.

    Raises:
        BackboneError: nothing with this name ships with hftl.
    """
    folder = Path(__file__).parent / name
    if not (folder / "config.json").is_file():
        shipped = ", ".join(sorted(file.parent.name for file in Path(__file__).parent.glob("*/config.json")))
        raise BackboneError(f"no model {name!r} ships with hftl; these do: {shipped}")
    return folder


def digits() -> dict[str, list[SampleRow]]:
    """Return scikit-learn's 1,797 handwritten digits (UCI Optdigits, 13 writers) as 8x8 grey PNG files.

    Grey levels 0..16 are scaled to 0..255. The split is stratified and fixed, whatever the seed of a run: of every
    class a third, drawn with ``SPLIT_SEED``, is the split ``test``. Rows keep the order of ``load_digits``.

    Returns:
        Splits ``train`` and ``test``, labels ``"0"`` to ``"9"``. The bytes are the same on every call.
    """
    import numpy as np
    from sklearn.datasets import load_digits

    data = load_digits()
    # RandomState, because its stream is frozen by NumPy's compatibility policy: no upgrade moves a row between splits.
    rng = np.random.RandomState(SPLIT_SEED)
    in_test = np.zeros(len(data.target), dtype=bool)
    for label in range(10):
        (rows,) = np.nonzero(data.target == label)
        in_test[rng.permutation(rows)[: round(len(rows) / 3)]] = True

    splits: dict[str, list[SampleRow]] = {"train": [], "test": []}
    grey = np.rint(data.images * (255 / 16)).astype(np.uint8)
    for row, (image, label) in enumerate(zip(grey, data.target, strict=True)):
        split = "test" if in_test[row] else "train"
        splits[split].append(SampleRow(f"digits/{row:04d}", _png(image.tobytes(), (8, 8)), str(label)))
    return splits


def _png(grey: bytes, size: tuple[int, int]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    # Stored, not deflated: deflated bytes would depend on Pillow's zlib, and features are kept by their image's bytes.
    Image.frombytes("L", size, grey).save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue()


DATASETS: dict[str, Callable[[], dict[str, list[SampleRow]]]] = {"digits": digits}
