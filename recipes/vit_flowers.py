"""Oxford Flowers-102 on a frozen ViT-B/16.   hftl run recipes/vit_flowers.py"""

from hftl import Head, Recipe, recipe


@recipe
def vit_flowers() -> Recipe:
    """8,189 photographs of 102 kinds of flowers."""
    return Recipe(backbone="google/vit-base-patch16-224-in21k", data="nelorth/oxford-flowers", method=Head())
