"""`dmtl data check`: what is wrong with a data set."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dmtl.cli._arguments import Source, check_at_least, check_json
from dmtl.cli._common import console, say, table_of
from dmtl.cli._progress import bar
from dmtl.text import plural

if TYPE_CHECKING:
    from dmtl.data.base import LabelledImages
    from dmtl.data.folder.check import Problem
    from dmtl.data.sources import Source as DataSource


@dataclass(frozen=True)
class Check:
    """Read every file and list what is wrong.

    Reports damaged files; wrong sizes, class ids, ranges and vector lengths; duplicate images and ids;
    classes without a label; files that no split lists, that are never read, or that differ from the manifest;
    missing folders and folders that are never read; links out of the folder. The exit status is 1 if anything
    is wrong.
    """

    data: Source = "scenes"
    """"scenes", a folder with dataset.yaml, shards, a benchmark as distributed, or a configuration (.toml)
    with [[data.sources]]."""
    splits: list[str] = dataclasses.field(default_factory=lambda: ["train", "val"])
    """Splits to read."""
    count: int | None = None
    """Maximum number of images per split."""
    format: str | None = None
    """Format of a benchmark, if its folders fit several; the names are those of `dmtl data convert`."""
    lines: int = 10
    """Maximum number of lines per kind of problem; the others are only counted."""
    json: str | None = None
    """Also write all problems to this JSON file."""
    workers: int = 0
    """Processes that read; 0: only this one."""


def run(args: Check) -> int:
    check_at_least(args, count=1, lines=0, workers=0)
    check_json(args.json)
    from dmtl.data.folder.check import check_dataset
    from dmtl.data.folder.check_files import check_files
    from dmtl.data.sources import read_sources
    from dmtl.runtime.files import write_json

    sources = read_sources(args.data) if args.data.endswith(".toml") else []
    roots = [source.root for source in sources] or [args.data]
    problems: list[Problem] = []
    opened = [part for split in args.splits for part in open_split(args, split, sources, problems)]
    seen: dict[bytes | str, str] = {}
    for dataset in opened:
        progress = bar(f"{dataset.name} {dataset.split}")
        for problem in check_dataset(dataset, seen=seen, workers=args.workers, progress=progress):
            if sources and problem.kind in ("label", "class"):  # a task; other places name the source
                problem = dataclasses.replace(problem, where=f"{dataset.name}: {problem.where}")
            problems.append(problem)
    for root in filter(is_folder, reversed(roots)):
        progress = bar(f"{root} files")
        problems = check_files(root, workers=args.workers, progress=progress) + problems
    problems = list({(p.where, p.what): p for p in problems}.values())  # met by both
    images = sum(map(len, opened))
    if args.json is not None:
        found = [dataclasses.asdict(problem) for problem in problems]
        content = {"data": args.data, "splits": args.splits, "images": images, "problems": found}
        write_json(args.json, content, indent=1)
    if problems:
        tell(roots, problems, args.lines)
    faults = sum(problem.is_fault for problem in problems)
    if faults:
        say(f"\n{args.data}: {plural(faults, 'problem')}")
        return 1
    of = f" of {plural(len(sources), 'source')}" if sources else ""
    say(f"{args.data}: {images} images in {', '.join(args.splits)}{of}, nothing wrong")
    return 0


def is_folder(data: str) -> bool:
    return (Path(data) / "dataset.yaml").is_file()


def open_split(
    args: Check, split: str, sources: Sequence[DataSource], problems: list[Problem]
) -> Sequence[LabelledImages]:
    """Return the data set, or that of each source; one that cannot be opened is a problem."""
    from dmtl.data.folder.check import Problem
    from dmtl.data.sources import Joined, Part
    from dmtl.errors import DataError

    parts: list[Part] = []
    targets: Sequence[DataSource | None] = sources or [None]
    for source in targets:
        root = args.data if source is None else source.root
        try:
            dataset = open_readable(args, root, split)
            if source is None:
                return [dataset]
            parts.append(Part(dataset, source))
        except DataError as error:
            if not (Path(root) / "splits" / f"{split}.txt").exists():
                raise  # nothing of that name: a word of the command line, no problem of the data
            problems.append(Problem.of(error))
    return Joined(parts).parts if parts else []


def open_readable(args: Check, root: str, split: str) -> LabelledImages:
    from dmtl.data import open_dataset
    from dmtl.data.folder.check_files import readable_part
    from dmtl.data.loading.wrappers import Subset

    if not is_folder(root):
        return open_dataset(root, split, count=args.count, format=args.format)
    dataset = readable_part(root, split)
    return dataset if args.count is None else Subset(dataset, range(min(args.count, len(dataset))))


def tell(roots: Sequence[str], problems: Sequence[Problem], lines: int) -> None:
    """Print a table of what was found and where, then the problems of each kind, at most `lines` of them."""
    from dmtl.data.folder.check import KINDS

    groups = {kind: [p for p in problems if p.kind == kind] for kind in KINDS}
    groups = {kind: found for kind, found in groups.items() if found}
    rows = []
    for kind, found in groups.items():
        places = Counter(_place(roots, problem) for problem in found).most_common()
        shown = [f"{place} {count}" if len(places) > 1 else place for place, count in places[:5]]
        rows.append((KINDS[kind], str(len(found)), ", ".join([*shown, "..."] if len(places) > 5 else shown)))
    table = table_of(("found", "count", "where"), rows)
    table.columns[2].justify = "left"
    console.print(table)
    for kind, found in groups.items():
        say(f"\n{KINDS[kind]}:")
        for problem in found[:lines]:
            say(f"  {problem}")
        if len(found) > lines:
            say(f"  and {len(found) - lines} more (--lines {len(found)} or --json FILE shows them)")


def _place(roots: Sequence[str], problem: Problem) -> str:
    """Return the folder or file of the data set that a problem is in, or its task, or nothing."""
    for root in roots:
        with suppress(ValueError, IndexError):
            inside = Path(problem.where).relative_to(root)
            return inside.parts[0] if len(roots) == 1 else str(Path(root, inside.parts[0]))
    task = problem.where.rpartition(" (")[2].removesuffix(")")
    return task if task != problem.where or problem.kind in ("label", "class") else "images"
