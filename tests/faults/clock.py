"""A process whose clock is not that of the others, with libfaketime. Only the time of day: a timer is a timer."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HOUR = 3600


def faketime(file: Path) -> dict[str, str]:
    """Variables for a process whose clock is off by what `set_off` has written, a second later at most.

    Skips the test where there is no libfaketime; with REQUIRE_FAKETIME=1 fails it.
    """
    if shutil.which("faketime") is None:
        why = "no faketime is installed (on Debian: apt install faketime)"
        if os.environ.get("REQUIRE_FAKETIME") == "1":
            pytest.fail(why)
        pytest.skip(why)
    library = subprocess.run(
        ["faketime", "-m", "-f", "+0", "printenv", "LD_PRELOAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    set_off(file, 0)
    return {
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_RESET": "1",
    }


def set_off(file: Path, seconds: int) -> None:
    """Put the clock so many seconds forward."""
    new = file.with_suffix(".new")
    new.write_text(f"{seconds:+d}\n")
    new.replace(file)  # whole, whenever it is read
