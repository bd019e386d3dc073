"""Jitter: what began together is not due together."""

import random

# No secret; of our own, since whoever seeds the common one means to have it.
_random = random.Random()  # noqa: S311


def jitter(seconds: float, least: float, most: float) -> float:
    """``seconds`` times something between ``least`` and ``most``."""
    return seconds * _random.uniform(least, most)
