"""Classifier-free guidance: a denoiser made of two."""

from dataclasses import replace

from torch import Tensor

from mmdiff.samplers import Denoiser, Prediction


def guided(conditional: Denoiser, unconditional: Denoiser, scale: float) -> Denoiser:
    """unconditional + scale * (conditional - unconditional), on z_0 and on every e (Ho & Salimans 2022).

    scale 1 is off and returns `conditional` itself; above 1 what is given is followed more closely. As the
    implied noise is linear in z_0 and e, guiding them is guiding eps_hat. x is that of the conditional
    prediction. A modality whose encoding the two predictions share, such as the true one, keeps it exactly.
    """
    if scale == 1:
        return conditional

    def denoise(z_t: Tensor, t: Tensor) -> Prediction:
        given, free = conditional(z_t, t), unconditional(z_t, t)
        return replace(
            given,
            z0=_moved(given.z0, free.z0, scale),
            e={name: _moved(encoding, free.e[name], scale) for name, encoding in given.e.items()},
        )

    return denoise


def _moved(given: Tensor, free: Tensor, scale: float) -> Tensor:
    """free + scale * (given - free), written so that it is exactly `given` where the two agree."""
    return given + (scale - 1) * (given - free)
