"""Text from outside (names of cases, labels, models and folders), escaped for the place where it is shown."""

import os
import re
from pathlib import Path

from nnunetv2_dinomed3d.nnunet_files import FOLDERS
from nnunetv2_dinomed3d.text import printable


def csv_cell(value: object) -> object:
    """A value for CSV. Text that a spreadsheet would take for a formula gets an apostrophe; numbers stay numbers."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip()[:1] in tuple("=+-@\uff1d\uff0b\uff0d\uff20") else text


def markdown(text: str) -> str:
    """Text for a line or cell of Markdown (GitHub's too): no markup, HTML, TeX or link takes effect."""
    text = re.sub(r"([\\`*~$])", r"\\\1", printable(text))
    text = re.sub(r"<(?=[A-Za-z/!?])", r"\\<", text)
    text = re.sub(r"\](?=[(\[:])", r"\\]", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word it is no emphasis
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text)
    text = re.sub(r":(?=//)", r"\\:", text)
    return re.sub(r"\b(www)\.", r"\1\\.", text, flags=re.IGNORECASE)


def markdown_line(text: str) -> str:
    """Text for the beginning of a line of Markdown: it starts no list, heading, rule or quotation either."""
    text = re.sub(r"^(\s*)([-+#=>])", r"\1\\\2", markdown(text))
    return re.sub(r"^(\s*[0-9]+)([.)])", r"\1\\\2", text).lstrip()


def public_path(path: Path) -> str:
    """A path without the part that names a user or a machine.

    It is relative to nnU-Net's folder (``nnUNet_results/Dataset004_Hippocampus``) or to the current one. Of any other
    path, only the last part stays.
    """
    whole = Path(os.path.abspath(path))
    for name in reversed(FOLDERS):
        if value := os.environ.get(name):
            root = Path(os.path.abspath(value))
            if whole.is_relative_to(root):
                return (name / whole.relative_to(root)).as_posix()
    here, home = Path.cwd(), Path(os.path.expanduser("~"))
    if whole != here and whole.is_relative_to(here) and not (home != here and home.is_relative_to(here)):
        return whole.relative_to(here).as_posix()
    return "." if whole == here else "~" if whole == home else f".../{whole.name}"


def public_word(word: str) -> str:
    """A word of a command line, in which a path that is absolute or leads upwards is as `public_path` has it."""
    match = re.fullmatch(r"((?:-\w|[^/=]+=)?)((?:/|~|\.\./).*)", word, re.DOTALL)
    return match[1] + public_path(Path(match[2])) if match else word
