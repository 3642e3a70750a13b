"""The class of a trainer's name: a family's prefix, such as ``nnUNetTrainerDINOMed3D``, and suffixes.

A name has at most one suffix of each theme, in the themes' order: size, slab depth, part of the method, recipe, length.
``nnUNetTrainerDINOMed3D_S_K1_250epochs`` is a class that derives from the classes of its suffixes and changes nothing.
"""

import os
import re
import shlex
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from io import StringIO
from pathlib import Path

from nnunetv2.training import nnUNetTrainer as stock_trainers
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_dinomed3d.trainers.baselines import dino_unet, nnformer, swin_unetr, umamba, voco
from nnunetv2_dinomed3d.trainers.baselines import lengths as baseline_lengths
from nnunetv2_dinomed3d.trainers.baselines.trainer import BaselineTrainer
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.trainers.dinomed3d.variants import ablations, lengths, paper, released, sizes
from nnunetv2_dinomed3d.trainers.harness.trainer import HarnessTrainer

BASE = nnUNetTrainerDINOMed3D.__name__

Groups = Mapping[str, tuple[type[HarnessTrainer], ...]]

SUFFIX_GROUPS: Mapping[str, tuple[type[nnUNetTrainerDINOMed3D], ...]] = {
    "size": (
        sizes.nnUNetTrainerDINOMed3D_nano,
        sizes.nnUNetTrainerDINOMed3D_T,
        sizes.nnUNetTrainerDINOMed3D_S,
        sizes.nnUNetTrainerDINOMed3D_S_plus,
        sizes.nnUNetTrainerDINOMed3D_L,
        sizes.nnUNetTrainerDINOMed3D_H_plus,
    ),
    "slab depth": (
        ablations.nnUNetTrainerDINOMed3D_K1,
        ablations.nnUNetTrainerDINOMed3D_K2,
        ablations.nnUNetTrainerDINOMed3D_K4,
        ablations.nnUNetTrainerDINOMed3D_K5,
    ),
    "part of the method": (
        ablations.nnUNetTrainerDINOMed3D_frozen,
        ablations.nnUNetTrainerDINOMed3D_stage1,
        ablations.nnUNetTrainerDINOMed3D_noDetail,
        ablations.nnUNetTrainerDINOMed3D_noStage1,
        ablations.nnUNetTrainerDINOMed3D_UPerNetProxy,
        ablations.nnUNetTrainerDINOMed3D_loraStage1,
    ),
    "recipe": (released.nnUNetTrainerDINOMed3D_released, paper.nnUNetTrainerDINOMed3D_paper),
    "length": (
        lengths.nnUNetTrainerDINOMed3D_20epochs,
        lengths.nnUNetTrainerDINOMed3D_250epochs,
        lengths.nnUNetTrainerDINOMed3D_1000epochs,
    ),
}

BASELINE_GROUPS: Mapping[str, tuple[type[BaselineTrainer], ...]] = {
    "network": (
        nnformer.nnUNetTrainerBaseline_nnFormer,
        swin_unetr.nnUNetTrainerBaseline_SwinUNETR,
        umamba.nnUNetTrainerBaseline_UMambaBot,
        umamba.nnUNetTrainerBaseline_UMambaEnc,
        voco.nnUNetTrainerBaseline_VoCo_B,
        voco.nnUNetTrainerBaseline_VoCo_L,
        voco.nnUNetTrainerBaseline_VoCo_L_v1,
        dino_unet.nnUNetTrainerBaseline_DinoUNet_S,
        dino_unet.nnUNetTrainerBaseline_DinoUNet_B,
        dino_unet.nnUNetTrainerBaseline_DinoUNet_L,
    ),
    "length": (
        baseline_lengths.nnUNetTrainerBaseline_20epochs,
        baseline_lengths.nnUNetTrainerBaseline_250epochs,
        baseline_lengths.nnUNetTrainerBaseline_1000epochs,
    ),
}


