"""Heads: exact solutions on cached features. Plain matrices in, plain matrices out."""

from hftl.heads.linear import HeadFit, default_strengths, fit_linear

__all__ = ["HeadFit", "default_strengths", "fit_linear"]
