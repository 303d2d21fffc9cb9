"""Names of classes that a configuration takes from a file, or from ImageNet."""

from pathlib import Path


def class_names(said: str, folder: Path) -> list[str]:
    """ "imagenet", or a text file in ``folder`` with a name a line -> names. ValueError if there is none."""
    if said == "imagenet":
        from open_clip import IMAGENET_CLASSNAMES  # in the order of the usual numbers 0 to 999

        names = list(IMAGENET_CLASSNAMES)
        # two names stand for two classes each
        return [f"{name} (2)" if name in names[:i] else name for i, name in enumerate(names)]
    file = folder / said
    if not file.is_file():
        raise ValueError(
            f"no file of class names at {file}; give a list of names, a text file with a name a line, or "
            "'imagenet'."
        )
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
