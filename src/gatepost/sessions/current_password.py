"""The current password of whoever is signed in, in SQL: what checking it needs, and how the statement that acts
judges it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from gatepost.errors import ConfirmationRequired, Unauthorized, WrongPassword
from gatepost.postgres.database import Connection, Statement
from gatepost.security.credentials import Setting
from gatepost.security.throttle import TAKE, Bucket, Taken, judge, parameters
from gatepost.sessions.queries import SettingChanged


class Origin(NamedTuple):
    """Where a request came from, for its event."""

    handle: str | None
    ip: str | None
    user_agent: str | None


class Secret(NamedTuple):
    """How a user's password was hashed; without one, ``canonical`` says what it seems to be."""

    canonical: str
    setting: Setting | None


class Current(NamedTuple):
    """The digest that a given password has under ``setting``, and what the attempt took from the throttles.

    ``fresh``: seconds in which a user with a second factor must have confirmed who it is.
    """

    setting: Setting
    digest: bytes
    fresh: int
    taken: Taken = Taken()

    def parameters(self) -> dict[str, Any]:
        """For a statement with `MINE` and `given_back` in it."""
        return {
            "setting": self.setting.phc,
            "digest": self.digest,
            "fresh": self.fresh,
            **self.taken.parameters(),
        }


_FIND_SECRET = Statement(f"""
    SELECT t.*, u.canonical, p.setting, p.pepper, p.norm
    FROM {TAKE} t
        LEFT JOIN gatepost.users u ON u.id = :id LEFT JOIN gatepost.passwords p ON p.user_id = u.id
""")


async def find_secret(connection: Connection, user_id: str, buckets: Sequence[Bucket]) -> tuple[Secret | None, Taken]:
    """Take from the throttles, and what checking this user's password needs: one round trip.

    May run twice, as `throttle.take` says. Raises TooManyAttempts.
    """
    row = await _FIND_SECRET.first(connection, id=user_id, **parameters(buckets))
    assert row is not None
    taken, (canonical, *setting) = judge(buckets, row)
    return Secret(canonical, Setting(*setting) if setting[0] else None) if canonical else None, taken


# The user's row is locked first. A login, a change and a disabling of one user therefore run one after the other, and
# each sees what the one before committed. The session's row is locked too, for the same reason with a logout. `mine`
# is empty when the session has ended meanwhile. The password alone is not enough for a user with a second factor.
MINE = """
    SELECT FROM gatepost.users WHERE id = :id FOR NO KEY UPDATE;
    SELECT FROM gatepost.sessions WHERE user_id = :id AND handle = :handle FOR KEY SHARE;

    WITH mine AS (
        SELECT u.id, c.confirmed, c.has_factor,
            c.confirmed AND coalesce(p.digest = :digest AND p.setting = :setting, false) AS matches,
            coalesce(p.setting = :setting, true) AS unchanged
        FROM gatepost.users u
            JOIN gatepost.sessions s ON s.user_id = u.id AND s.epoch = u.epoch AND s.handle = :handle
            LEFT JOIN gatepost.passwords p ON p.user_id = u.id
            CROSS JOIN LATERAL (
                SELECT f.has_factor, NOT f.has_factor OR 'mfa' = ANY (s.amr)
                    AND coalesce(s.confirmed_at, s.created_at) > clock_timestamp() - make_interval(secs => :fresh)
                    AS confirmed
                FROM (SELECT gatepost.second_factors(u.id) IS NOT NULL AS has_factor) AS f
            ) AS c
        WHERE u.id = :id AND u.disabled_at IS NULL AND s.expires_at > clock_timestamp()
    ),
"""
"""For a statement that acts on the current password; `decide` judges the row that it gives."""


def decide(row: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """The rest of a row that begins with ``confirmed``, ``unchanged`` and ``matches`` of ``mine``.

    Raises Unauthorized, ConfirmationRequired, WrongPassword, SettingChanged.
    """
    if row is None:
        raise Unauthorized
    confirmed, unchanged, matches, *rest = row
    if not confirmed:
        raise ConfirmationRequired
    if not unchanged:
        raise SettingChanged
    if not matches:
        raise WrongPassword
    return tuple(rest)
