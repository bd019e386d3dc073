"""What can go wrong, in one line."""


class EmbeddedError(Exception):
    """One clear line: what is wrong and what to do."""


def last_lines(text: str) -> str:
    """The end of what a program said, as one line."""
    return " | ".join(text.strip().splitlines()[-4:]) or "(it said nothing)"
