"""A process that owns an embedded Postgres, for test_embedded.py to kill.

Imports first and becomes `uid` then: an ordinary user may be unable to reach the interpreter's own files.
Tells one line of JSON per step and goes on at every line it reads.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psycopg2

from gatepost.postgres.embedded import EmbeddedError, EmbeddedPostgres, Server


def tell(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def count(server: Server) -> int:
    connection = psycopg2.connect(
        host=server.socket_dir,
        port=server.port,
        user=server.user,
        password=server.password,
        dbname=server.database,
    )
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_class WHERE relname = 'kept'")
        found = int(cursor.fetchone()[0])
    connection.close()
    return found


def own(data_dir: Path, binaries: Path | None, *, with_children: bool) -> None:
    postgres = EmbeddedPostgres(data_dir, binaries=binaries)
    try:
        server = postgres.start(timeout=120)
    except EmbeddedError as error:
        tell(error=str(error))
        return
    children = []
    if with_children:  # neither may hold on to what keeps the server alive
        children.append(subprocess.Popen(["/bin/sleep", "300"], stdout=subprocess.DEVNULL, close_fds=False).pid)
        if (child := os.fork()) == 0:
            os.closerange(0, 3)
            signal.pause()
        children.append(child)
    try:
        tell(pid=server.pid, socket_dir=server.socket_dir, children=children)
        sys.stdin.readline()
    except KeyboardInterrupt:
        tell(alive=postgres.alive)
        sys.stdin.readline()
    postgres.stop()
    tell(alive=postgres.alive)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["own", "own-with-children", "attach", "knock"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--binaries", type=Path)
    parser.add_argument("--uid", type=int)
    args = parser.parse_args()
    if args.uid:
        os.setgroups([])
        os.setgid(args.uid)
        os.setuid(args.uid)
    if args.what == "attach":
        server = EmbeddedPostgres.attach(args.path)
        tell(pid=server and server.pid, count=server and count(server))
    elif args.what == "knock":
        with socket.socket(socket.AF_UNIX) as knocking:
            try:
                knocking.connect(str(args.path))
                tell(refused=False)
            except PermissionError:
                tell(refused=True)
    else:
        own(args.path, args.binaries, with_children=args.what == "own-with-children")


if __name__ == "__main__":
    # A suite that runs in the background of a shell has inherited that Ctrl-C is passed over.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
