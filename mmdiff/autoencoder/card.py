"""The README.md beside an autoencoder's weights."""

from __future__ import annotations


def card(facts: dict) -> str:
    """The model card from the facts of `mmdiff.autoencoder.train`, as in config.json."""
    recipe, val = facts["recipe"], facts["val"]
    spans = [*earlier(facts), facts]
    seen = ", then ".join(f"{s['images_seen']:,} random parts of {s['photos']:,} photos" for s in spans)
    minutes = sum(s["seconds"] for s in spans) / 60
    measured = (
        f"On {val['photos']:,} photos that it was not trained on, at {val['size']} x {val['size']} pixels: "
        f"PSNR {val['psnr']:.2f} dB, LPIPS (AlexNet) {val['lpips']:.4f}."
        if val
        else "Not measured yet: the training is not done."
    )
    return f"""---
license: other
library_name: mmdiff
tags: [autoencoder, latent-diffusion]
---

# Autoencoder

Turns photos into latents of an eighth of their height and width, \
{recipe["latent_channels"]} numbers at each position, and back.
It is the second encoder for photos of mmdiff beside plain pixels (`kind = "latent_image"`), and is contained
in the weights of every checkpoint that uses it.

- {facts["parameters"]:,} parameters, convolutions only; any height and width that are multiples of 8.
- Trained on {seen},
  each of {recipe["crop"]} x {recipe["crop"]} pixels, with the mean absolute error + \
{recipe["perceptual"]:g} x LPIPS, noise of {recipe["noise"]:g} on the latents,
  weights averaged over the training.{_adversary(recipe)}
- {minutes:.0f} minutes on {facts["device"]}.
- {measured}
- Limits: detail finer than about two pixels, small lettering and faces are invented or smoothed; photos
  unlike its training photos lose more.
- The weights derive from the training photos, so their licence and attribution apply.
"""


def _adversary(recipe: dict) -> str:
    """About the discriminator, if there was one; recipes from before it lack these keys."""
    if not recipe.get("adversarial"):
        return ""
    after, share = recipe["adversarial_after"], recipe["adversarial"]
    return (
        f"\n- After {after:.0%} of it also against a patch discriminator, whose gradient at the pixels had\n"
        f"  {share:g} times the norm of the other losses' gradient: fine detail may be invented."
    )


def earlier(facts: dict) -> list[dict]:
    """Facts of the trainings that this one started from, first to last."""
    before = facts.get("init")
    return [*earlier(before), before] if before else []
