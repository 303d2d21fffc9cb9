"""The table model of all results, and the tables of `mmdiff.evaluate`: tasks, the bound, every subset."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Results = Mapping[str, Any]  # as read from JSON
ESCAPES = str.maketrans({"|": r"\|", "<": "&lt;"})  # a cell neither ends early nor becomes HTML
TASKS_HEAD = ("Measured", "Value", "Examples", "To compare")

# A figure to compare with: text, path in the results ("5/PATH": five divided by it), format if another one.
Reference = tuple[str, str] | tuple[str, str, str]
# A row: text, path in "tasks", format, references. "{}" is the key that "*" in the path matches.
Metric = tuple[str, str, str, *tuple[Reference, ...]]

CHANCE, CHANCE_5 = ("chance", "1/judge.classes"), ("chance", "5/judge.classes")
JUDGED = (CHANCE, ("real photos", "judge.val_top1"))
RULE = ("real photos", "white_rule_iou_on_photos")
U_NET = ("a U-Net trained for nothing else", "segmenter.val_miou")
CLASSIFIER = ("a classifier trained for nothing else", "judge.val_top1")
MASKED = ("the masks’ own photos", "tasks.image_from_mask.segmenter_on_photos.miou_pooled")
HIDDEN = ("hidden pixels", "tasks.holes.{}.hidden", ".0%")
FLAT = ("mean of the known pixels", "tasks.holes.{}.psnr_mean_fill")
TELEA_PSNR = ("Telea", "tasks.holes.{}.fillings.telea.psnr")
TELEA = ("Telea", "tasks.holes.{}.fillings.telea.lpips")
NAVIER_STOKES = ("Navier-Stokes", "tasks.holes.{}.fillings.navier_stokes.lpips")
PRECISION = ("training photos", "tasks.likeness.training_photos.precision")
RECALL = ("training photos", "tasks.likeness.training_photos.recall")
UNSEEN = ("real photos not trained on", "tasks.copies.distance_of_unseen_photos")
AS_MANY = ("to as many training photos", "tasks.copies.distance_to_as_many_training_photos")
OTHERS = ("to another photo’s", "tasks.embedding_from_image.cosine_to_another")
SEARCHED = ("embeddings searched", "tasks.embedding_from_image.gallery", ",d")
SEARCH_CHANCE = ("chance", "tasks.embedding_from_image.chance@5")
CAPTIONED = ("the captions’ own photos", "tasks.image_from_text.photos.cosine")
REAL_COLOUR = ("captions of real photos", "tasks.prompts.photos.colour")
RECOLOURED = ("real photos in such colours", "tasks.prompts.recoloured_photos.kind")
TWO_COLOURS = ("real photos of such captions", "tasks.two_colours.photos.both")
OTHER_COLOURS = ("of another text", "tasks.two_colours.another_text.both")

PHOTOS: tuple[Metric, ...] = (
    ("Mask from photo: IoU of “{}”", "mask_from_image.iou.*", ".4f"),
    ("Mask from photo: mean IoU over all photos", "mask_from_image.miou_pooled", ".4f", U_NET),
    ("Mask from photo: pixels right", "mask_from_image.pixel_accuracy", ".1%"),
    ("Label from photo: top-1", "label_from_image.top1", ".1%", CHANCE, CLASSIFIER),
    ("Label from photo: top-5", "label_from_image.top5", ".1%", CHANCE_5),
    ("Photo from label: a separate classifier agrees", "image_from_label.judge_agreement", ".1%", *JUDGED),
    ("Photo from mask: IoU of mask and photo", "image_from_mask.mask_rule_iou", ".4f", RULE),
    ("Photo from mask: mean IoU by a U-Net", "image_from_mask.segmenter.miou_pooled", ".4f", MASKED),
    ("Photo and label together: that classifier agrees", "joint.judge_agreement", ".1%", *JUDGED),
    ("… labels that occurred", "joint.distinct_labels", "d"),
    ("The label followed: that classifier agrees", "joint_following_label.judge_agreement", ".1%", *JUDGED),
    ("… labels that occurred there", "joint_following_label.distinct_labels", "d"),
    ("Photo and mask together: their IoU", "joint.mask_rule_iou", ".4f", RULE),
    ("Photo and mask together: mean IoU by a U-Net", "joint.segmenter.miou_pooled", ".4f", U_NET),
    ("The label followed: mean IoU by a U-Net", "joint_following_label.segmenter.miou_pooled", ".4f", U_NET),
    ("Holes ({}): PSNR inside, dB", "holes.*.psnr", ".2f", HIDDEN, FLAT, TELEA_PSNR),
    ("Holes ({}): LPIPS, less is better", "holes.*.lpips", ".3f", TELEA, NAVIER_STOKES),
    ("Photos from nothing: precision by AlexNet", "likeness.generated.precision", ".2f", PRECISION),
    ("Photos from nothing: recall by AlexNet", "likeness.generated.recall", ".2f", RECALL),
    ("The label followed: precision by AlexNet", "likeness.following_label.precision", ".2f", PRECISION),
    ("The label followed: recall by AlexNet", "likeness.following_label.recall", ".2f", RECALL),
    ("Photos from nothing: distance to nearest training photo", "copies.distance", ".3f", UNSEEN),
    ("… to the nearest unseen photo", "copies.distance_to_unseen_photos", ".3f", AS_MANY),
)
WORDS: tuple[Metric, ...] = (
    ("Embedding from photo: cosine", "embedding_from_image.cosine", ".3f", OTHERS),
    ("… its own among the 5 nearest", "embedding_from_image.recall@5", ".1%", SEARCH_CHANCE, SEARCHED),
    ("Photo from caption: cosine of embeddings", "image_from_text.generated.cosine", ".3f", CAPTIONED),
    ("Photo from text of two colours: has both", "two_colours.both", ".1%", TWO_COLOURS, OTHER_COLOURS),
    ("… has each of them", "two_colours.each", ".1%"),
    ("Photo from text: in the colour of the text", "prompts.overall.colour", ".1%", REAL_COLOUR),
    ("… colour and kind often together in training", "prompts.common.colour", ".1%"),
    ("… rarely or never together in training", "prompts.rare.colour", ".1%"),
    ("Photo from text, often together: a classifier names the kind", "prompts.common.kind", ".1%"),
    ("… rarely or never together: it names the kind", "prompts.rare.kind", ".1%", RECOLOURED),
)
# columns of the table of subsets: text, metric, format
COLUMNS = (
    ("photo: classifier names the label", "image.judge", ".2f"),
    ("photo: cosine to the caption", "image.caption", ".3f"),
    ("photo: IoU with the mask", "image.mask_rule_iou", ".3f"),
    ("photo: mean IoU with the mask", "image.segmenter_miou", ".3f"),
    ("hole: PSNR, dB", "image.psnr", ".2f"),
    ("hole: LPIPS", "image.negative_lpips", ".3f"),
    ("mask: IoU", "mask.iou_fruit", ".3f"),
    ("mask: mean IoU", "mask.miou", ".3f"),
    ("label: top-1", "label.top1", ".2f"),
    ("embedding: cosine", "embedding.cosine", ".3f"),
    ("embedding: recall@5", "embedding.recall@5", ".2f"),
)


@dataclass(frozen=True)
class Table:
    """Rows of text, each as long as the head. A brief report leaves a ``detail`` out."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    detail: bool = False

    def to_markdown(self) -> str:
        lines = [_line(self.head), "|---" * len(self.head) + "|", *map(_line, self.rows)]
        return f"**{self.title}**\n\n" + "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Report:
    """The tables of one file of results, and a note that says how they were measured."""

    tables: Sequence[Table]
    note: str

    def to_markdown(self, brief: bool = False) -> str:
        """All tables that have rows, then the note; ``brief`` leaves details out."""
        shown = [table for table in self.tables if table.rows and not (brief and table.detail)]
        return "\n".join([*(table.to_markdown() for table in shown), f"{self.note}\n"])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.translate(ESCAPES) for cell in cells)} |"


