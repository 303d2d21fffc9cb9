"""Configuration: frozen dataclasses, read from TOML for training and from JSON inside a checkpoint.

Unknown keys raise, so that a misspelt option never silently does nothing. Retired options are still accepted
where they have their default value, as checkpoints and training states from before name them.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mmdiff.class_names import class_names

T = TypeVar("T")

# options that no longer exist, with the only value that is still accepted
RETIRED = {
    "ModelConfig.flags": True,
    "ModelConfig.self_conditioning": False,
    "ModelConfig.separate_times": False,
    "TaskConfig.one_call": False,
    "TaskConfig.masking": "mixed",
    "TaskConfig.always": [],
    "TaskConfig.never": [],
}
LAST_WITH_RETIRED = "279370b"  # the last commit that has them

# the largest values that a model may have, so that a damaged or hostile configuration allocates nothing
MOST = {
    "image_size": 4096,
    "patch_size": 512,
    "width": 2**14,
    "depth": 512,
    "heads": 2**10,
    "refiner_width": 2**13,
    "stem_depth": 64,
    "shape_width": 2**13,
    "reader_depth": 64,
    "num_steps": 10**6,
}
MOST_MODALITIES, MOST_TOKENS = 64, 2**16

ANCHOR = "image"  # name of the first modality, for page, API and evaluation

# options that one core alone reads, with the value that changes nothing
READ_BY = {
    "flags": {"channels": "own", "in_place": False, "reader_depth": 0, "schedule": "cosine"},
    "levels": {"route": 0.0, "shape_width": 0},
}
READ_BY_IN_MODALITIES = {"flags": {"weights": "joint"}, "levels": {"lead": 0.0}}

TABLES = {"dict[str, str]": "str", "dict[str, int]": "int", "dict[str, dict[str, int]]": "dict[str, int]"}


def _check_shares(config: Any, section: str, names: tuple[str, ...]) -> None:
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{section}.{name} is {getattr(config, name)}; give a number from 0 to 1.")


def _check_positive(config: Any, names: Iterable[str]) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(
                f"{type(config).__name__}.{name} is {getattr(config, name)}; it must be at least 1."
            )


def _check_read(config: Any, read_by: Mapping[str, Mapping[str, Any]], core: str, section: str) -> None:
    """Raises ValueError for an option that another core alone reads, so that none silently does nothing."""
    for other, options in read_by.items():
        for name, default in options.items():
            if other != core and getattr(config, name) != default:
                raise ValueError(
                    f"{section}.{name} is {getattr(config, name)!r}, which only model.core = {other!r} "
                    f"reads; leave it out, or change model.core, which is {core!r}."
                )


@dataclass(frozen=True)
class ModalityConfig:
    """One modality: its kind in the registry, when it is decided and its share of the loss."""

    name: str
    kind: str
    weights: str = "joint"  # family of w_t, not of the anchor's; with core = "flags"
    scale: float = 1.0  # c_i, a factor on its weights; the anchor has `schedule_shift` in its place
    # l_i, by how much it is decided earlier, in units of the anchor's run; with core = "levels"
    lead: float = 0.0
    loss_weight: float = 1.0  # of its loss; of the anchor's, which is L1, with core = "levels" alone
    options: dict[str, Any] = field(default_factory=dict)  # arguments of the kind's constructor

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or len(self.name) > 40:
            raise ValueError(
                f"a modality is called {self.name[:40]!r}; give letters, digits and underscores, such as "
                "'depth_map', at most 40, the first no digit."
            )
        for name in ("scale", "loss_weight"):
            if not 0 <= getattr(self, name) <= 1e6:
                raise ValueError(f"{name} of {self.name!r} is {getattr(self, name)}; give 0 to 1,000,000.")


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to rebuild the model around its weights."""

    modalities: tuple[ModalityConfig, ...]
    image_size: int = 64  # pixels, height and width
    patch_size: int = 16  # pixels a token spans
    width: int = 256
    depth: int = 8
    heads: int = 4
    refiner_width: int = 64  # channels of the convolutions over cells: of refiner, stem and reader
    stem_depth: int = 0  # residual blocks of convolutions ahead of the tokens
    shape_width: int = 0  # channels of the U-Net in the heads of class maps, at its finest size; 0: none
    reader_depth: int = 0  # residual blocks at each size of the convolutions over known pixels; 0: no reader
    num_steps: int = 1000  # T
    schedule: str = "cosine"
    schedule_shift: float = 1.0  # SNR is multiplied by its square
    dropout: float = 0.0
    route: float = 0.0  # share of the patches that go round all blocks but the first and last in training
    embedder: str = ""  # folder of the CLIP-style embedder beside the checkpoint, or an open_clip tag
    channels: str = "own"  # "own": every modality has channels of Z to itself; "shared": all overlap
    in_place: bool = False  # known entries of z_t are clean in the denoiser's input, otherwise noisy
    # "levels": a level a modality; "flags": the first edition, one time and flags for all
    core: str = "levels"

    def __post_init__(self) -> None:
        if self.channels not in ("own", "shared"):
            raise ValueError(f"model.channels is {self.channels!r}; use 'own' or 'shared'.")
        if self.core not in ("flags", "levels"):
            raise ValueError(f"model.core is {self.core!r}; use 'levels', or 'flags' for the first edition.")
        _check_read(self, READ_BY, self.core, "model")
        for modality in self.modalities:
            _check_read(modality, READ_BY_IN_MODALITIES, self.core, modality.name)
        if self.in_place and self.channels == "shared":
            raise ValueError("model.in_place needs channels of their own; leave model.channels at 'own'.")
        if not self.modalities:
            raise ValueError("model.modalities is empty: name at least the anchor, an image.")
        if self.modalities[0].name != ANCHOR:
            raise ValueError(
                f"the first modality is called {self.modalities[0].name!r}; it is the photo, around which "
                f"all others are generated: put it first and call it {ANCHOR!r}."
            )
        sizes = ("image_size", "patch_size", "width", "depth", "heads", "refiner_width", "num_steps")
        _check_positive(self, sizes)
        self._check_bounds()
        if self.stem_depth < 0 or (self.stem_depth and self.refiner_width % 8):
            raise ValueError(
                f"model.stem_depth is {self.stem_depth} and refiner_width {self.refiner_width}; give a depth "
                "of at least 0, and with a stem a width that is a multiple of 8."
            )
        if not 0 <= self.route < 1 or (self.route and self.depth % 2):
            raise ValueError(
                f"model.route is {self.route} and depth {self.depth}; give a share from 0 to below 1, and "
                "with one an even depth."
            )
        if self.shape_width < 0 or self.shape_width % 8:
            raise ValueError(f"model.shape_width is {self.shape_width}; give a multiple of 8, or 0 for none.")
        if self.reader_depth < 0:
            raise ValueError(f"model.reader_depth is {self.reader_depth}; give a depth of at least 0.")
        names = [m.name for m in self.modalities]
        if len(set(names)) != len(names):
            raise ValueError(f"modality names must differ, but got {names}.")
        if self.image_size % self.patch_size or self.patch_size % 2:
            raise ValueError(
                f"image_size must be a multiple of patch_size and patch_size even, but got "
                f"{self.image_size} and {self.patch_size}."
            )
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of heads ({self.heads}) and of 4.")

    def _check_bounds(self) -> None:
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise ValueError(f"model.{name} is {getattr(self, name):,}; at most {most:,} is possible.")
        if len(self.modalities) > MOST_MODALITIES or (self.image_size // self.patch_size) ** 2 > MOST_TOKENS:
            raise ValueError(
                f"the model has {len(self.modalities)} modalities and {self.image_size // self.patch_size} "
                f"tokens a side; at most {MOST_MODALITIES} and {int(MOST_TOKENS**0.5)} are possible."
            )
        if not (0 <= self.dropout < 1 and 0 < self.schedule_shift <= 1e3):
            raise ValueError(
                f"model.dropout is {self.dropout} and schedule_shift {self.schedule_shift}; give a share "
                "below 1, and a number above 0 and up to 1000."
            )


@dataclass(frozen=True)
class DataConfig:
    """Where the examples are and how they are cut; `mmdiff.data.sources` lists the kinds of sources."""

    train: str = ""  # Parquet file or a glob of such files; with `stream` any source
    val: str = ""
    prepared: str = ""  # folder of `mmdiff.data.precompute`, read instead of `train` and `val`
    stream: bool = False  # read while training instead of keeping all examples in memory
    columns: dict[str, str] = field(default_factory=dict)  # modality or "caption" -> its column in the source
    class_map: dict[str, dict[str, int]] = field(default_factory=dict)  # modality -> its numbers -> classes
    root: str = "data"  # folder of torchvision's data sets
    shuffle_rows: int = 4096  # rows of a stream that are shuffled together
    workers: int = 8  # threads that decode a stream
    margin: int = 0  # pixels a random crop can move by
    margin_from: str = "pad"  # "pad": repeat the border; "resize": read the photo larger by the margin
    # random views a photo that are cut and encoded before training begins; 0: cut anew in every step
    views: int = 0
    zoom: float = 1.0  # smallest share of a stored photo's side that a random crop shows, enlarged
    flip: bool = True
    light: float = 0.0  # contrast and brightness change by up to this share; captions may mention them
    balance: float = 1.0  # a source's share grows with its examples to this power: 0 is equal, 1 as they are

    def __post_init__(self) -> None:
        _check_shares(self, "data", ("balance", "light", "zoom"))
        if self.zoom < 0.1:
            raise ValueError(f"data.zoom is {self.zoom}; give a number from 0.1 to 1, which is no zoom.")
        if self.views < 0:
            raise ValueError(f"data.views is {self.views}; give a number of at least 0.")
        for option, default in (("balance", 1), ("views", 0)):
            if getattr(self, option) != default and self.stream:
                raise ValueError(f"data.{option} needs all examples in memory; leave it or data.stream out.")
        if self.margin_from not in ("pad", "resize"):
            raise ValueError(f"data.margin_from is {self.margin_from!r}; use 'pad' or 'resize'.")
        _check_positive(self, ("shuffle_rows", "workers"))

    def ready(self) -> DataConfig:
        """The data that training reads: the prepared shards if `prepared` is set, else the sources."""
        if not self.prepared:
            return self
        shards = {
            part: f"{self.prepared}/{part}-*.parquet" for part in ("train", "val") if getattr(self, part)
        }
        return dataclasses.replace(self, prepared="", columns={}, class_map={}, **shards)

    def column(self, name: str) -> str:
        """The column of the source that holds the modality ``name``, or its captions."""
        return self.columns.get(name, name)


@dataclass(frozen=True)
class TaskConfig:
    """The mixture of tasks in training: shares and probabilities, 0 to 1."""

    joint: float = 0.3  # share of examples with nothing given
    given: float = 0.4  # in the others, probability that a modality is given
    absent: float = 0.15  # probability that a modality that is not given is left out
    holes: float = 0.5  # share of the given images that have holes
    # True: a modality that an example lacks is predicted as often as one that it has, but without a loss.
    # False: it is always absent, so predicting it tells the model that the source annotates it.
    ask_for_lacking: bool = False
    reading: float = 0.0  # share of the examples with a complete image given that have t = T
    only_reading: float = 0.0  # share of all examples with the complete image given, nothing else, and t = T
    other_leads: float = 0.0  # share of examples with random leads, so that a request can set its own

    def __post_init__(self) -> None:
        _check_shares(
            self, "tasks", ("joint", "given", "absent", "holes", "reading", "only_reading", "other_leads")
        )


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser, budget and bookkeeping."""

    images: int = 1_000_000  # budget: examples seen until the learning rate reaches zero
    batch_size: int = 32
    lr: float = 6e-4
    warmup_images: int = 20_000
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    muon: bool = False  # the blocks' matrices by Muon, at the same rate; the rest by AdamW
    ema_decay: float = 0.9995
    snr_cap: float = 5.0  # gamma of the weight min(SNR + 1, gamma)
    head: str = ""  # train only the head of this modality, on the examples that have it; "": everything
    coarse: float = 0.0  # share of the photo's loss for spatial frequencies that can be known at its level
    save_every_images: int = 200_000
    sample_every_images: int = 400_000
    keep_checkpoints: bool = False  # keep every saved checkpoint in history/<images>
    seed: int = 0

    def __post_init__(self) -> None:
        _check_positive(self, ("images", "batch_size", "save_every_images", "sample_every_images"))
        _check_shares(self, "optim", ("coarse",))


@dataclass(frozen=True)
class TrainConfig:
    model: ModelConfig
    data: DataConfig = DataConfig()
    tasks: TaskConfig = TaskConfig()
    optim: OptimConfig = OptimConfig()

    def __post_init__(self) -> None:
        _check_read(self.tasks, {"levels": {"other_leads": 0.0}}, self.model.core, "tasks")
        _check_read(self.optim, {"levels": {"coarse": 0.0}}, self.model.core, "optim")
        names = [m.name for m in self.model.modalities]
        if self.optim.head and self.optim.head not in names:
            raise ValueError(f"optim.head is {self.optim.head!r}; name one of {', '.join(names)}.")


def saved_model(values: Mapping[str, Any]) -> ModelConfig:
    """The model of a saved configuration; those from before there were levels name no core."""
    return from_dict(ModelConfig, {"core": "flags"} | dict(values) if isinstance(values, Mapping) else values)


def to_dict(config: Any) -> dict[str, Any]:
    """A JSON-ready dictionary of a configuration dataclass."""
    return dataclasses.asdict(config)


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build the dataclass ``cls`` from nested dictionaries.

    Raises:
        ValueError: names a key that is unknown, missing or retired, or whose value has the wrong type.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{cls.__name__} is {values!r}; give a table of its options.")
    values = _without_retired(cls.__name__, values)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ValueError(f"{cls.__name__} has no option {', '.join(unknown)}; it knows {', '.join(fields)}.")
    kwargs = {
        name: _convert(fields[name].type, value, f"{cls.__name__}.{name}") for name, value in values.items()
    }
    try:
        return cls(**kwargs)
    except TypeError as error:
        raise ValueError(f"{cls.__name__}: {error}.") from None


def _without_retired(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without `RETIRED` options. Raises ValueError if one of them has another value."""
    for name, value in values.items():
        key = f"{section}.{name}"
        if key in RETIRED and value != RETIRED[key]:
            raise ValueError(
                f"{key} is {value!r}, but this option was retired and only {RETIRED[key]!r} is accepted; "
                f"leave it out, or use commit {LAST_WITH_RETIRED}, the last that has it."
            )
    return {name: value for name, value in values.items() if f"{section}.{name}" not in RETIRED}


def _convert(annotation: str, value: Any, name: str) -> Any:
    nested = {c.__name__: c for c in (ModelConfig, DataConfig, TaskConfig, OptimConfig)}
    if annotation in nested:
        return from_dict(nested[annotation], value)
    if annotation == "tuple[ModalityConfig, ...]" and isinstance(value, (list, tuple)):
        return tuple(from_dict(ModalityConfig, v) for v in value)
    if annotation in TABLES and isinstance(value, Mapping):
        return {k: _convert(TABLES[annotation], v, f"{name}.{k}") for k, v in value.items()}
    if annotation == "tuple[float, float]" and isinstance(value, (list, tuple)) and len(value) == 2:
        return tuple(_convert("float", v, name) for v in value)
    scalar = {"int": int, "float": (int, float), "str": str, "bool": bool, "dict[str, Any]": dict}
    wrong_bool = isinstance(value, bool) and annotation != "bool"
    if not isinstance(value, scalar.get(annotation, ())) or wrong_bool:
        raise ValueError(f"{name} is {value!r}; expected {annotation}.")
    return value


def load_train_config(path: str | Path) -> TrainConfig:
    """Read a training configuration from a TOML file.

    Classes may be a list of names, the name of a text file beside the configuration with a class a line, or
    "imagenet". The names themselves become part of the configuration, and so of the checkpoint.

    Raises:
        ValueError: no such file, not TOML, or a mistake in it, by name.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no configuration file at {path}; see configs/ for examples.")
    with path.open("rb") as file:
        try:
            values = tomllib.load(file)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path} is not valid TOML: {error}.") from None
    config = from_dict(TrainConfig, values)
    modalities = tuple(_with_class_names(m, path.parent) for m in config.model.modalities)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, modalities=modalities))


def _with_class_names(modality: ModalityConfig, folder: Path) -> ModalityConfig:
    classes = modality.options.get("classes")
    if not isinstance(classes, str):
        return modality
    return dataclasses.replace(modality, options=modality.options | {"classes": class_names(classes, folder)})
