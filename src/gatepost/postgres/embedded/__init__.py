"""Postgres as a child process: for a Gatepost that was given no database of its own.

Who is alive is decided by two flocks. Only Gatepost holds the one on the folder: a second Gatepost, unable to
have it, gives up. Gatepost, the watcher and every process of the server share the one on `<data_dir>/lock`:
whoever gets it knows that all of them are gone and that a postmaster.pid is stale. No pid is ever trusted.

When we are root the server runs as an ordinary user, who may be unable to walk to `data_dir`. On Linux it is
therefore handed the folder as an open descriptor and uses `/proc/self/fd/<n>`, which skips the folders above.

`supervisor` is what others use. It takes the `folder`, finds the `binaries`, has the `cluster` made and runs the
`server`; each of these knows only those before it.
"""

from gatepost.postgres.embedded.errors import EmbeddedError
from gatepost.postgres.embedded.server import Server
from gatepost.postgres.embedded.supervisor import EmbeddedPostgres

__all__ = ["EmbeddedError", "EmbeddedPostgres", "Server"]
