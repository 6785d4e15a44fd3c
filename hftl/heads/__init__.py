"""Heads: exact solutions on cached features. Plain matrices in, plain matrices out."""

from hftl.heads.head import HeadFit
from hftl.heads.linear import default_strengths, fit_linear

__all__ = ["HeadFit", "default_strengths", "fit_linear"]
