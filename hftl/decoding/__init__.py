"""Encoded files become rows that a model reads: in threads, and where that keeps up, in processes of their own."""

from hftl.decoding.decoder import Decoder, decoder_of
from hftl.decoding.request import Change

__all__ = ["Change", "Decoder", "decoder_of"]
