"""Diseases of bean leaves on a frozen DINOv2 ViT-S/14.   hftl run recipes/dinov2_beans.py"""

from hftl import Head, Recipe, recipe


@recipe
def dinov2_beans() -> Recipe:
    """1,295 photographs taken in Ugandan fields: healthy, bean rust, angular leaf spot."""
    return Recipe(backbone="facebook/dinov2-small", data="AI-Lab-Makerere/beans", method=Head())
