"""A blocking connection without the deadlines of requests, for commands: psycopg2, as COPY wants it."""

from typing import Any

import psycopg2
import psycopg2.errors

from gatepost.postgres.connection import Dsn, cannot_connect

BadRow = (psycopg2.errors.IntegrityError, psycopg2.errors.DataError)
"""What says that a row is bad, rather than that the database is gone."""
Gone = (psycopg2.OperationalError, psycopg2.InterfaceError, psycopg2.InternalError)
NotPermitted = psycopg2.errors.InsufficientPrivilege


def connect(dsn: Dsn) -> Any:
    """Connect. Raises DatabaseUnavailable."""
    try:
        return psycopg2.connect(
            connect_timeout=5,
            options="-c search_path=pg_catalog -c TimeZone=UTC -c statement_timeout=0 "
            "-c idle_in_transaction_session_timeout=0",
            **dsn.parameters(",".join(dsn.hosts)),
        )
    except psycopg2.OperationalError as error:
        raise cannot_connect(dsn, error) from error


def gone(error: Exception) -> str:
    """That error, in a line."""
    if isinstance(error.__context__, Gone):  # not the error that closing raised after it
        error = error.__context__
    return f"the database does not go on ({str(error).strip().partition(chr(10))[0]})"
