"""Check a folder of photos, and with --out turn it into training data.

`python -m mmdiff.folder FOLDER --out DIR` writes DIR/train.parquet, DIR/val.parquet and DIR/config.toml.
"""

import argparse
import io
import shlex
import sys
import warnings
from collections import Counter
from pathlib import Path

from mmdiff.folder.check import Checked, check_folder
from mmdiff.folder.write import PATCH, margin_of, render, write_split


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mmdiff.folder", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="photos, a subfolder for each class; docs/your-data.md")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write training data and configuration here")
    parser.add_argument(
        "--size",
        type=int,
        default=96,
        help="pixels of the model's pictures, a multiple of 8; the short side of stored photos is an eighth "
        "more, for random crops (default: %(default)s)",
    )
    parser.add_argument(
        "--val-share",
        type=float,
        default=0.05,
        help="share of each class kept for validation, unless the folder has train/ and val/ "
        "(default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split (default: %(default)s)")
    return parser.parse_args(arguments)


def check_arguments(args: argparse.Namespace) -> None:
    """Raises ValueError for options that cannot work."""
    if args.size < 2 * PATCH or args.size % PATCH:
        raise ValueError(f"--size is {args.size}; give a multiple of {PATCH}, at least {2 * PATCH}.")
    if not 0 < args.val_share <= 0.5:
        raise ValueError(f"--val-share is {args.val_share}; give a number above 0 and up to 0.5.")
    if args.out and args.out.resolve().is_relative_to(args.folder.resolve()):
        raise ValueError(f"--out {args.out} lies inside {args.folder}, where it would be read as photos.")


def report(checked: Checked) -> None:
    """Print what was found: photos and classes, problems, notes."""
    photos, findings = checked.photos, checked.findings
    masks = sum(photo.mask is not None for photo in photos)
    captions = sum(bool(photo.caption) for photo in photos)
    print(
        f"{findings.root}: {len(photos):,} usable photos, {len(checked.classes):,} classes, "
        f"{masks:,} masks, {captions:,} captions"
    )
    for label in (*checked.classes, None):
        counts = Counter(photo.split for photo in photos if photo.label == label)
        if counts:
            name = "(no class)" if label is None else label
            print(f"  {name}: {counts['train']:,} for training, {counts['val']:,} for validation")
    if checked.coding:
        print("  classes of masks: " + ", ".join(checked.coding.classes))
    sections = {"Problems, to be mended": findings.problems, "Notes, worth a look": findings.notes}
    for title, found in sections.items():
        if found:
            print(f"\n{title}:", *found, sep="\n  - ")


def write(checked: Checked, args: argparse.Namespace) -> None:
    """Write both splits and the configuration, and print the next command."""
    args.out.mkdir(parents=True, exist_ok=True)
    files = {split: args.out / f"{split}.parquet" for split in ("train", "val")}
    for split, path in files.items():
        count = write_split(checked, split, path, args.size + margin_of(args.size), args.seed)
        print(f"{path}: {count:,} examples")
    path = args.out / "config.toml"
    train, val = (file.as_posix() for file in files.values())
    configuration = render(
        args.size,
        train,
        val,
        sum(photo.split == "train" for photo in checked.photos),
        checked.classes if len(checked.classes) > 1 else (),
        checked.coding.classes if checked.coding else (),
        any(photo.caption for photo in checked.photos),
    )
    path.write_text(configuration, encoding="utf-8")
    print(f"{path}: configuration")
    print("\nNext: python -m mmdiff.train", shlex.join([str(path), "--out", str(args.out / "run")]))


def run(args: argparse.Namespace, words: list[str]) -> None:
    """Check, report and write; ``words`` are the command's arguments, repeated in the next command."""
    checked = check_folder(args.folder, args.size, args.val_share, args.seed)
    report(checked)
    if not checked.usable:
        print("\nNot usable yet: mend the problems above and run the check again.")
        sys.exit(1)
    if args.out:
        print()
        write(checked, args)
    else:
        print("\nUsable. Next: python -m mmdiff.folder", shlex.join([*words, "--out", "data/mine"]))


def main(arguments: list[str] | None = None) -> None:
    """Exit status 0 if the folder can be used, 1 if not."""
    args = parse_arguments(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # "?" for characters that the terminal cannot show
    try:
        check_arguments(args)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # about damaged metadata, which do no harm
            run(args, sys.argv[1:] if arguments is None else arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"mmdiff.folder: {error}")


if __name__ == "__main__":
    main()
