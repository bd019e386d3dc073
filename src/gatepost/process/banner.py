"""The banner that is printed at start."""

from gatepost.config import Config
from gatepost.postgres.connection import Dsn
from gatepost.process.sockets import in_url
from gatepost.security.credentials import share


def welcome(config: Config, dsn: Dsn, port: int, operators_port: int | None, hash_kib: int) -> str:
    """Where the server listens, where the data lies, which limits apply, and how to try it.

    ``hash_kib``: memory that one hash takes at most.
    """
    webserver, db = config.webserver, config.db
    url = f"http://{in_url(webserver.host)}:{port}"
    data = (
        f"embedded Postgres in {db.data_dir.resolve()}"
        if db.embedded
        else f"{dsn.database} on {','.join(dsn.hosts)}:{dsn.port}"
    )
    lines = [f"Gatepost listens on {url}", f"Data: {data}", _bounds(config, hash_kib)]
    if operators_port is not None:
        lines += [f"Metrics, health, admin: http://{in_url(webserver.operator_host)}:{operators_port}"]
    if config.pages.enabled:
        lines += [f"Pages: {webserver.public_url or url}"]
    credentials = """'{"username": "ada", "password": "correct horse battery"}'"""
    lines += [
        "",
        f"Register:  curl -H 'Content-Type: application/json' -d {credentials} {url}/account"
        if config.accounts.registration == "open"
        else "Add a user: gatepost user add ada",
        f"Log in:    curl -d {credentials} {url}/user",
        f"Who am I:  curl -H 'Authorization: SESSION_ID' {url}/user",
        f"Log out:   curl -X DELETE -H 'Authorization: SESSION_ID' {url}/user",
    ]
    return "\n".join(lines)


def _bounds(config: Config, hash_kib: int) -> str:
    """Hashes at once and the memory they take at most, of all processes together."""
    workers, passwords = config.webserver.workers, config.passwords
    threads = sum(share(passwords, worker, workers).threads or 1 for worker in range(workers))
    waiting = f"{passwords.queue} may wait, at most {passwords.queue_timeout:g} s"
    hashing = f"Hashing: {threads} at once in at most {-(-threads * hash_kib // 1024)} MiB; {waiting}"
    return f"{hashing}; {workers} processes, {workers * config.db.pool_size} connections" if workers > 1 else hashing