def look_up(tree: Any, path: str) -> Any:
    """The value at a dotted path such as "tasks.holes.blocks.psnr", None if there is none."""
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def evaluated(results: Results) -> Report:
    """The figures of one checkpoint, without those that were not measured."""
    tables, notes = [], [_settings(results)]
    if tasks := _group(results, "tasks"):
        tables = [
            Table(_title(tasks), TASKS_HEAD, list(_rows(results, PHOTOS))),
            Table("Words and embeddings", TASKS_HEAD, list(_rows(results, WORDS))),
            _bound(results),
        ]
    if subsets := _group(results, "subsets"):
        tables += [_subsets(subsets), _worse(subsets["monotonicity"])]
        notes.append(_subset_note(subsets))
    return Report(tables, " ".join(notes))


def _title(tasks: Results) -> str:
    """Files of one checkpoint with other settings have other titles."""
    if set(tasks) == {"holes"}:
        return "Holes"
    followed = {"joint", "joint_following_label"}
    return "The label followed" if set(tasks) == followed else "Photos, masks and labels"


def _rows(results: Results, metrics: Sequence[Metric]) -> Iterator[tuple[str, ...]]:
    for text, pattern, form, *references in metrics:
        before, star, after = f"tasks.{pattern}".partition("*")
        for key in _group(results, before.rstrip(".")) if star else ("",):
            path = before + key + after
            if (value := _number(results, path)) is not None:
                found = (_compared(results, reference, key, form) for reference in references)
                count = f"{_examples(results, path):,}"
                yield text.format(key), f"{value:{form}}", count, "; ".join(filter(None, found))


