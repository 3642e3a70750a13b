"""Text from outside (names of cases, paths, messages of libraries), made safe to show."""

from collections.abc import Iterable


def printable(text: object) -> str:
    """The text in one line. Characters that could change a terminal or the order of a line become escapes (``\\n``)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def join_first(names: Iterable[object], limit: int = 5) -> str:
    """The first `limit` names in alphabetical order, and how many more there are; each is printable."""
    shown = sorted(map(printable, names))
    more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more


def shortened(text: str, length: int) -> str:
    """At most `length` characters, the middle left out."""
    half = (length - 3) // 2
    return text if len(text) <= length else f"{text[:half]}...{text[-half:]}"


def plot_text(text: object, length: int = 60) -> str:
    """Text for Matplotlib: a dollar sign starts no TeX, an underscore in front does not hide it from a legend."""
    plain = shortened(printable(text), length).replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain
