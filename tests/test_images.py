"""Every kind of image file against a reference computed with NumPy, or against transformers' own loader."""

import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageSequence
from transformers.image_utils import load_image

from hftl.data.images import MAX_PIXELS, decode_image
from hftl.errors import BadRowError

RNG = np.random.default_rng(3)
LEVELS = RNG.integers(0, 256, (12, 17), dtype=np.uint8)
COLOURS = RNG.integers(0, 256, (12, 17, 3), dtype=np.uint8)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(encoded: bytes) -> np.ndarray:
    image = decode_image(encoded, "row")
    assert image.mode == "RGB"
    return np.asarray(image)


def as_transformers_loads_it(encoded: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(load_image(Image.open(io.BytesIO(encoded))))


def grey(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels[..., None], 3, axis=-1)


def with_alpha(*channels: np.ndarray) -> np.ndarray:
    return np.dstack([*channels, RNG.integers(0, 256, LEVELS.shape, dtype=np.uint8)])


def palette_image(*, transparency: int | bytes | None) -> tuple[bytes, np.ndarray]:
    indices = RNG.integers(0, 16, (9, 11), dtype=np.uint8)
    palette = RNG.integers(0, 256, (16, 3), dtype=np.uint8)
    image = Image.frombytes("P", (11, 9), indices.tobytes())
    image.putpalette(palette.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    return encode(image, "PNG", **options), palette[indices]


def cases() -> dict[str, tuple[bytes, np.ndarray]]:
    """Encoded bytes and the RGB pixels that they must give."""
    bits = LEVELS > 127
    cmyk = RNG.integers(0, 256, (8, 8, 4), dtype=np.uint8)
    ink = 255 - cmyk.astype(int)
    return {
        "rgb png": (encode(Image.fromarray(COLOURS), "PNG"), COLOURS),
        "rgb webp": (encode(Image.fromarray(COLOURS), "WEBP", lossless=True), COLOURS),
        "grey png": (encode(Image.fromarray(LEVELS), "PNG"), grey(LEVELS)),
        "grey with transparent level": (encode(Image.fromarray(LEVELS), "PNG", transparency=7), grey(LEVELS)),
        "grey with alpha": (encode(Image.fromarray(with_alpha(LEVELS)), "PNG"), grey(LEVELS)),
        "rgba": (encode(Image.fromarray(with_alpha(COLOURS)), "PNG"), COLOURS),
        "1 bit": (encode(Image.fromarray(bits), "PNG"), grey(np.where(bits, 255, 0).astype(np.uint8))),
        "palette": palette_image(transparency=None),
        "palette, one transparent colour": palette_image(transparency=3),
        "palette, alpha for each colour": palette_image(transparency=bytes(range(0, 256, 16))),
        # Naive CMYK, as Pillow and so transformers have it: (255 - ink) * (255 - black) / 255.
        "cmyk tiff": (
            encode(Image.frombytes("CMYK", (8, 8), cmyk.tobytes()), "TIFF"),
            np.rint(ink[..., :3] * ink[..., 3:] / 255).astype(np.uint8),
        ),
    }


CASES = cases()


@pytest.mark.parametrize("case", CASES)
def test_eight_bit_images_have_the_right_pixels_and_those_of_transformers(case: str) -> None:
    encoded, expected = CASES[case]
    decoded = decode(encoded)
    # 1 level of rounding for CMYK, nothing for the rest.
    assert np.abs(decoded.astype(int) - expected).max() <= ("cmyk" in case)
    assert np.array_equal(decoded, as_transformers_loads_it(encoded))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_are_what_transformers_loads(mode: str) -> None:
    encoded = encode(Image.fromarray(COLOURS).resize((64, 48)).convert(mode), "JPEG", quality=90)
    assert np.array_equal(decode(encoded), as_transformers_loads_it(encoded))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    deep = RNG.integers(0, 65536, (20, 30)).astype(np.uint16)
    deep[0, :4] = [0, 255, 256, 65535]
    expected = grey(np.rint(deep / 65535 * 255).astype(np.uint8))
    assert np.array_equal(decode(encode(Image.fromarray(deep), kind)), expected)


def test_big_endian_sixteen_bits() -> None:
    deep = RNG.integers(0, 65536, (5, 6)).astype(np.uint16)
    image = Image.frombytes("I;16B", (6, 5), deep.astype(">u2").tobytes())
    assert np.array_equal(decode(encode(image, "TIFF")), grey(np.rint(deep / 257).astype(np.uint8)))


@pytest.mark.parametrize(
    ("levels", "top"), [([0, 7, 255], 255), ([0, 256, 65535], 65535), ([0, 70000, 2**31 - 1], 2**31 - 1)]
)
def test_thirty_two_bit_integers_take_the_smallest_range_that_holds_them(levels: list[int], top: int) -> None:
    image = Image.fromarray(np.array([levels, [-5, 0, 1]], dtype=np.int32))
    expected = np.rint(np.clip([levels, [-5, 0, 1]], 0, None) * 255 / top).astype(np.uint8)
    assert np.array_equal(decode(encode(image, "TIFF")), grey(expected))


@pytest.mark.parametrize(("top", "values"), [(1, [0, 0.5, 1]), (255, [0, 100.4, 255]), (65535, [0, 300, 65535])])
def test_float_images(top: float, values: list[float]) -> None:
    encoded = encode(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")
    assert np.array_equal(decode(encoded), grey(np.rint(np.array([values]) * 255 / top).astype(np.uint8)))


def test_float_image_with_nan_is_a_bad_row() -> None:
    encoded = encode(Image.fromarray(np.array([[0, np.nan]], dtype=np.float32)), "TIFF")
    with pytest.raises(BadRowError, match=r"^scan\.tif: .*NaN"):
        decode_image(encoded, "scan.tif")


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = encode(Image.fromarray(COLOURS), kind, **({"lossless": True} if kind == "WEBP" else {}))
    stored = np.asarray(Image.open(io.BytesIO(plain)).convert("RGB"))
    encoded = encode(Image.fromarray(COLOURS), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(decode(encoded), TURNS[orientation](stored))
    assert np.array_equal(decode(encoded), as_transformers_loads_it(encoded))


def test_damaged_exif_leaves_the_image_as_it_is() -> None:
    encoded = encode(Image.fromarray(COLOURS), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffrubbish")
    assert np.array_equal(decode(encoded), COLOURS)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_counts(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    encoded = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert len(list(ImageSequence.Iterator(Image.open(io.BytesIO(encoded))))) == 3
    assert (decode(encoded) == [255, 0, 0]).all()


def header_only_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [int(MAX_PIXELS**0.5) + 1, 60_000])
def test_a_decompression_bomb_is_refused_from_its_header(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("pixels were decoded"))
    with pytest.raises(BadRowError, match=r"^a/b\.png: .*decompression bomb") as caught:
        decode_image(header_only_png(side, side), "a/b.png")
    assert caught.value.row == "a/b.png"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.05])
def test_cut_files_are_bad_rows(kind: str, share: float) -> None:
    encoded = encode(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    with pytest.raises(BadRowError, match=r"^cut\.img: \S") as caught:
        decode_image(encoded[: int(len(encoded) * share)], "cut.img")
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize(
    ("garbage", "why"), [(b"", "empty"), (b"\0" * 100, "not an image"), (b"<html>404</html>", "not an image")]
)
def test_what_is_no_image_is_a_bad_row(garbage: bytes, why: str) -> None:
    with pytest.raises(BadRowError, match=f"^x.jpg: .*{why}"):
        decode_image(garbage, "x.jpg")


def test_any_damage_ends_in_an_image_or_a_bad_row() -> None:
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF"):
        whole = encode(Image.fromarray(COLOURS), kind)
        for _ in range(150):
            damaged = bytearray(whole)
            for at in RNG.integers(0, len(whole), 3):
                damaged[at] = RNG.integers(0, 256)
            try:
                assert decode_image(bytes(damaged), "d").mode == "RGB"
            except BadRowError as error:
                assert "\n" not in str(error)  # noqa: PT017


def test_threads_decode_side_by_side_and_leave_the_warning_filters_alone() -> None:
    encoded = palette_image(transparency=bytes(16))[0]
    before = list(warnings.filters)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(100):
                decode_image(encoded, "p")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert warnings.filters == before
