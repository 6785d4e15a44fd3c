"""Texts on frozen MiniLM-L6, without a network.   hftl run minilm --data TRAIN_AND_TEST.csv"""

from hftl import Head, Recipe, recipe


@recipe
def minilm() -> Recipe:
    """Mean pooling, with which the encoder was trained; the export is a sentence-transformers model."""
    return Recipe(backbone="minilm-l6", data="mteb/banking77", method=Head(pooling="mean"))
