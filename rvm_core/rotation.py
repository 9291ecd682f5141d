"""Projection of matrices on the rotations of space."""

from __future__ import annotations

import torch
from torch import Tensor


def project_to_rotation(matrices: Tensor) -> Tensor:
    """The nearest rotation, in the Frobenius norm, to each matrix: (..., 3, 3) -> (..., 3, 3), determinant +1.

    Orthogonal Procrustes by singular values, with the least of them turned where the nearest orthogonal matrix would be
    a reflection (Levinson et al. 2020, arXiv 2006.14616). Differentiable where the singular values differ.
    """
    u, _, vh = torch.linalg.svd(matrices)
    sign = torch.linalg.det(u @ vh)
    ones = torch.ones_like(sign)
    return (u * torch.stack((ones, ones, sign), dim=-1).unsqueeze(-2)) @ vh
