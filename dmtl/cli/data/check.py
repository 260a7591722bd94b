"""`dmtl data check`: what is wrong with a data set."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dmtl.cli._arguments import Source
from dmtl.cli._common import bar, console, say, table_of

if TYPE_CHECKING:
    from dmtl.data.base import LabelledImages
    from dmtl.data.folder.check import Problem


@dataclass(frozen=True)
class Check:
    """Read every file and list what is wrong.

    Reported are damaged files; wrong sizes, class ids, ranges and vector lengths; duplicate images and ids;
    classes without a label; files that no split lists, that are never read, or that differ from the manifest;
    links out of the folder. The exit status is 1 if there is any.
    """

    data: Source = "scenes"
    """"scenes", a folder with dataset.yaml, or a benchmark as distributed."""
    splits: list[str] = dataclasses.field(default_factory=lambda: ["train", "val"])
    """Splits to read."""
    count: int | None = None
    """Maximum number of images per split."""
    format: str | None = None
    """Format of a benchmark, if its folders fit several; the names are those of `dmtl data convert`."""
    lines: int = 10
    """Maximum number of lines per kind of problem; the rest is counted."""
    json: str | None = None
    """Also write all problems to this JSON file."""
    workers: int = 0
    """Processes that read; 0: only this one."""


def run(args: Check) -> int:
    from dmtl.data.folder.check import Problem, check_dataset
    from dmtl.data.folder.check_files import check_files
    from dmtl.errors import DataError
    from dmtl.runtime.files import write_json

    problems: list[Problem] = []
    seen: dict[bytes | str, str] = {}
    images = 0
    for split in args.splits:
        try:
            dataset = open_split(args, split)
        except DataError as error:
            if not (Path(args.data) / "splits" / f"{split}.txt").exists():
                raise  # nothing of that name: a word of the command line, no problem of the data
            problems.append(Problem.of(error))
            continue
        images += len(dataset)
        progress = bar(f"{dataset.name} {split}")
        problems += check_dataset(dataset, seen=seen, workers=args.workers, progress=progress)
    if is_folder(args.data):
        progress = bar(f"{args.data} files")
        problems = check_files(args.data, workers=args.workers, progress=progress) + problems
    problems = list({(p.where, p.what): p for p in problems}.values())  # met by both
    if args.json is not None:
        found = [dataclasses.asdict(problem) for problem in problems]
        content = {"data": args.data, "splits": args.splits, "images": images, "problems": found}
        write_json(args.json, content, indent=1)
    if problems:
        tell(args.data, problems, args.lines)
    faults = sum(problem.is_fault for problem in problems)
    if faults:
        say(f"\n{args.data}: {faults} problem{'s' * (faults > 1)}")
        return 1
    say(f"{args.data}: {images} images in {', '.join(args.splits)}, nothing wrong")
    return 0


def is_folder(data: str) -> bool:
    return (Path(data) / "dataset.yaml").is_file()


def open_split(args: Check, split: str) -> LabelledImages:
    from dmtl.data import open_dataset
    from dmtl.data.folder.check_files import readable_part
    from dmtl.data.loading.wrappers import Subset

    if not is_folder(args.data):
        return open_dataset(args.data, split, count=args.count, format=args.format)
    dataset = readable_part(args.data, split)
    return dataset if args.count is None else Subset(dataset, range(min(args.count, len(dataset))))


def tell(data: str, problems: Sequence[Problem], lines: int) -> None:
    """A table of what is wrong and where, then the problems of each kind, at most `lines` of them."""
    from dmtl.data.folder.check import KINDS

    groups = {kind: [p for p in problems if p.kind == kind] for kind in KINDS}
    groups = {kind: found for kind, found in groups.items() if found}
    rows = []
    for kind, found in groups.items():
        places = Counter(_place(data, problem) for problem in found).most_common()
        shown = [f"{place} {count}" if len(places) > 1 else place for place, count in places[:5]]
        rows.append((KINDS[kind], str(len(found)), ", ".join([*shown, "..."] if len(places) > 5 else shown)))
    table = table_of(("what is wrong", "count", "where"), rows)
    table.columns[2].justify = "left"
    console.print(table)
    for kind, found in groups.items():
        say(f"\n{KINDS[kind]}:")
        for problem in found[:lines]:
            say(f"  {problem}")
        if len(found) > lines:
            say(f"  and {len(found) - lines} more (--lines {len(found)} or --json FILE shows them)")


def _place(data: str, problem: Problem) -> str:
    """The folder or file of the data set that a problem is in, or its task, or nothing."""
    try:
        return Path(problem.where).relative_to(data).parts[0]
    except (ValueError, IndexError):
        task = problem.where.rpartition(" (")[2].removesuffix(")")
        return task if task != problem.where or problem.kind in ("label", "class") else "images"
