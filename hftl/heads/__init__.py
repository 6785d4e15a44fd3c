"""Heads on cached features: plain matrices in, plain matrices out.

``fit_linear`` solves a linear head exactly; ``fit_native`` trains a head that the caller gives as a function;
``fit_mlp`` and ``fit_attentive`` are two such heads; ``baselines`` costs nothing.
"""

from hftl.heads.baselines import baselines
from hftl.heads.fit import HeadFit
from hftl.heads.linear import fit_linear
from hftl.heads.modules import attentive_logits, fit_attentive, fit_mlp, mlp_logits
from hftl.heads.native import NativeFit, fit_native

__all__ = [
    "HeadFit",
    "NativeFit",
    "attentive_logits",
    "baselines",
    "fit_attentive",
    "fit_linear",
    "fit_mlp",
    "fit_native",
    "mlp_logits",
]
