"""The systems that `benchmarks/evidence.py` compares, by question, and the settings they are tuned among."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks import measures
from benchmarks.measures import Measured
from benchmarks.study import Change, Variant, optim_with, tasks_with
from benchmarks.systems import (
    ClassConditional,
    EveryExample,
    MaskedAutoencoder,
    NoisyClassifier,
    Reconstruction,
)
from benchmarks.tables.studies import OURS
from benchmarks.trials import ClassicalTrial, GuidedTrial, RePaintTrial, Trial
from mmdiff.config import ModelConfig, TrainConfig
from mmdiff.training.trainer import Trainer

EVERYTHING = ("mask", "label", "embedding")
FINE_TUNING = 0.1  # share of the images that a fine-tuning on reading sees


@dataclass(frozen=True)
class Setting:
    """A setting that a system can be trained with: factors on the rate and on the others' loss weights."""

    rate: float = 1.0
    weight: float = 1.0

    @property
    def name(self) -> str:
        return f"rate {self.rate:g}, others {self.weight:g}"


# As many for every system: heavier losses of the others in place of a lower rate where there are others.
OF_SEVERAL = (Setting(), Setting(rate=2.0), Setting(weight=4.0))
OF_ONE = (Setting(), Setting(rate=0.5), Setting(rate=2.0))


@dataclass(frozen=True)
class System(Variant):
    """A way to train the network, and what it is measured on.

    Attributes:
        change: of the configuration; `configured` adds the budget and the setting.
        used: modalities beside the photo; the others are taken away and have no lead.
        measures: of its trials. aims: figures that it is for, by which its setting is chosen.
        trial: makes its evaluation. share: of the budget's images that it sees.
        settings_tried: among which it is tuned. learns: False: it is measured as it is.
        tuned: whether it is also fine-tuned on reading everything, and measured on that.
        reader: a system that is trained beside it, as the classifier of classifier guidance.
    """

    trainer: type[Trainer] = EveryExample
    used: tuple[str, ...] = EVERYTHING
    measures: tuple[Callable[[Trial], Measured], ...] = ()
    aims: tuple[str, ...] = ()
    trial: Callable[..., Trial] = Trial
    share: float = 1.0
    settings_tried: tuple[Setting, ...] = OF_ONE
    learns: bool = True
    tuned: bool = False
    reader: System | None = None

    def configured(self, images: int, setting: Setting) -> System:
        """The system at a budget and a setting."""
        reader = self.reader and self.reader.configured(images, setting)
        seen = budget(max(1, round(images * self.share)), setting)
        changes = (self.change, leads_of(self.used), seen, weighed(setting.weight))
        return dataclasses.replace(self, change=partial(in_turn, changes), reader=reader)


# -- changes ---------------------------------------------------------------------------------------------


def in_turn(changes: tuple[Change, ...], config: TrainConfig) -> TrainConfig:
    """All of the changes, one after the other."""
    for change in changes:
        config = change(config)
    return config


def with_modalities(change: Callable[[Any], dict[str, Any]]) -> Change:
    """Other options of the modalities; ``change`` names them for each."""

    def changed(config: TrainConfig) -> TrainConfig:
        modalities = tuple(dataclasses.replace(m, **change(m)) for m in config.model.modalities)
        model: ModelConfig = dataclasses.replace(config.model, modalities=modalities)
        return dataclasses.replace(config, model=model)

    return changed


def leads_of(used: tuple[str, ...]) -> Change:
    """No lead for what is not used: no step of a run is spent on it."""
    return with_modalities(lambda m: {} if m.name in used else {"lead": 0.0})


def lead(name: str, value: float) -> Change:
    """Another lead of one modality."""
    return with_modalities(lambda m: {"lead": value} if m.name == name else {})


def weighed(times: float) -> Change:
    """The loss weights of everything but the photo times a factor."""
    return with_modalities(lambda m: {} if m.name == "image" else {"loss_weight": times * m.loss_weight})


def only_loss(*names: str) -> Change:
    """A loss weight of 1 for these modalities and of 0 for all others."""
    return with_modalities(lambda m: {"loss_weight": float(m.name in names)})


