"""Text from outside (names of cases, paths, messages of libraries), fit to be shown in one line."""


def printable(text: object) -> str:
    """In one line, without what could change a terminal or a line's order: that stands as its escape, such as \\n."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
