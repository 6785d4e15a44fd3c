"""Heads on cached features: plain matrices in, plain matrices out.

``fit_linear`` solves a linear head exactly; ``fit_native`` trains a head that the caller gives as a function, and
``fit_mlp`` one such head; ``baselines`` costs nothing.
"""

from hftl.heads.baselines import baselines
from hftl.heads.fit import HeadFit
from hftl.heads.linear import fit_linear
from hftl.heads.mlp import fit_mlp, mlp_logits
from hftl.heads.native import NativeFit, fit_native

__all__ = [
    "HeadFit",
    "NativeFit",
    "baselines",
    "fit_linear",
    "fit_mlp",
    "fit_native",
    "mlp_logits",
]
