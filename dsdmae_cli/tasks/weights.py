"""Weights of classes that are not equally frequent."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def balanced(labels: Int64[Tensor, " n"], num_classes: int) -> Float[Tensor, " c"]:
    """n / (k n_c) for a class of n_c of the n images, k the number of classes that occur; 0 for one that does not.

    Their mean over the images is one, so that rates and penalties mean what they mean without weights. It is the
    formula that scikit-learn calls class_weight="balanced" (King & Zeng 2001).

    Args:
        labels: 0..num_classes-1.

    Returns:
        In float64, where the labels are.
    """
    return balanced_by_counts(torch.bincount(labels, minlength=num_classes))


def balanced_by_counts(counts: Int64[Tensor, " c"]) -> Float[Tensor, " c"]:
    """`balanced` of labels that were counted: n_c by class."""
    found = counts.double()
    weights = found.sum() / ((found > 0).sum() * found)
    return torch.where(found > 0, weights, 0.0)
