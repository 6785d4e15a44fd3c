"""Banking77's 77 intents on a frozen sentence encoder.   hftl run recipes/banking77.py"""

from hftl import Head, Recipe, recipe


@recipe
def banking77() -> Recipe:
    return Recipe(
        backbone="sentence-transformers/all-MiniLM-L6-v2",
        data="PolyAI/banking77",
        # The encoder was trained with mean pooling; the export is a sentence-transformers model that gives the logits.
        method=Head(pooling="mean"),
    )