@dataclass(frozen=True)
class Family:
    """Trainers whose names begin alike.

    Attributes:
        prefix: that beginning.
        groups: suffixes by theme, in the order in which they stand in a name.
        bare: the trainer whose name is the prefix; None if a suffix of the first theme is needed.
    """

    prefix: str
    groups: Groups
    bare: type[HarnessTrainer] | None = None

    def suffix(self, trainer: type[HarnessTrainer]) -> str:
        """``_S`` of ``nnUNetTrainerDINOMed3D_S``."""
        return trainer.__name__.removeprefix(self.prefix)

    @property
    def classes(self) -> dict[str, type[HarnessTrainer]]:
        """Suffix -> class, in the themes' order."""
        return {self.suffix(trainer): trainer for trainers in self.groups.values() for trainer in trainers}

    def match(self, name: str) -> list[str] | None:
        """The suffixes of a name of this family; None if it is no such name."""
        themes = [f"({'|'.join(map(self.suffix, trainers))})" for trainers in self.groups.values()]
        first = "" if self.bare is None else "?"
        found = re.fullmatch(self.prefix + themes[0] + first + "".join(f"{theme}?" for theme in themes[1:]), name)
        return [word for word in found.groups() if word] if found else None

    def meant(self, name: str) -> str:
        """A question for a name whose suffixes are nearly ours, or in another order."""
        if not name.lower().startswith(self.prefix.lower()):
            return ""
        suffixes = list(self.classes)
        known = {word[1:].lower(): word for word in suffixes}
        words = name[len(self.prefix) :].lower().strip("_").split("_")
        found = []
        while words and words != [""]:
            for length in (3, 2, 1):  # VoCo_L_v1 is three
                of_as_many = [word for word in known if word.count("_") == length - 1]
                close = get_close_matches("_".join(words[:length]), of_as_many, 1, ALIKE)
                if close:
                    found.append(known[close[0]])
                    words = words[length:]
                    break
            else:
                return ""
        meant = self.prefix + "".join(sorted(set(found), key=suffixes.index))
        return f"Is {meant} meant? " if self.match(meant) is not None else ""  # not where two are of one kind

    def names(self) -> str:
        """All names, in words."""
        themes = "; ".join(
            f"{theme}: {', '.join(map(self.suffix, trainers))}" for theme, trainers in self.groups.items()
        )
        bare = f"{self.prefix} and, with" if self.bare else f"{self.prefix}_... with a network and"
        return f"There are {bare} at most one suffix of each kind, in this order: {themes}."


FAMILIES = (
    Family(BASE, SUFFIX_GROUPS, nnUNetTrainerDINOMed3D),
    Family("nnUNetTrainerBaseline", BASELINE_GROUPS),
)

ALIKE = 0.8
"""Likeness, by difflib's measure, from which on a word is taken for another: ``250epoch`` for ``250epochs``."""


class UnknownTrainerError(ValueError):
    """No trainer has this name."""


def suffix(trainer: type[HarnessTrainer]) -> str:
    """``_S`` of ``nnUNetTrainerDINOMed3D_S``."""
    return FAMILIES[0].suffix(trainer)


@cache
def trainer_class(name: str) -> type[HarnessTrainer]:
    """The class of that name.

    Raises:
        UnknownTrainerError: there is none; the message names what may be meant, and what there is.
    """
    for family in FAMILIES:
        suffixes = family.match(name)
        if suffixes is not None:
            bases = [family.classes[word] for word in suffixes]
            if len(bases) < 2:
                return bases[0] if bases else _bare(family)
            text = f"Combines {', '.join(suffixes)}."
            return type(name, tuple(reversed(bases)), {"__module__": __name__, "__doc__": text})
    family = next((family for family in FAMILIES if name.lower().startswith(family.prefix.lower())), FAMILIES[0])
    raise UnknownTrainerError(f"There is no trainer {name!r}. {family.meant(name)}{_own(name)} {family.names()}")


def _bare(family: Family) -> type[HarnessTrainer]:
    assert family.bare is not None, "match asks for a suffix where there is none"
    return family.bare


def _own(name: str) -> str:
    """Advice where the class is the user's."""
    setting = os.environ.get("nnUNet_extTrainer", "")
    folders = shlex.quote(os.pathsep.join(filter(None, [setting, "/folder/of/its/file"])))
    return f"Is it a class of your own? Then export nnUNet_extTrainer={folders}, which is {setting!r} here."


def defined_by_user(name: str) -> bool:
    """Whether a file of nnU-Net's own trainers or of the user's (``nnUNet_extTrainer``) has the name in it."""
    folders = [*stock_trainers.__path__, *os.environ.get("nnUNet_extTrainer", "").split(os.pathsep)]
    word = re.compile(rf"\b{re.escape(name)}\b")
    files = (file for folder in folders if folder for file in Path(folder).rglob("*.py") if file.is_file())
    return any(word.search(file.read_text(encoding="utf-8", errors="ignore")) for file in files)


def find_trainer(name: str) -> type[nnUNetTrainer]:
    """The class of that name: one of ours, of nnU-Net's, or a user's that nnU-Net finds.

    Raises:
        ValueError: there is none, or its file cannot be imported.
    """
    try:
        return trainer_class(name)
    except UnknownTrainerError as error:
        unknown = error
    said = StringIO()  # nnU-Net prints where it looks
    try:
        with redirect_stdout(said):
            found = recursive_find_trainer_class_by_name(name)
    except (UnknownTrainerError, RuntimeError) as error:
        if isinstance(error, UnknownTrainerError) or "Could not find" in str(error):
            raise unknown from None
        raise
    except AssertionError as error:
        raise ValueError(f"{name!r} is no trainer of nnU-Net") from error
    except Exception as error:  # whatever a user's file does when it is imported
        raise ValueError(f"{name!r} cannot be imported: {type(error).__name__}: {error}") from error
    return found
