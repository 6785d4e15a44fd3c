"""Encoded sounds as samples: PCM wave files, one channel, at the rate that a model wants."""

from __future__ import annotations

import io
import math
import wave

import numpy as np
from scipy.signal import resample_poly

import hftl

VERSION = 1  # of what this file makes of a sound; part of a feature's identity


def read_wave(encoded: bytes, name: str, rate: int) -> np.ndarray:
    """Decode a sound.

    Args:
        encoded: a wave file of 8, 16, 24 or 32 bit PCM.
        name: the row's name for a person.
        rate: samples a second wanted.

    Returns:
        float32 (samples,) in [-1, 1], channels averaged.

    Raises:
        BadRowError: it is no such file, is cut short, or holds no sound.
    """
    try:
        with wave.open(io.BytesIO(encoded)) as file:
            channels, width, own_rate, frames = file.getparams()[:4]
            raw = file.readframes(frames)
    except (wave.Error, EOFError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split()) or "it ends too early"
        raise hftl.BadRowError(name, f"no PCM wave file ({why}); convert it to 16 bit PCM .wav") from error
    if len(raw) < frames * channels * width:
        raise hftl.BadRowError(name, "the file is cut short; copy it again")
    if not frames:
        raise hftl.BadRowError(name, "it holds no sound")
    samples = _as_float(raw, width).reshape(-1, channels).mean(1)
    if own_rate != rate:
        common = math.gcd(own_rate, rate)
        samples = resample_poly(samples, rate // common, own_rate // common)
    return samples.astype(np.float32)


def _as_float(raw: bytes, width: int) -> np.ndarray:
    if width == 1:  # the only unsigned one
        return (np.frombuffer(raw, np.uint8).astype(np.float64) - 128) / 128
    if width == 3:
        # Each sample becomes the upper three bytes of an int32.
        padded = np.zeros((len(raw) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        return padded.view("<i4")[:, 0].astype(np.float64) / 2**31
    return np.frombuffer(raw, f"<i{width}").astype(np.float64) / 2.0 ** (8 * width - 1)
