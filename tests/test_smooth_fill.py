"""The smooth guess at holes, against the exact solution of the Laplace equation and its properties."""

import numpy as np
import pytest
import torch
from scipy.sparse import lil_array
from scipy.sparse.linalg import spsolve

from mmdiff import images
from mmdiff.evaluation.holes import HOLES
from mmdiff.images import smooth_fill

SIZE = 32


def smooth_photos(count: int = 2) -> torch.Tensor:
    """Photos of low frequencies in [-1, 1]."""
    coarse = torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic").tanh()


def laplace(photo: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Each hidden pixel the mean of its four neighbours, the photo's border mirrored; solved exactly."""
    size = photo.shape[-1]
    matrix, right = lil_array((size**2, size**2)), np.zeros((size**2, 3))
    for row, column in np.ndindex(size, size):
        k = row * size + column
        matrix[k, k] = 1
        if known[row, column]:
            right[k] = photo[:, row, column]
            continue
        for down, along in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            i, j = min(max(row + down, 0), size - 1), min(max(column + along, 0), size - 1)
            matrix[k, i * size + j] -= 0.25
    return spsolve(matrix.tocsr(), right).T.reshape(3, size, size)


@pytest.mark.parametrize("kind", ["blocks", "box", "lines"])
@pytest.mark.parametrize(("sweeps", "rms"), [(images.SWEEPS, 0.15), (400, 1e-3)])
def test_it_converges_to_the_exact_solution(kind, sweeps, rms, monkeypatch):
    monkeypatch.setattr(images, "SWEEPS", sweeps)
    photos, known = smooth_photos(), HOLES[kind](2, SIZE, 0)
    filled = smooth_fill(photos, known[:, None].float())
    for k in range(2):
        exact = laplace(photos[k].numpy(), known[k].numpy())
        errors = (filled[k].numpy() - exact)[:, ~known[k].numpy()]
        assert np.sqrt(np.mean(errors**2)) < rms * photos[k].std().item()


def test_known_pixels_stay_and_hidden_ones_have_no_influence():
    photos, known = smooth_photos(), HOLES["blocks"](2, SIZE, 1)[:, None]
    filled = smooth_fill(photos, known.float())
    assert torch.equal(filled[known.expand_as(filled)], photos[known.expand_as(filled)])
    assert torch.equal(filled, smooth_fill(torch.where(known, photos, 9.0), known.float()))


def test_values_stay_in_the_range_of_known_pixels():
    photos, known = smooth_photos(), HOLES["blocks"](2, SIZE, 2)[:, None].float()
    filled, edge = smooth_fill(photos, known), 1e-5
    lowest = torch.where(known > 0, photos, 9).amin((2, 3), keepdim=True)
    highest = torch.where(known > 0, photos, -9).amax((2, 3), keepdim=True)
    assert (filled >= lowest - edge).all() and (filled <= highest + edge).all()


def test_one_known_pixel_fills_the_photo_with_its_colour():
    photos, known = torch.full((1, 3, 24, 24), 0.3), torch.zeros(1, 1, 24, 24)
    known[0, 0, 5, 17] = 1
    torch.testing.assert_close(smooth_fill(photos, known), photos)


def test_without_known_pixels_it_is_zero():
    assert (smooth_fill(smooth_photos(), torch.zeros(2, 1, SIZE, SIZE)) == 0).all()