def _compared(results: Results, reference: Reference, key: str, form: str) -> str:
    text, path, *own = reference
    guesses, _, path = path.replace("{}", key).rpartition("/")
    value = _number(results, path)
    if value and guesses:
        value = int(guesses) / value
    return "" if value is None else f"{text} {value:{own[0] if own else form}}"


def _bound(results: Results) -> Table:
    rows = []
    for term in _group(results, "tasks.bound.nats"):
        nats = _number(results, f"tasks.bound.nats.{term}")
        bits = _number(results, f"tasks.bound.bits_per_dimension.{term}")
        rows.append((term, "–" if nats is None else f"{nats:,.2f}", "–" if bits is None else f"{bits:.4f}"))
    return Table("The bound, term by term", ("Term", "nats", "bits per dimension"), rows, detail=True)


def _subsets(found: Results) -> Table:
    """A row for every given subset, the real photos last; columns for what was measured in any of them."""
    rows = [*found["subsets"], {"given": "(real photos)", "metrics": found["photos"]}]
    measured = {metric for row in rows for metric in row["metrics"]}
    columns = [column for column in COLUMNS if column[1] in measured]
    head = ("Given", *(text for text, _, _ in columns))
    cells = [(row["given"], *(_mean(row, metric, form) for _, metric, form in columns)) for row in rows]
    return Table("Whatever is given, everything else generated", head, cells if columns else ())


def _mean(row: dict[str, Any], metric: str, form: str) -> str:
    """A mean, of a negative distance with its usual sign; LPIPS only where there are holes."""
    mean = _number(row["metrics"].get(metric), "mean")
    if mean is None or ("lpips" in metric and "holes" not in row["given"]):
        return ""
    return f"{-mean if '.negative_' in metric else mean:{form}}"


def _worse(order: Results) -> Table:
    """The comparisons in which more given is clearly worse."""
    head = ("Metric", "Given", "Mean", "Given more", "Mean of that")
    forms = {"metric": "", "subset": "", "subset_mean": ".4f", "superset": "", "superset_mean": ".4f"}
    rows = [[f"{pair[name]:{form}}" for name, form in forms.items()] for pair in order["worse"]]
    return Table("Where more given is worse", head, rows)


def _subset_note(found: Results) -> str:
    order = found["monotonicity"]
    return (
        f"Every subset starts from the same noise; embeddings are looked up among {found['gallery']}. LPIPS "
        "is of pictures whose known pixels are true. An empty cell is of a modality that is given. More "
        f"given is worse by over {order['standard_errors']:g} standard errors in {len(order['worse'])} of "
        f"{order['compared']} comparisons of a subset with one that contains it; if all were equal, about "
        f"{order['worse_if_all_were_equal']:g} would be."
    )


def _settings(results: Results) -> str:
    """Examples, sampler and guidance in words, and what differs in holes."""
    settings = _group(results, "settings")
    count = int(_number(results, "subsets.examples") or _number(results, "examples") or 0)
    words = f"{count:,} examples of {results.get('data', '?')}, {settings.get('steps', '?')} steps of "
    words += f"`{settings.get('sampler', '?')}`"
    if (scale := _number(settings, "guidance")) is not None:
        words += f", guidance {scale:g}"
    steps, scale = _number(settings, "filling_steps"), _number(settings, "filling_guidance")
    holes = "" if steps is None else f" in {steps:g} steps"
    holes += "" if scale in (None, 1) else f" guided by the pixels around them ({scale:g})"
    return words + (f"; holes{holes}." if holes else ".")


def _number(tree: Any, path: str) -> float | None:
    """The number at a path, None if there is none; {"skipped": reason} stands for what was not measurable."""
    value = look_up(tree, path)
    if isinstance(value, dict) and "skipped" in value:
        return None
    if value is None or isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise ValueError(f"“{path}” is {str(value)[:40]!r} instead of a number")


def _group(tree: Any, path: str) -> dict[str, Any]:
    if isinstance(value := look_up(tree, path) or {}, dict):
        return value
    raise ValueError(f"“{path}” is {str(value)[:40]!r} instead of a group of figures")


def _examples(results: Results, path: str) -> int:
    """Number of examples behind a figure: the nearest "n" above it, else that of the whole evaluation."""
    keys = path.split(".")
    for end in range(len(keys) - 1, 1, -1):
        if (n := _number(results, ".".join([*keys[:end], "n"]))) is not None:
            return int(n)
    return int(_number(results, "examples") or 0)
