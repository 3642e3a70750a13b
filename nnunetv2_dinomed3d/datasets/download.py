"""A download: the cases that its files make up, and what is missing."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nnunetv2_dinomed3d.text import join_first

JUNK = ("._", ".", "__MACOSX")
"""Beginnings of names that no publisher means: macOS's, hidden files."""


@dataclass(frozen=True)
class Case:
    """One image with its labels.

    Attributes:
        name: nnU-Net's identifier.
        patient: all cases of a patient go to the same part of a split.
        images: a NIfTI file for each channel, or one with four axes; of a DICOM series, the files of its folder.
        labels: a NIfTI file, or a PNG for each slice in order; empty for a test image without labels.
        pictures: the same slices as 8-bit PNG, in the order of `labels`; empty if there are none.
        kind: how images and labels are read.
    """

    name: str
    patient: str
    images: tuple[Path, ...]
    labels: tuple[Path, ...]
    pictures: tuple[Path, ...] = ()
    kind: Literal["nifti", "slices"] = "nifti"

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that it is made of."""
        return self.images + self.labels + self.pictures


@dataclass(frozen=True)
class Download:
    """The content of a download.

    Attributes:
        name: the data set's, without spaces.
        cases: whole cases, in the order of their names.
        unlabelled: test images that come without labels.
        broken: what is wrong with cases that are not whole, by their names.
        channels: the modality of each channel.
        labels: the value of each label; background is 0.
        patients: numbers of patients that a whole download may have; empty if nobody says.
        notes: sentences for the user.
        origin: entries of ``dataset.json`` that the publisher gives, such as licence and reference.
    """

    name: str
    cases: list[Case]
    channels: tuple[str, ...]
    labels: Mapping[str, int]
    unlabelled: list[Case] = field(default_factory=list)
    broken: Mapping[str, str] = field(default_factory=dict)
    patients: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    origin: Mapping[str, str] = field(default_factory=dict)


def files_below(root: Path) -> list[Path]:
    """All files in a folder and its folders, sorted, without hidden ones and macOS's. Linked folders are not entered.

    Raises:
        OSError: a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    found = []
    for folder, folders, names in os.walk(root, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(JUNK)]
        found += [Path(folder, name) for name in names if not name.startswith(JUNK)]
    return sorted(path for path in found if path.is_file())


def stem(path: Path) -> str:
    """A NIfTI file's name without its ending."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def is_nifti(path: Path) -> bool:
    """Whether the name is a NIfTI file's."""
    return path.name.endswith((".nii", ".nii.gz"))


def by_stem(files: Iterable[Path]) -> dict[str, Path]:
    """NIfTI files by their names without ending.

    Raises:
        ValueError: a name occurs twice.
    """
    nifti = [path for path in files if is_nifti(path)]
    counts = Counter(map(stem, nifti))
    if twice := [path for path in nifti if counts[stem(path)] > 1]:
        first = [path for path in twice if stem(path) == stem(twice[0])]
        raise ValueError(
            f"{stem(first[0])} is there {len(first)} times: {', '.join(map(str, first[:2]))}. Keep one of them"
        )
    return {stem(path): path for path in nifti}


def complete(download: Download, leave_out: Iterable[str], incomplete: bool) -> Download:
    """The download without the cases to leave out, if it is whole otherwise.

    Args:
        leave_out: names of cases or patients.
        incomplete: take what is there.

    Raises:
        ValueError: a name is no case's, a case is broken, the number of patients is not the publisher's, or nothing is
            left.
    """
    leave = set(leave_out)
    known = {name for case in download.cases for name in (case.name, case.patient)} | set(download.broken)
    if unknown := leave - known:
        raise ValueError(f"--leave-out {join_first(unknown)}: there is no such case in this download")
    broken = {name: why for name, why in download.broken.items() if name not in leave}
    kept = [case for case in download.cases if not {case.name, case.patient} & leave]
    if broken and not incomplete:
        raise ValueError(
            f"The download is not whole: {join_first(f'{name} {why}' for name, why in broken.items())}. Download it "
            "again, or convert the rest with --leave-out CASE ... or --incomplete"
        )
    counts = {len({case.patient for case in cases}) for cases in (download.cases, kept)}
    if download.patients and not incomplete and not counts & set(download.patients):
        expected = " or ".join(map(str, download.patients))
        raise ValueError(
            f"The download has {max(counts)} patients of {download.name}, the publisher gives out {expected}: download "
            "it again, or convert what is there with --incomplete"
        )
    if not kept:
        raise ValueError(f"No case of {download.name} is left to convert: download it again")
    notes = list(download.notes)
    if gone := leave | (set(broken) if incomplete else set()):
        notes.append(f"Left out: {join_first(gone)}.")
    if download.patients and len({case.patient for case in kept}) not in download.patients:
        notes.append(f"{len({case.patient for case in kept})} patients of {max(download.patients)}.")
    return Download(
        download.name,
        sorted(kept, key=lambda case: case.name),
        download.channels,
        download.labels,
        download.unlabelled,
        {},
        download.patients,
        tuple(notes),
        download.origin,
    )
