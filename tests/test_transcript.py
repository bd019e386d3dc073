"""docs/transcript.md, run as it stands: what it prints is what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

from gatepost.db import Dsn
from tests.gatepost_process import environment, running
from tests.test_server import OPEN, environment_of

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"```(sh|text)\n(.*?)```", re.DOTALL)


def test_the_walk_through_prints_what_it_says(dsn: Dsn, tmp_path: Path) -> None:
    script, expected = "set -euo pipefail\n", ""
    for kind, text in BLOCK.findall((ROOT / "docs" / "transcript.md").read_text("utf-8")):
        if kind == "sh":
            script += text
        else:
            expected += text
    with running(tmp_path, **environment_of(dsn), **OPEN) as process:
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=ROOT,
            env=environment(
                **environment_of(dsn), URL=process.url, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            ),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert (done.stdout, done.returncode) == (expected, 0), done.stderr
