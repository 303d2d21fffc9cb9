"""The README.md beside an autoencoder's weights."""

from pathlib import Path

TEMPLATE = Path(__file__).with_name("card.md")
MEASURED = (
    "On {photos:,} photos that it was not trained on, at {size} x {size} pixels: PSNR {psnr:.2f} dB, "
    "LPIPS (AlexNet) {lpips:.4f}."
)
ADVERSARY = """
- After {adversarial_after:.0%} of it also against a patch discriminator, whose gradient at the pixels had
  {adversarial:g} times the norm of the other losses' gradient: fine detail may be invented."""


def card(facts: dict) -> str:
    """The model card from the facts of `mmdiff.autoencoder.train`, as in config.json."""
    recipe, val = facts["recipe"], facts["val"]
    spans = [facts]  # the trainings, first to last, each of which started from the one before
    while before := spans[0].get("init"):
        spans.insert(0, before)
    return TEMPLATE.read_text(encoding="utf-8").format(
        **facts,
        seen=", then ".join(f"{s['images_seen']:,} random parts of {s['photos']:,} photos" for s in spans),
        minutes=sum(s["seconds"] for s in spans) / 60,
        measured=MEASURED.format(**val) if val else "Not measured yet: the training is not done.",
        # recipes from before there was a discriminator lack its keys
        adversary=ADVERSARY.format(**recipe) if recipe.get("adversarial") else "",
    )
