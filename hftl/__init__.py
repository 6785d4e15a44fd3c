"""Transfer learning with Hugging Face models on features that are computed once."""

__version__ = "0.1.0"
