"""Pictures: encoded bytes become an upright 8-bit RGB image, or a word on which row cannot be decoded.

For the ordinary 8-bit modes the result is what ``transformers.image_utils.load_image`` gives (EXIF transpose,
then ``convert("RGB")``), so that an exported model sees in ``transformers.pipeline`` the pixels it was
trained on. Deeper images are scaled to 8 bits, where Pillow's own conversion would clip everything above 255
to white.
"""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from hftl.errors import BadRowError
from hftl.wording import one_line

MAX_PIXELS = 89_478_485
"""Images with more pixels are refused before decoding: here Pillow begins to suspect a decompression bomb."""

# What PNG holds as it is; an image of mode I would be cut to 16 bits.
_IN_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_warnings_lock = threading.Lock()


def decode_image(encoded: bytes, name: str) -> Image.Image:
    """Decode one image file.

    Args:
        encoded: the file's bytes, in any format Pillow reads; of an animation the first frame is taken.
        name: the row's name for a person, used in the error.

    Returns:
        The upright image in mode RGB, 8 bits a channel.

    Raises:
        BadRowError: the bytes are no image, are cut or damaged, or hold more than ``MAX_PIXELS`` pixels.
    """
    return _decoded(encoded, name)


def is_image(value: object) -> bool:
    """Whether a value is a picture of Pillow."""
    return isinstance(value, Image.Image)


def encode_image(image: Image.Image) -> bytes:
    """A picture in memory as the bytes of a file, from which `decode_image` makes what it would of the original.

    PNG where that holds the mode without loss, else TIFF. Stored, not deflated, so that the bytes, by which features
    are kept, do not depend on Pillow's zlib. The orientation that its EXIF block states goes along.
    """
    buffer = io.BytesIO()
    exif = image.getexif()
    along: dict[str, Any] = {"exif": exif.tobytes()} if exif else {}
    if image.mode in _IN_PNG:
        image.save(buffer, format="PNG", compress_level=0, icc_profile=None, pnginfo=PngInfo(), **along)
    else:
        image.save(buffer, format="TIFF", compression="raw", **along)
    return buffer.getvalue()


def grey_thumbnail(encoded: bytes, name: str, side: int) -> np.ndarray:
    """What a picture looks like from afar: uint8 (side, side) grey levels, its whole area squeezed into a square.

    A JPEG is decoded at a smaller scale where that is enough, so that a large one costs little more than a small one.

    Args:
        encoded: the file's bytes.
        name: the row's name for a person, used in the error.
        side: pixels of the square.

    Raises:
        BadRowError: as for `decode_image`; or the picture has less than half as many pixels a side, which the square
            would only blow up.
    """
    image = _decoded(encoded, name, (2 * side, 2 * side))
    if min(image.size) < side // 2:
        raise BadRowError(name, f"a picture of {image.width} × {image.height} pixels is too small to be made smaller")
    return np.asarray(image.convert("L").resize((side, side), Image.Resampling.BOX))


def thumbnail(encoded: bytes, name: str, side: int) -> Image.Image:
    """A picture made to fit into a square of ``side`` pixels, in RGB; a smaller one stays as it is.

    Args:
        encoded: the file's bytes.
        name: the row's name for a person, used in the error.
        side: pixels of the square.

    Raises:
        BadRowError: as for `decode_image`.
    """
    image = _decoded(encoded, name, (side, side))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def _decoded(encoded: bytes, name: str, enough: tuple[int, int] | None = None) -> Image.Image:
    """Decode one file, a JPEG at the smallest scale that still has ``enough`` pixels where that is given."""
    try:
        image = _open(encoded)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise Image.DecompressionBombError
        if enough:
            image.draft("RGB", enough)
        image.load()
        return _to_rgb(_upright(image))
    except Image.DecompressionBombError:
        why = f"the image has more than {MAX_PIXELS:,} pixels and may be a decompression bomb; make it smaller"
    except UnidentifiedImageError:
        why = "not an image that Pillow can read" if encoded else "the file is empty"
    except Exception as error:  # a damaged file makes Pillow's readers raise nearly anything
        why = f"the image cannot be decoded: {one_line(error)}"
    raise BadRowError(name, why)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Pillow's warnings about oddities of a file's header.

    ``catch_warnings`` swaps state of the whole process, so threads take turns. Only the header is read in
    here: the pixels are decoded outside, in parallel.
    """
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(encoded: bytes) -> Image.Image:
    with _quiet():
        return Image.open(io.BytesIO(encoded))


def _upright(image: Image.Image) -> Image.Image:
    try:
        with _quiet():
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged EXIF block says nothing about the orientation, and the pixels are whole
        return image
    method = _TRANSPOSE.get(orientation)
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_to_8_bit(np.asarray(image), image.mode)).convert("RGB")
    # The pixels do not depend on it, and Pillow would warn about transparency that RGB cannot express.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _to_8_bit(pixels: np.ndarray, mode: str) -> np.ndarray:
    """Scale grey levels to 0..255, so that a range's top is white.

    ``I;16`` spans 16 bits by definition. ``I`` and ``F`` have no nominal top: the smallest usual range that
    holds the image is taken (8, 16 or 31 bits; for floats also 0..1), so 8-bit levels stored in ``I`` stay as
    they are.
    """
    if not np.isfinite(pixels).all():
        raise ValueError("it holds NaN or infinite pixels")
    levels = pixels.astype(np.float64)
    if mode.startswith("I;16"):
        top = 65535.0
    else:
        highest = max(float(levels.max()), 0.0)
        tops = [255.0, 65535.0, 2.0**31 - 1]
        top = next((t for t in ([1.0] if mode == "F" else []) + tops if highest <= t), highest)
    return np.rint(levels.clip(0, top) * (255.0 / top)).astype(np.uint8)
