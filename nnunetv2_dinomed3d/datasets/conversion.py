"""Converting a download to nnU-Net's raw format: in several processes, again and again until it is whole."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_dinomed3d import __version__
from nnunetv2_dinomed3d.dataset_json import read_json
from nnunetv2_dinomed3d.datasets.archives import is_archive, unpack
from nnunetv2_dinomed3d.datasets.case_files import ENDING, RECORDS, Job, convert_case
from nnunetv2_dinomed3d.datasets.catalogue import Choices, Entry, channel_names, recipe_of
from nnunetv2_dinomed3d.datasets.download import Case, Download, complete, files_below
from nnunetv2_dinomed3d.datasets.recipe import Recipe
from nnunetv2_dinomed3d.datasets.split import eight_one_one, nnunet_acdc_folds, one_fold
from nnunetv2_dinomed3d.datasets.target import MANIFEST, Target, require_no_other_split, write_json
from nnunetv2_dinomed3d.evaluation.parallel import in_processes, process_count
from nnunetv2_dinomed3d.folder_lock import FolderInUseError, lock_folder
from nnunetv2_dinomed3d.nnunet_files import Splits
from nnunetv2_dinomed3d.text import join_first


@dataclass(frozen=True)
class Wish:
    """What is to be converted.

    Attributes:
        word: the data set's name on the command line.
        source: folder or archive.
        leave_out: cases or patients.
        incomplete: take what is whole.
        seed: of the split.
    """

    word: str
    entry: Entry
    source: Path
    choices: Choices
    leave_out: tuple[str, ...] = ()
    incomplete: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Converted:
    """A data set in nnU-Net's raw format.

    Attributes:
        manifest: its content.
        notes: sentences for the user.
        anew: whether anything was written.
    """

    manifest: dict[str, Any]
    notes: tuple[str, ...]
    anew: bool


def convert(wish: Wish, target: Target) -> Converted:
    """Write a data set, or go on with one that was begun; it appears when it is whole.

    Raises:
        ValueError: the download or a choice is wrong, or another data set is in the way.
        OSError: nothing can be written.
    """
    if target.raw.exists():
        return _there_already(wish, target)
    target.partial.mkdir(exist_ok=True)
    with _locked(target.partial):
        roots = unpacked(wish.source, target.unpacked)
        files = [path for root in roots for path in files_below(root)]
        download = complete(wish.entry.find(files), wish.leave_out, wish.incomplete)
        recipe, labels = recipe_of(wish.entry, download, wish.choices)
        parts = eight_one_one(download.cases, wish.seed) if recipe.paper else {}
        if recipe.paper:
            require_no_other_split(target, one_fold(parts))
        jobs = [Job(case, parts.get(case.name, "train"), recipe, target.partial, roots) for case in download.cases]
        if not recipe.paper:
            jobs += [Job(case, "unlabelled", recipe, target.partial, roots) for case in download.unlabelled]
        _require_each_once([job.case for job in jobs])
        records = run(jobs)
        warnings = [f"{name}: {record['warning']}." for name, record in records.items() if record["warning"]]
        manifest = _manifest(wish, download, recipe, records)
        _finish(target, download, (recipe, labels), records, manifest)
    os.replace(target.partial, target.raw)
    shutil.rmtree(target.unpacked, ignore_errors=True)
    return Converted(manifest, (*download.notes, *warnings), True)


def settings_of(wish: Wish) -> dict[str, Any]:
    """What a data set is made with, for the manifest."""
    choices = wish.choices
    return {
        "data set": wish.word,
        "as in the paper": choices.paper,
        "labels": choices.labels,
        "crop": choices.crop,
        "slices": choices.slices,
        "window": list(choices.window) if choices.window else None,
        "percentiles": "nonzero" if choices.nonzero else "all",
        "first slice": choices.first_slice,
        "left out": sorted(wish.leave_out),
        "incomplete": wish.incomplete,
        "seed": wish.seed,
    }


def _there_already(wish: Wish, target: Target) -> Converted:
    file = target.raw / MANIFEST
    found = read_json(file) if file.is_file() else {}
    if not isinstance(found, dict) or found.get("settings") != settings_of(wish):
        raise ValueError(
            f"{target.raw} is there already and was made in another way: give another number with --id, or remove it"
        )
    if target.splits and not target.splits.is_file():
        raise ValueError(f"{target.splits} is gone, which {target.name} needs: remove {target.raw} and convert again")
    shutil.rmtree(target.unpacked, ignore_errors=True)  # an earlier run may have been stopped before it did
    return Converted(found, (), False)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        lock = lock_folder(folder)
    except FolderInUseError as error:
        raise ValueError(f"{folder} is being written by another process: wait until that has ended") from error
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):  # a folder in which nothing was done yet
            folder.rmdir()


def unpacked(source: Path, folder: Path) -> tuple[Path, ...]:
    """The folders with the files of a download. Archives, and those in a folder, are unpacked below `folder`.

    Raises:
        ValueError: the source does not exist, is neither folder nor archive, or an archive is damaged.
    """
    if source.is_dir():
        archives = sorted(path for path in source.iterdir() if path.is_file() and is_archive(path))
        return (source, *(unpack(path, folder) for path in archives if not path.name.startswith(".")))
    if not source.exists():
        raise ValueError(f"{source} does not exist: name the folder or archive that was downloaded")
    if not is_archive(source):
        raise ValueError(f"{source} is neither a folder nor an archive (.zip, .tar, .tar.gz, .tgz)")
    return (unpack(source, folder),)


def _require_each_once(cases: Sequence[Case]) -> None:
    names = [case.name for case in cases]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{join_first(twice)} is there as training and as test case: download it again")


def _record_or_error(job: Job) -> dict[str, Any] | ValueError:
    try:
        return convert_case(job)
    except ValueError as error:
        return error


def run(jobs: list[Job]) -> dict[str, dict[str, Any]]:
    """Convert the cases, with a progress bar; the record of each, in their order.

    A case that cannot be converted stops no other; all of them are named in the end.

    Raises:
        ValueError: cases cannot be converted, or a process was killed.
        OSError: nothing can be written.
    """
    found = in_processes(_record_or_error, {job.case.name: job for job in jobs}, process_count(), "converted")
    failed = {name: result for name, result in found.items() if isinstance(result, ValueError)}
    if failed:
        which = join_first((f"{name}: {error}" for name, error in failed.items()), 3)
        raise ValueError(
            f"{len(failed)} of {len(jobs)} cases cannot be converted: {which}. The others are done; run this again "
            "after the download is repaired, or leave cases out with --leave-out"
        )
    return {name: result for name, result in found.items() if not isinstance(result, ValueError)}


def _manifest(wish: Wish, download: Download, recipe: Recipe, records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "made by": f"nnunetv2_dinomed3d {__version__}, dinomed3d dataset",
        "source": wish.source.resolve().name,
        "settings": settings_of(wish),
        "recipe": recipe.as_json(),
        "labels published": dict(download.labels),
        "notes": list(download.notes),
        "cases": {
            name: {key: record[key] for key in ("part", "patient", "warning", "read", "written")}
            for name, record in records.items()
        },
    }


def _finish(
    target: Target,
    download: Download,
    made: tuple[Recipe, dict[str, int | list[int]]],
    records: dict[str, dict[str, Any]],
    manifest: dict[str, Any],
) -> None:
    """Write what nnU-Net needs besides the cases, and remove what only a further run would need.

    The split comes before the data set: without it nnU-Net would make its own.
    """
    recipe, labels = made
    _remove_strangers(target.partial, records)
    training = sum(record["part"] in ("train", "val") for record in records.values())
    content = {
        "channel_names": channel_names(download, recipe),
        "labels": {"background": 0} | labels,
        "numTraining": training,
        "file_ending": ENDING,
        "name": download.name,
        **download.origin,
    }
    regions = [label for label in labels.values() if isinstance(label, list)]
    if regions:
        content["regions_class_order"] = [1, 2, 3]
    write_json(target.partial / "dataset.json", content)
    write_json(target.partial / MANIFEST, manifest)
    if target.splits:
        splits: Splits = (
            one_fold({name: record["part"] for name, record in records.items()})
            if recipe.paper
            else nnunet_acdc_folds(target.partial / "labelsTr")
        )
        require_no_other_split(target, splits)
        write_json(target.splits, splits)
    shutil.rmtree(target.partial / RECORDS)


def _remove_strangers(folder: Path, records: dict[str, dict[str, Any]]) -> None:
    """Remove images and labels that an earlier run wrote of cases that are none any more, and empty folders."""
    ours = {name for record in records.values() for name in record["written"]}
    for kind in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        for path in (folder / kind).glob("*"):
            if str(path.relative_to(folder)) not in ours:
                path.unlink()
        if (folder / kind).is_dir() and not any((folder / kind).iterdir()):
            (folder / kind).rmdir()
