"""Heads on cached features: plain matrices in, plain matrices out.

``fit_linear`` solves a linear head exactly and ``cross_validate`` asks such heads about rows that they have not seen;
``fit_native`` trains a head that the caller gives as a function, and ``fit_mlp`` one such head; ``baselines`` and
``neighbour_scores`` cost nothing.
"""

from hftl.heads.baselines import baselines, lexicon, neighbour_scores
from hftl.heads.cross_validation import cross_validate
from hftl.heads.fit import HeadFit, HeldOutLogits
from hftl.heads.judging import Judge
from hftl.heads.linear import fit_linear, fit_linear_folds
from hftl.heads.mlp import fit_mlp, mlp_logits
from hftl.heads.native import NativeFit, fit_native

__all__ = [
    "HeadFit",
    "HeldOutLogits",
    "Judge",
    "NativeFit",
    "baselines",
    "cross_validate",
    "fit_linear",
    "fit_linear_folds",
    "fit_mlp",
    "fit_native",
    "lexicon",
    "mlp_logits",
    "neighbour_scores",
]
