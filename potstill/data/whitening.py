"""ZCA whitening, in three kinds that the field has; sets in one are of no use in the others."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from potstill.config.options import option
from potstill.data.preprocessing import Means, Preprocess, standardisation
from potstill.data.statistics import SMALLEST_NORM, centred
from potstill.errors import InputError, let_memory_pass

LARGE, BLOCK, STRIP = 4096, 2048, 256
"""Numbers of an example from which the Gram matrix has its root without eigenvectors; size of the
blocks in which it is computed then, and of those in which inverses are added up.
"""
BELOW_HALF, FINE, POWERS = 3e-5, 1e-7, 30
"""Relative error of that root where it is rounded to half precision (5e-4), and where it is not;
steps of the power method.
"""
HALF_FROM = 0.01
"""Regularisation of ZCA from which its matrix has half precision; with less, values span more."""


class Zca(Preprocess):
    """ZCA whitening: the tensor "matrix" (D, D), symmetric.

    Images are each centred and scaled to norm 1 before. Of vectors, whose features have units of
    their own so that an example's mean says nothing, each feature is standardised before, by the
    tensors "mean" and "std" (d,).

    Source: for images, paper D.1, as its released code does it: each image less its own mean and
        divided by its own norm, C = X'X / n, W = V diag(1 / sqrt(E + regularization * mean(E))) V'.
        No mean over images is removed. For vectors, ZCA-cor of Kessy, Lewin & Strimmer 2018,
        arXiv:1512.00809: z = W diag(1 / std) (x - mean) with W = P^(-1/2) and P the features'
        correlations; with the same regularisation, P = V diag(E) V' and W as above. It is the
        whitening whose features stay nearest to the standardised ones, and it does not depend on
        units.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of ZCA whitening."""

        zca_regularization: float = option(
            0.1,
            "ZCA: this times the mean eigenvalue is added to all",
            source="paper D.1",
            low=0,
            open_low=True,
        )

    words = MappingProxyType(
        {
            "image": "ZCA whitening: neighbouring pixels decorrelated",
            "vector": "each feature standardised, then ZCA whitening: features decorrelated",
        }
    )

    @classmethod
    def statistics(cls, images: Tensor) -> dict[str, Tensor]:
        if images.ndim == 4:
            rows = centred(images)
            return {"gram": gram_of(rows)}
        return {
            "mean": images.mean(0),
            "square": images.square().mean(0),
            "gram": gram_of(images),
        }

    @classmethod
    def solve(cls, means: Means, options: Any) -> dict[str, Tensor]:
        if "typical" in means:
            if means["typical"][1] < SMALLEST_NORM:
                raise InputError(
                    "preprocess zca needs train images that are not constant, found none; give "
                    "--preprocess none"
                )
            return {"matrix": whitening(means["gram"], options.zca_regularization)}
        scales = standardisation(means)
        mean, std = scales["mean"], scales["std"]
        correlation = (means["gram"] - torch.outer(mean, mean)) / torch.outer(std, std)
        if correlation.trace() < SMALLEST_NORM:
            raise InputError(
                "preprocess zca needs a feature that is not constant, found none; give "
                "--preprocess none"
            )
        return {**scales, "matrix": whitening(correlation, options.zca_regularization)}

    def __call__(self, images: Tensor) -> Tensor:
        if images.ndim == 4:
            return (centred(images) @ self.tensors["matrix"]).view_as(images)
        return ((images - self.tensors["mean"]) / self.tensors["std"]) @ self.tensors["matrix"]

    def inverse(self, images: Tensor) -> Tensor:
        """Undo the whitening: exact for vectors.

        Each image's own mean and norm are lost, so the result is centred images of norm 1.
        """
        plain = (images.flatten(1) @ self.unwhiten.to(images)).view_as(images)
        return plain if images.ndim == 4 else plain * self.tensors["std"] + self.tensors["mean"]

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a file keeps, on the CPU.

        Of the matrix it is the upper triangle, in half precision where nothing is lost by that.
        """
        kept = super().state()
        side = len(kept["matrix"])
        rows, columns = torch.triu_indices(side, side)
        triangle = kept["matrix"][rows, columns]
        half = triangle.half()
        return {**kept, "matrix": half if torch.equal(half.float(), triangle) else triangle}

    @classmethod
    def from_state(cls, kept: Mapping[str, Tensor]) -> Self:
        packed = kept["matrix"].float()
        side = math.isqrt(2 * len(packed))
        rows, columns = torch.triu_indices(side, side)
        matrix = packed.new_empty(side, side)
        matrix[rows, columns] = packed
        matrix[columns, rows] = packed
        return cls({**kept, "matrix": matrix})

    @cached_property
    def unwhiten(self) -> Tensor:
        """The inverse of the matrix, derived and not stored."""
        try:
            inverse: Tensor = torch.linalg.inv(self.tensors["matrix"].cpu().double())
        except RuntimeError as error:  # torch.linalg.LinAlgError
            let_memory_pass(error)
            raise InputError(
                "the whitening matrix has no inverse, so that nothing can be shown; the file that "
                "holds it is damaged"
            ) from error
        return inverse.float()


