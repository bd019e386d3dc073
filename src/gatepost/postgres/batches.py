"""Work on many rows, a batch for each statement."""

from collections.abc import Awaitable, Callable

# Rows in one statement: a lock held for milliseconds.
BATCH = 1000


async def in_batches(work: Callable[[int], Awaitable[int]]) -> int:
    """Do ``work(most)``, which deals with up to ``most`` rows and says with how many, until few are left.

    The number of rows in all.
    """
    done, batch = 0, BATCH
    while batch == BATCH:
        batch = await work(BATCH)
        done += batch
    return done
