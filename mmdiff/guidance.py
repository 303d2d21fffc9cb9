"""Classifier-free guidance with several branches, each of which does not see a part of what is given."""

from collections.abc import Sequence

import torch

from mmdiff.samplers import Encodings


def guide(conditional: Encodings, branches: Sequence[tuple[Encodings, float]]) -> Encodings:
    """conditional + sum_i (s_i - 1) (conditional - without_i), for every clean encoding (B, *Z) by name.

    Each branch is (without_i, s_i): the prediction without a part i of what is given, and its guidance scale.
    One branch is unconditional + s (conditional - unconditional) of Ho & Salimans (2022). The difference from
    `conditional` points along the gradient of log p(x_i | z_t, the rest), so samples follow
    p(z_t | all) prod_i p(x_i | z_t, the rest)^(s_i - 1). This is the composition of Liu et al. (2022) with
    differences from all conditions in place of differences from none: at scales of 1 it is exactly the
    conditional, also for conditions that depend on each other, which a sum of single ones counts twice.

    As the implied noise is linear in the encodings, guiding them is guiding eps_hat. A modality whose
    encoding all predictions share, such as a given one, keeps it exactly.
    """
    guided = {}
    for name, encoding in conditional.items():
        moved = torch.zeros_like(encoding)
        for without, scale in branches:
            moved = moved + (scale - 1) * (encoding - without[name])
        guided[name] = encoding + moved
    return guided
