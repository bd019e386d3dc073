"""Through Debian's Postfix, with STARTTLS, into a mailbox."""

import contextlib
import grp
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gatepost.postgres.database import Dsn
from tests.gatepost_process import gatepost, until
from tests.received_mail import Received
from tests.smtp_server import certificate
from tests.test_server import environment_of

POSTFIX = shutil.which("postfix", path=f"{os.environ['PATH']}:/usr/sbin")
REQUIRED = os.environ.get("REQUIRE_POSTFIX") == "1"

MASTER = """
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
anvil unix - - n - 1 anvil
virtual unix - n n - - virtual
error unix - - n - - error
retry unix - - n - - error
postlog unix-dgram n - n - 1 postlogd
"""

MAIN = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/log
maillog_file_prefixes = {folder}
mail_owner = postfix
setgid_group = postdrop
myhostname = mail.test
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
virtual_mailbox_domains = example.org
virtual_mailbox_maps = static:inbox/
virtual_mailbox_base = {folder}
virtual_minimum_uid = 1
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
smtpd_tls_cert_file = {folder}/ca.pem
smtpd_tls_key_file = {folder}/key.pem
smtpd_tls_security_level = encrypt
smtpd_relay_restrictions = permit_mynetworks, reject
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture
def postfix() -> Iterator[tuple[int, Path]]:
    """Its port, and a folder with its certificate and the mailbox ``inbox``."""
    if POSTFIX is None or os.geteuid() != 0:
        if REQUIRED:
            pytest.fail("REQUIRE_POSTFIX=1, but there is no Postfix, or we are not root")
        pytest.skip("there is no Postfix here, or we are not root, as which it starts")
    # Not below pytest's own folder, which only root may enter: Postfix' processes give up root.
    with tempfile.TemporaryDirectory(prefix="gatepost-postfix-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with started(folder) as port:
            yield port, folder


@contextlib.contextmanager
def started(folder: Path) -> Iterator[int]:
    """Postfix with its files in this folder; its port."""
    assert POSTFIX is not None
    certificate(folder)
    user, group = pwd.getpwnam("postfix"), grp.getgrnam("postdrop")
    port = free_port()
    for name in ("queue", "data", "inbox"):
        (folder / name).mkdir()
    for name in ("data", "inbox"):
        os.chown(folder / name, user.pw_uid, group.gr_gid)
    (folder / "main.cf").write_text(MAIN.format(folder=folder, uid=user.pw_uid, gid=group.gr_gid))
    (folder / "master.cf").write_text(MASTER.format(port=port))

    def run(command: str) -> str:
        done = subprocess.run(
            [POSTFIX, "-c", str(folder), command], capture_output=True, text=True, timeout=120, check=False
        )
        return done.stdout + done.stderr

    said = run("start")
    try:

        def listens() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
                return sock.recv(100).startswith(b"220")
            return False

        assert until(listens), said
        yield port
    finally:
        run("abort")


def test_a_mail_goes_through_postfix_into_a_mailbox(postfix: tuple[int, Path], dsn: Dsn, tmp_path: Path) -> None:
    port, folder = postfix
    mail = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "TLS_CA": str(folder / "ca.pem"),
        "FROM_ADDRESS": "Bäckerei Müller <accounts@example.org>",
        "SERVICE": "Bäckerei Müller",
    }
    variables = environment_of(dsn) | {f"GATEPOST_MAIL__{name}": value for name, value in mail.items()}
    done = gatepost("mail", "test", "ada@example.org", "--language", "de", cwd=tmp_path, **variables)
    assert (done.returncode, done.stdout) == (0, "Accepted for ada@example.org.\n"), done.stderr
    [file] = until(lambda: list((folder / "inbox" / "new").glob("*")) if (folder / "inbox" / "new").is_dir() else [])
    received = Received(file.read_bytes())
    assert received.subject == "Bäckerei Müller kann Mail senden"
    assert "Dies ist ein Test." in received.text
    assert "with ESMTPS" in str(received.message["Received"])  # with TLS (RFC 3848)
    assert str(received.message["Return-Path"]) == "<accounts@example.org>"