def budget(images: int, setting: Setting) -> Change:
    """A number of images, a tenth of them to warm up, and the setting's rate."""

    def change(config: TrainConfig) -> TrainConfig:
        warm = min(config.optim.warmup_images, images // 10)
        return optim_with(images=images, warmup_images=warm, lr=setting.rate * config.optim.lr)(config)

    return change


def photos(given: float) -> Change:
    """Photos alone, that share of them with holes; every one has pixels to predict."""
    return tasks_with(joint=0.0, given=given, holes=1.0, reading=0.0, only_reading=0.0, other_leads=0.0)


def whole_photos(config: TrainConfig) -> TrainConfig:
    """All that the examples have is read off whole photos, in one call."""
    return tasks_with(joint=0.0, given=1.0, holes=0.0, absent=0.0, only_reading=1.0)(config)


def read_alone(name: str, config: TrainConfig) -> TrainConfig:
    """The same of one modality, which has all of the loss."""
    return only_loss(name)(whole_photos(config))


def classify_noisy(config: TrainConfig) -> TrainConfig:
    """Only the label has a loss, for `NoisyClassifier`."""
    return only_loss("label")(photos(given=0.0)(config))


# -- systems ---------------------------------------------------------------------------------------------


AIMS = {"mask": "mask_iou", "label": "label_top1", "embedding": "embedding_cosine"}  # of what can be read
BEHIND_THE_LABEL = 0.25  # lead of the embedding; decided at once with the label, both agree less
ONE_CALL = {"filling_steps": 1}
BOTH_FILLINGS = (measures.holes, measures.unpasted_holes)


def joint(used: tuple[str, ...], *measured: Callable[[Trial], Measured], **options: Any) -> System:
    """One model of the photo and other modalities, in the shares of the configuration."""
    aims = tuple(AIMS[name] for name in used)
    aims += ("holes_lpips",) * (measures.holes in measured) + ("frechet",) * (measures.making in measured)
    options = {"aims": aims, "settings_tried": OF_SEVERAL} | options
    return System(used=used, measures=measured, **options)


def everything(*measured: Callable[[Trial], Measured], **options: Any) -> System:
    """One model of all, in which the label leads the words, as in `configs/butterflies.toml`."""
    return joint(EVERYTHING, *measured, change=lead("embedding", BEHIND_THE_LABEL), **options)


def reader(name: str) -> System:
    """Reads one modality off whole photos that have it."""
    return System(
        partial(read_alone, name),
        annotated=name,
        used=(name,),
        measures=(measures.reading,),
        aims=(AIMS[name],),
    )


def filler(given: float, **options: Any) -> System:
    """Knows photos alone and fills their holes."""
    measured = options.pop("measures", BOTH_FILLINGS)
    return System(photos(given), used=(), measures=measured, aims=("holes_lpips",), **options)


def tuned_reading(trial: Trial) -> Measured:
    """What is read off photos, under the names that fine-tuned systems have it."""
    found = measures.reading(trial)
    return Measured(*({f"tuned_{n}": v for n, v in part.items()} for part in (found.figures, found.each)))


MANY_IN_ONE = (measures.holes, measures.reading, measures.making)
NOISE_ALONE = photos(given=0.0)  # no pixel is ever known
HALF = 0.5  # of the photos have holes; or of the images, for each of two networks
WITH_LABELS = (measures.reading, measures.making, measures.from_label)
LABEL_AIMS = ("label_top1", "frechet", "guided_judge_from_label")
WITH_WORDS = (measures.reading, measures.making, measures.from_text)

QUESTIONS: Mapping[str, Mapping[str, System]] = {
    "many_in_one": {
        OURS: everything(*MANY_IN_ONE),
        "photo and mask": joint(("mask",), *MANY_IN_ONE),
        "photo and label": joint(("label",), *MANY_IN_ONE),
        "photo and embedding": joint(("embedding",), *MANY_IN_ONE),
        "photos alone": System(
            photos(HALF),
            used=(),
            measures=(measures.holes, measures.making),
            aims=("holes_lpips", "frechet"),
        ),
        "segmenter": reader("mask"),
        "classifier": reader("label"),
        "embedding regression": reader("embedding"),
    },
    "masked_pretraining": {
        OURS: everything(*BOTH_FILLINGS, measures.reading, tuned=True),
        "reconstruction only": filler(1.0, trainer=Reconstruction, settings=ONE_CALL, tuned=True),
        "masked autoencoder": filler(1.0, trainer=MaskedAutoencoder, settings=ONE_CALL, tuned=True),
        "diffusion for holes only": filler(1.0, tuned=True),
        "photos alone, holes as augmentation": filler(HALF),
        "RePaint, as many calls": filler(
            0.0, measures=(measures.holes,), trial=partial(RePaintTrial, resamples=1)
        ),
        "RePaint, ten times as many": filler(
            0.0, measures=(measures.holes,), trial=partial(RePaintTrial, resamples=10)
        ),
        "Telea": filler(0.0, measures=(measures.holes,), trial=ClassicalTrial, learns=False),
        "reading without pre-training": System(
            whole_photos,
            measures=(tuned_reading,),
            aims=tuple(f"tuned_{figure}" for figure in AIMS.values()),
            share=FINE_TUNING,
        ),
    },
    "image_and_label": {
        OURS: everything(*WITH_LABELS, aims=LABEL_AIMS),
        "photo and label": joint(("label",), *WITH_LABELS, aims=LABEL_AIMS),
        "class-conditional diffusion": System(
            NOISE_ALONE,
            trainer=ClassConditional,
            used=("label",),
            measures=(measures.from_label,),
            aims=("guided_judge_from_label", "class_recall"),
        ),
        "classifier guidance": System(
            NOISE_ALONE,
            used=(),
            measures=WITH_LABELS,
            aims=("frechet", "guided_judge_from_label"),
            trial=partial(GuidedTrial, used=("image", "label")),
            share=HALF,
            reader=System(
                classify_noisy, annotated="label", trainer=NoisyClassifier, used=("label",), share=HALF
            ),
        ),
        "classifier": reader("label"),
    },
    "embedding": {
        OURS: everything(*WITH_WORDS),
        "the embedding leads as the label": joint(EVERYTHING, *WITH_WORDS),
        "the embedding does not lead": joint(EVERYTHING, *WITH_WORDS, change=lead("embedding", 0.0)),
        "without the embedding": joint(("mask", "label"), *WITH_WORDS),
        "photo and embedding": joint(("embedding",), *WITH_WORDS),
        "photos alone": System(NOISE_ALONE, used=(), measures=(measures.making,), aims=("frechet",)),
    },
}
