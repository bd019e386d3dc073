"""Jitter: spreads deadlines of things that began together."""

import random

# Not for secrets. A generator of our own, so that seeding the shared one does not change it.
_random = random.Random()  # noqa: S311


def jitter(seconds: float, least: float, most: float) -> float:
    """``seconds`` times something between ``least`` and ``most``."""
    return seconds * _random.uniform(least, most)
