"""Data for a backbone, and a clear word where they are of a kind that it does not read."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any, Literal

from hftl.backbones.protocol import Backbone
from hftl.data import Data, Texts, load_data
from hftl.errors import DataError

PICTURES = frozenset({".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
SOUNDS = frozenset({".aac", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wav"})
# Rows whose text is looked at: enough to tell a column of paths from a sentence that ends in one.
LOOKED_AT = 50
PLURALS = {"text": "texts", "image": "pictures", "audio": "sounds"}


def data_for(backbone: Backbone, ref: Any, **options: Any) -> Data:
    """Load data as a backbone reads them.

    Args:
        backbone: which.
        ref: a data reference as of a recipe.
        options: of `hftl.data.load_data`.

    Raises:
        DataError: the data cannot be used; if it is because they are texts and the backbone reads pictures, or the
            other way round, that is what the message says.
    """
    try:
        data = load_data(ref, wants=backbone.wants, suffixes=backbone.suffixes, **options)
    except DataError as error:
        # Only now, because what is wrong is most often something else, and then reading twice says nothing.
        kind = _kind_if_other(backbone, ref, options)
        if kind is None:
            raise
        raise DataError(_mismatch(backbone, ref, kind)) from error
    if backbone.wants == "text" and options.get("input_columns") is None and (kind := _named_files(_texts(data))):
        columns = ",".join(data.identity.get("columns", {}).get("inputs", []))
        meant = f"; to read the paths as texts, say --input-columns {columns}" if columns else ""
        raise DataError(_mismatch(backbone, ref, kind) + meant)
    return data


def _kind_if_other(backbone: Backbone, ref: Any, options: dict[str, Any]) -> str | None:
    """What the data are, if they can be read as what the backbone does not want; None where that is not sure."""
    wants: Literal["text", "file"] = "text" if backbone.wants == "file" else "file"
    try:
        data = load_data(ref, wants=wants, suffixes=PICTURES | SOUNDS if wants == "file" else (), **options)
    except Exception:  # it was an attempt; the first error is the one to tell
        return None
    if wants == "file":
        return _kind_of(data.train.inputs.name(0))
    texts = _texts(data)
    # Paths to files that are not there, or numbers of rows, can be read as texts too.
    sentences = sum(" " in text.strip() for text in texts) > len(texts) / 2
    return "texts" if sentences and _named_files(texts) is None else None


def _texts(data: Data) -> list[str]:
    """The first texts; none of pairs."""
    inputs = data.train.inputs
    rows = [inputs[i] for i in range(min(len(data.train), LOOKED_AT))] if isinstance(inputs, Texts) else []
    return [row[0] for row in rows if len(row) == 1]


def _named_files(texts: list[str]) -> str | None:
    """What the files are that every text seems to be the path of; None where texts are texts."""
    endings = {PurePath(text.strip()).suffix.lower() for text in texts}
    return _kind_of(texts[0].strip()) if texts and endings <= PICTURES | SOUNDS else None


def _kind_of(name: str) -> str:
    return "sounds" if PurePath(name).suffix.lower() in SOUNDS else "pictures"


def _mismatch(backbone: Backbone, ref: Any, kind: str) -> str:
    where = f"{ref}: " if isinstance(ref, str) else ""
    reads = PLURALS.get(backbone.modality, backbone.modality)
    modality = next(name for name, plural in PLURALS.items() if plural == kind)
    return (
        f"{where}{backbone.name} reads {reads}; these are {kind}: take a backbone that reads them "
        f"(`hftl backbones --modality {modality}` lists some)"
    )