class ZcaOfMtt(Zca):
    """The other ZCA whitening of the field, of MTT, TESLA, FTD and HaBa: pixels less their mean.

    The mean image is subtracted, and nothing is done to each image before. Sets distilled in the
    one whitening are of no use in the other. Its tensors are "mean" (C, H, W) and "matrix".

    Source: the whitening of kornia, with its constant, in github.com/GeorgeCazenavette/
        mtt-distillation: W = U diag(1 / sqrt(S + 0.1)) U' with S the eigenvalues of the covariance
        of pixels in [0, 1]. (It divides by N - 1 images, this by N.)
    """

    kinds = ("image",)

    @dataclass(frozen=True)
    class Options:
        """Options of this whitening."""

        zca_constant: float = option(
            0.1, "zca-mtt: added to every eigenvalue", low=0, open_low=True, source="MTT's code"
        )

    words = MappingProxyType(
        {"image": "ZCA whitening as in MTT: less the mean image, neighbouring pixels decorrelated"}
    )

    @classmethod
    def statistics(cls, images: Tensor) -> dict[str, Tensor]:
        rows = images.flatten(1)
        return {"mean": images.mean(0), "gram": gram_of(rows)}

    @classmethod
    def solve(cls, means: Means, options: Any) -> dict[str, Tensor]:
        flat = means["mean"].flatten()
        covariance = means["gram"] - torch.outer(flat, flat)
        return {
            "mean": means["mean"],
            "matrix": whitening(covariance, constant=options.zca_constant),
        }

    def __call__(self, images: Tensor) -> Tensor:
        less = (images - self.tensors["mean"]).flatten(1)
        return (less @ self.tensors["matrix"]).view_as(images)

    def inverse(self, images: Tensor) -> Tensor:
        """Undo the whitening, exactly."""
        plain = (images.flatten(1) @ self.unwhiten.to(images)).view_as(images)
        return plain + self.tensors["mean"]


class ZcaOfFrepo(Zca):
    """The third ZCA whitening of the field, of FRePo and RCIG: standardised by channel first.

    Its tensors are "mean" (C, H, W), "std" (C, 1, 1) and "matrix".

    Source: the code of Zhou, Nezhadarya & Ba 2022, arXiv:2206.00719: each channel standardised,
        less the mean image, W = U diag(1 / sqrt(S + 0.1 mean(S))) U' with S the eigenvalues of the
        covariance. (There its constants of channels are fixed, and with fewer images than values
        the eigenvalues beyond are set to 1; here neither.)
    """

    kinds = ("image",)
    words = MappingProxyType(
        {"image": "ZCA whitening as in FRePo: channels standardised, less the mean image"}
    )

    @classmethod
    def statistics(cls, images: Tensor) -> dict[str, Tensor]:
        return {
            "mean": images.mean(0),
            "square": images.square().mean((0, 2, 3)),
            "gram": gram_of(images.flatten(1)),
        }

    @classmethod
    def solve(cls, means: Means, options: Any) -> dict[str, Tensor]:
        mean = means["mean"]
        variance = means["square"] - mean.mean((1, 2)).square()
        if float(variance.max()) < SMALLEST_NORM:
            raise InputError(
                "preprocess zca-frepo needs train images that are not constant, found none; give "
                "--preprocess none"
            )
        std = variance.clamp_min(SMALLEST_NORM).sqrt()[:, None, None]
        flat, scale = mean.flatten(), std.expand_as(mean).flatten()
        covariance = (means["gram"] - torch.outer(flat, flat)) / torch.outer(scale, scale)
        matrix = whitening(covariance, options.zca_regularization)
        return {"mean": mean, "std": std, "matrix": matrix}

    def __call__(self, images: Tensor) -> Tensor:
        standard = (images - self.tensors["mean"]) / self.tensors["std"]
        return (standard.flatten(1) @ self.tensors["matrix"]).view_as(images)

    def inverse(self, images: Tensor) -> Tensor:
        """Undo the whitening, exactly."""
        return super().inverse(images) * self.tensors["std"] + self.tensors["mean"]


