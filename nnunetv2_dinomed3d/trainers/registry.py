"""The class of a trainer's name: ``nnUNetTrainerDINOMed3D`` and suffixes.

A name has at most one suffix of each theme, in the themes' order: size, slab depth, part of the method, recipe, length.
``nnUNetTrainerDINOMed3D_S_K1_250epochs`` is a class that derives from the classes of its suffixes and changes nothing.
"""

import os
import re
import shlex
from contextlib import redirect_stdout
from difflib import get_close_matches
from functools import cache
from io import StringIO
from pathlib import Path

from nnunetv2.training import nnUNetTrainer as stock_trainers
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.trainers.dinomed3d.variants import ablations, lengths, released, sizes

BASE = nnUNetTrainerDINOMed3D.__name__

SUFFIX_GROUPS: dict[str, tuple[type[nnUNetTrainerDINOMed3D], ...]] = {
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
    ),
    "recipe": (released.nnUNetTrainerDINOMed3D_released,),
    "length": (
        lengths.nnUNetTrainerDINOMed3D_20epochs,
        lengths.nnUNetTrainerDINOMed3D_250epochs,
        lengths.nnUNetTrainerDINOMed3D_1000epochs,
    ),
}


ALIKE = 0.8
"""Likeness, by difflib's measure, from which on a word is taken for another: ``250epoch`` for ``250epochs``."""


class UnknownTrainerError(ValueError):
    """No trainer has this name."""


def suffix(trainer: type[nnUNetTrainerDINOMed3D]) -> str:
    """``_S`` of ``nnUNetTrainerDINOMed3D_S``."""
    return trainer.__name__.removeprefix(BASE)


@cache
def trainer_class(name: str) -> type[nnUNetTrainerDINOMed3D]:
    """The class of that name.

    Raises:
        UnknownTrainerError: there is none; the message names what may be meant, and what there is.
    """
    match = _match(name)
    if not match:
        raise UnknownTrainerError(f"There is no trainer {name!r}. {_meant(name)}{_own(name)} {_names()}")
    suffixes = [group for group in match.groups() if group]
    classes = {suffix(trainer): trainer for trainers in SUFFIX_GROUPS.values() for trainer in trainers}
    bases = [classes[group] for group in suffixes]
    if len(bases) < 2:
        return bases[0] if bases else nnUNetTrainerDINOMed3D
    return type(name, tuple(reversed(bases)), {"__module__": __name__, "__doc__": f"Combines {', '.join(suffixes)}."})


def _match(name: str) -> re.Match | None:
    """A name of ours, with a group for each theme."""
    parts = "".join(f"({'|'.join(suffix(trainer) for trainer in trainers)})?" for trainers in SUFFIX_GROUPS.values())
    return re.fullmatch(BASE + parts, name)


def _meant(name: str) -> str:
    """A question for a name whose suffixes are nearly ours, or in another order."""
    if not name.lower().startswith(BASE.lower()):
        return ""
    suffixes = [suffix(trainer) for trainers in SUFFIX_GROUPS.values() for trainer in trainers]
    known = {word[1:].lower(): word for word in suffixes}
    words = name[len(BASE) :].lower().strip("_").split("_")
    found = []
    while words and words != [""]:
        for length in (2, 1):  # S_plus is two
            close = get_close_matches("_".join(words[:length]), known, 1, ALIKE)
            if close:
                found.append(known[close[0]])
                words = words[length:]
                break
        else:
            return ""
    meant = BASE + "".join(sorted(set(found), key=suffixes.index))
    return f"Is {meant} meant? " if _match(meant) else ""  # not where two are of one kind


def _own(name: str) -> str:
    """Advice where the class is the user's."""
    setting = os.environ.get("nnUNet_extTrainer", "")
    folders = shlex.quote(os.pathsep.join(filter(None, [setting, "/folder/of/its/file"])))
    return f"Is it a class of your own? Then export nnUNet_extTrainer={folders}, which is {setting!r} here."


def _names() -> str:
    themes = "; ".join(f"{theme}: {', '.join(map(suffix, trainers))}" for theme, trainers in SUFFIX_GROUPS.items())
    return f"There are {BASE} and, with at most one suffix of each kind, in this order: {themes}."


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
