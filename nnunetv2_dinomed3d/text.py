"""Text from outside (names of cases, paths, messages of libraries), fit to be shown in one line."""


def printable(text: str) -> str:
    """The text with its control characters escaped (a line break as ``\\n``), which could otherwise pass for lines."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
