"""Handwritten digits on a small ViT that ships with hftl; no network.   hftl run recipes/digits.py"""

from hftl import Head, Recipe, recipe


@recipe
def digits() -> Recipe:
    return Recipe(backbone="hftl/glyph-vit-tiny", data="sample:digits", method=Head())