def whitening(gram: Tensor, regularization: float = 0.0, constant: float = 0.0) -> Tensor:
    """Return V diag(1 / sqrt(E + regularization * mean(E) + constant)) V', of V diag(E) V' = gram.

    From a regularisation of `HALF_FROM` on it is rounded to half precision, in which a file keeps
    it: so the file is exact at half the size. What that costs in accuracy is in
    benchmarks/results/half_precision.json: nothing that ten networks show.
    """
    side = len(gram)
    added = regularization * float(gram.trace()) / side + constant
    half = max(regularization, constant) >= HALF_FROM
    if side > LARGE and added > 0:
        matrix = inverse_root(gram, added, error=BELOW_HALF if half else FINE)
    else:
        values, vectors = torch.linalg.eigh(gram.double())
        matrix = (vectors * (values.clamp_min(0) + added).rsqrt()) @ vectors.T
        matrix = (matrix + matrix.T) / 2  # symmetric to the last bit: a file keeps one triangle
    return matrix.half().to(matrix.dtype) if half else matrix


def inverse_root(gram: Tensor, added: float, error: float = BELOW_HALF) -> Tensor:
    """Return (gram + added I)^(-1/2) as a sum of inverses, which Cholesky's factors give.

    A large matrix has its eigenvectors in many times as long, and they take twice the memory. Here
    there are three matrices at a time, two of them in float32.

    Args:
        gram: (D, D), symmetric, no eigenvalue below 0.
        added: above 0.
        error: about the largest of an entry, relative to the largest entry.
    Source: Hale, Higham & Trefethen 2008, "Computing A^alpha, log(A), and related matrix functions
        by contour integrals", SIAM J. Numer. Anal. 46(5), their third method for the square root:
        A^(-1/2) = 2 K' sqrt(m) / (pi N) sum_j dn_j / cn_j^2 (A + m (sn_j / cn_j)^2 I)^(-1), with
        Jacobi's functions at (j - 1/2) K' / N, parameter 1 - m / M; A's eigenvalues are in [m, M].
    """
    # Here: importing them takes a tenth of a second each.
    from scipy.linalg.lapack import dpotrf, dpotri
    from scipy.special import ellipj, ellipkm1

    least, most = added, added + greatest_eigenvalue(gram)
    terms = math.ceil((math.log(most / least) + 3) * -math.log(error) / (2 * math.pi**2))
    complement = float(ellipkm1(least / most))  # K of the parameter 1 - m / M
    points = (np.arange(terms) + 0.5) * complement / terms
    sn, cn, dn, _ = ellipj(points, 1 - least / most)
    weights = 2 * complement * math.sqrt(least) / (math.pi * terms) * dn / cn**2
    total, diagonal = np.zeros(gram.shape, np.float32), np.arange(len(gram))
    work = np.empty(gram.shape, np.float64, order="F")
    for weight, shift in zip(weights, least * (sn / cn) ** 2, strict=True):
        work[...] = gram.numpy()
        work[diagonal, diagonal] += added + shift
        factor, _ = dpotrf(work, lower=1, overwrite_a=1, clean=0)
        inverse, failed = dpotri(factor, lower=1, overwrite_c=1)  # both in place, in one triangle
        if failed:
            raise InputError(
                "preprocess zca needs train examples of finite numbers, found others; give "
                "--preprocess normalize"
            )
        for first in range(0, len(gram), STRIP):  # of the upper triangle nothing is used
            some = slice(first, first + STRIP)
            total[:, some] += weight * inverse[:, some]
    del work, factor, inverse  # room for the sum below
    lower = torch.from_numpy(total).tril_()
    lower.diagonal().mul_(0.5)
    return lower + lower.T


def greatest_eigenvalue(gram: Tensor) -> float:
    """Return a bound on the greatest eigenvalue, little above it, by the power method."""
    vector = torch.ones(len(gram), dtype=gram.dtype)
    length = 0.0
    for _ in range(POWERS):
        vector = gram @ (vector / vector.norm())
        length = float(vector.norm())
    return 1.1 * length


def gram_of(rows: Tensor) -> Tensor:
    """Return rows' rows / n (D, D); of long rows each product once, in float32."""
    side = rows.shape[1]
    if side <= LARGE:
        return rows.T @ rows / len(rows)
    rows, gram = rows.float(), torch.empty(side, side)
    for first in range(0, side, BLOCK):
        last = min(first + BLOCK, side)
        gram[first:last, first:] = rows[:, first:last].T @ rows[:, first:]
        gram[first:, first:last] = gram[first:last, first:].T
    return gram.div_(len(rows))
