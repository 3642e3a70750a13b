"""What comes from outside (names of cases, labels, models, folders), made fit for the place where it is shown."""

import os
import re
from pathlib import Path

from nnunetv2_dinomed3d.text import printable

FOLDERS = ("nnUNet_results", "nnUNet_preprocessed", "nnUNet_raw")


def shortened(text: str, length: int) -> str:
    """At most so many characters, the middle left out."""
    half = (length - 3) // 2
    return text if len(text) <= length else f"{text[:half]}...{text[-half:]}"


def drawn(text: object, length: int = 60) -> str:
    """For Matplotlib: a dollar is no TeX, an underscore in front does not hide it from a legend."""
    plain = shortened(printable(text), length).replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain


def cell(value: object) -> object:
    """For CSV: text that a spreadsheet would take for a formula begins with an apostrophe; numbers stay numbers."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip()[:1] in tuple("=+-@\uff1d\uff0b\uff0d\uff20") else text


def markdown(text: str) -> str:
    """For a line or cell of Markdown (GitHub's too): nothing in it is markup, HTML, TeX or a link."""
    text = re.sub(r"([\\`*~$])", r"\\\1", printable(text))
    text = re.sub(r"<(?=[A-Za-z/!?])", r"\\<", text)
    text = re.sub(r"\](?=[(\[:])", r"\\]", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word it is no emphasis
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text)
    text = re.sub(r":(?=//)", r"\\:", text)
    return re.sub(r"\b(www)\.", r"\1\\.", text, flags=re.IGNORECASE)


def markdown_line(text: str) -> str:
    """Likewise, where a line begins: it is no list, heading, rule or quotation."""
    text = re.sub(r"^(\s*)([-+#=>])", r"\1\\\2", markdown(text))
    return re.sub(r"^(\s*[0-9]+)([.)])", r"\1\\\2", text).lstrip()


def place(path: Path) -> str:
    """Where a file is, without what lies above: nobody's name or machine.

    It begins with nnU-Net's folder, such as ``nnUNet_results/Dataset004_Hippocampus``, or in the current one; of any
    other path only its last part stays.
    """
    whole = Path(os.path.abspath(path))
    for name in FOLDERS:
        if value := os.environ.get(name):
            root = Path(os.path.abspath(value))
            if whole.is_relative_to(root):
                return (name / whole.relative_to(root)).as_posix()
    here, home = Path.cwd(), Path(os.path.expanduser("~"))
    if whole != here and whole.is_relative_to(here) and not (home != here and home.is_relative_to(here)):
        return whole.relative_to(here).as_posix()
    return "." if whole == here else "~" if whole == home else f".../{whole.name}"


def without_places(word: str) -> str:
    """A word of a command line; a path in it that is absolute, or goes up, as `place` has it."""
    match = re.fullmatch(r"((?:-\w|[^/=]+=)?)((?:/|~|\.\./).*)", word, re.DOTALL)
    return match[1] + place(Path(match[2])) if match else word
