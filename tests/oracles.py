"""Pipelines with known scores: one that looks the truth up, and one that guesses."""

from typing import ClassVar

import numpy as np
import torch
from torch.nn.functional import normalize

from mmdiff.config import ModalityConfig
from mmdiff.data.augment import draw_batch
from mmdiff.data.examples import Examples, add_embeddings
from mmdiff.evaluation import metrics
from mmdiff.modalities import build_modality
from mmdiff.serving.denoising import Step

SIZE = 32
COLOURS = torch.tensor(
    [[200, 40, 40], [40, 160, 40], [40, 60, 190], [220, 190, 40], [120, 40, 140], [20, 20, 20]]
)
WORDS = ("red", "green", "blue", "yellow", "purple", "black")
CLASSES = tuple(f"{'Apple' if k < 4 else 'Pear'} {word}" for k, word in enumerate(WORDS))


def specs(mask_classes=("background", "object"), label_classes=CLASSES, embedding=False):
    configs = [
        ModalityConfig("image", "image"),
        ModalityConfig("mask", "mask", options={"classes": mask_classes}),
        ModalityConfig("label", "label", options={"classes": label_classes}),
    ]
    if embedding:
        configs.append(ModalityConfig("embedding", "embedding", options={"dim": ColourEmbedder.dim}))
    return {c.name: build_modality(c, SIZE, 8) for c in configs}


def paint(masks, labels):
    """Class-coloured objects on white: (B, H, W) bool, (B,) -> (B, 3, H, W) in [-1, 1]."""
    colours = (COLOURS[labels] / 127.5 - 1)[:, :, None, None]
    return torch.where(masks[:, None], colours, 1.0)


def draw_objects(seeds):
    """A rectangle for each seed."""
    masks = torch.zeros(len(seeds), SIZE, SIZE, dtype=torch.bool)
    for k, seed in enumerate(seeds):
        top, left, bottom, right = np.random.default_rng(seed).integers((2, 2, 18, 18), (14, 14, 30, 30))
        masks[k, top:bottom, left:right] = True
    return masks


def caption(label):
    kind, colour = CLASSES[label].split()
    return f"a photo of a {colour} round {kind.lower()}"


def make_examples(count=60, embedder=None):
    """Examples of all classes in turn, with captions; with an embedder also their embeddings."""
    masks, labels = draw_objects(range(count)), torch.arange(count) % len(CLASSES)
    stored = {
        "image": ((paint(masks, labels) + 1) * 127.5).round().to(torch.uint8),
        "mask": masks.to(torch.uint8),
        "label": labels.int(),
    }
    present = {n: torch.ones(count, dtype=torch.bool) for n in stored}
    examples = Examples(stored, present, [caption(label) for label in labels])
    if embedder is not None:
        add_embeddings(examples, "embedding", "image", embedder, SIZE)
    return examples


def object_colours(images):
    """Mean colour of all that is not white: (B, 3) in [0, 1]."""
    inside = metrics.white_background_mask(images)[:, None]
    return ((images + 1) / 2 * inside).sum((2, 3)) / inside.sum((2, 3)).clamp(min=1)


class ColourEmbedder:
    """The colour's direction and, of pictures, also where the object is; texts by the colour they name."""

    dim = 6
    directions = normalize(COLOURS.float(), dim=1)

    def embed_texts(self, texts):
        chosen = [[word in text.split() for word in WORDS].index(True) for text in texts]
        return torch.cat([self.directions[chosen], torch.zeros(len(texts), 3)], dim=1)

    def embed_images(self, images):
        inside = metrics.white_background_mask(images).float() / SIZE**2
        axis = torch.linspace(-1, 1, SIZE)
        place = [(inside * axis).sum((1, 2)), (inside * axis[:, None]).sum((1, 2)), inside.sum((1, 2))]
        colour = normalize(object_colours(images), dim=1)
        return normalize(torch.cat([colour, torch.stack(place, 1)], 1), dim=1)


class Fake:
    """The part of `Pipeline` that evaluation uses; subclasses define x_hat."""

    device = torch.device("cpu")

    def __init__(self, modalities, embedder=None):
        self.modalities, self.embedder = modalities, embedder
        self.calls = []

    def compile(self):
        return False

    def run_batch(self, request, seeds):
        self.calls.append((sorted(request.given), tuple(request.wanted), request.guidance_scale))
        x_hat = self.predict(request, seeds)
        for index in (1, 2):
            yield Step(index, 2, 2 - index, x_hat if index == 2 else {}, torch.zeros(1), 0.0)


class Oracle(Fake):
    """Knows every photo, and paints objects of the given label and mask."""

    def __init__(self, modalities, examples, embedder=None):
        super().__init__(modalities, embedder)
        self.known = draw_batch(examples, modalities, torch.arange(len(examples)), None, flip=False)[0]

    def predict(self, request, seeds):
        given = request.given
        if "image" in given:
            visible = request.known_pixels
            visible = torch.ones(len(seeds), SIZE, SIZE, dtype=torch.bool) if visible is None else visible
            differs = (self.known["image"][None] - given["image"][:, None]).abs() * visible[:, None, None]
            x = {n: v[differs.flatten(2).sum(2).argmin(1)] for n, v in self.known.items()}
        else:
            label = given.get("label", self.label(given, seeds))
            mask = given.get("mask", draw_objects(seeds).long())
            x = {"image": paint(mask == 1, label), "mask": mask, "label": label}
            if self.embedder is not None:
                x["embedding"] = self.embedder.embed_images(x["image"])
        return {n: self.modalities[n].as_prediction(v) for n, v in x.items()}

    def label(self, given, seeds):
        if "embedding" not in given:
            return torch.tensor([s % len(CLASSES) for s in seeds])
        return (normalize(given["embedding"][:, :3], dim=1) @ ColourEmbedder.directions.T).argmax(1)


class Guess(Fake):
    """Uniform noise for everything."""

    def predict(self, request, seeds):
        rng = torch.Generator().manual_seed(seeds[0])
        shapes = {"image": (3, SIZE, SIZE), "mask": (2, SIZE, SIZE), "label": (len(CLASSES),)}
        x = {n: torch.rand(len(seeds), *shape, generator=rng) for n, shape in shapes.items()}
        vectors = torch.randn(len(seeds), ColourEmbedder.dim, generator=rng)
        return x | {"image": 2 * x["image"] - 1, "embedding": normalize(vectors, dim=1)}


class ColourClassifier:
    """A classifier by the nearest class colour of the object; its classes are in another order."""

    classes = tuple(reversed(CLASSES))
    facts: ClassVar = {"val_top1": 1.0}

    def probabilities(self, images):
        if not len(images):
            return torch.empty(0, len(self.classes))
        return (-torch.cdist(object_colours(images), COLOURS.flip(0) / 255)).softmax(1)
