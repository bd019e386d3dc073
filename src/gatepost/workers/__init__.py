"""Several processes that serve one address, under gunicorn: its arbiter forks workers and looks after them.

The arbiter makes the database ready, once for all of them, keeps an embedded one running, and holds the address.

The workers accept from one listening socket. With one each (SO_REUSEPORT, gunicorn's ``reuse_port``) connections
spread just as evenly (measured: 14 to 18 of 32 here, 13 to 19 there), but those that a worker has not yet accepted
are lost when it ends. asyncio accepts all that wait in one turn, so that one worker of two got 28 to 32 of 32: here
it accepts one a turn.

`application` is what is run: it makes ready and tells gunicorn how. `worker` is a process that serves. `_gunicorn` is
what gunicorn does not promise.
"""

from gatepost.workers.application import Workers

__all__ = ["Workers"]
