"""docs/transcript.md, run as it stands: what it prints is what it says."""

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from gatepost.postgres.database import Dsn
from tests.gatepost_process import environment, running
from tests.test_forward_auth import free_port, nginx
from tests.test_forward_auth import running as running_proxy
from tests.test_server import OPEN, environment_of

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"```(sh|text)\n(.*?)```", re.DOTALL)


class TellsName(BaseHTTPRequestHandler):
    """The application behind the proxy."""

    def do_GET(self) -> None:
        """Answer with the name that the proxy tells."""
        name = self.headers["Remote-User"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(name) + 1))
        self.end_headers()
        self.wfile.write(name + b"\n")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def application() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), TellsName) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_the_walk_through_prints_what_it_says(dsn: Dsn, tmp_path: Path) -> None:
    mail = str(tmp_path / "mail")
    script, expected = "set -euo pipefail\n", ""
    for kind, text in BLOCK.findall((ROOT / "docs" / "transcript.md").read_text("utf-8")):
        if kind == "sh":
            script += text
        else:
            expected += text
    settings = {
        "GATEPOST_MAIL__DIRECTORY": mail,
        "GATEPOST_WEBSERVER__PUBLIC_URL": "http://localhost:8000",
        "GATEPOST_FACTORS__REQUIRED_FOR": "treasurer",
    }
    with (
        running(tmp_path, **environment_of(dsn), **OPEN, **settings) as process,
        application() as backend,
        free_port() as proxy,
    ):
        command = nginx(tmp_path, proxy, int(process.url.rpartition(":")[2]), backend)
        with running_proxy(command, tmp_path, proxy):
            variables = {
                **environment_of(dsn),
                "URL": process.url,
                "PROXY": f"http://127.0.0.1:{proxy}",
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "TMPDIR": str(tmp_path),
                "MAIL": mail,
            }
            done = subprocess.run(
                ["bash", "-c", script],
                cwd=ROOT,
                env=environment(**variables),
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )
    assert (done.stdout, done.returncode) == (expected, 0), done.stderr
