"""Who acts on a user, and how each event says so: the administrator, or for a shell ``{"by": "operator"}``."""

from typing import NamedTuple

BY = "CAST(:actor AS uuid), CAST(:ip AS inet), :user_agent"
"""In a statement, the columns ``actor_id, ip, user_agent`` of an event; `Actor.values` has the values."""

NOTE = "jsonb_strip_nulls(jsonb_build_object('by', CAST(:by AS text)))"
"""And what is in its ``detail``."""


class Actor(NamedTuple):
    """Who changes something, for the event. From a shell there is no user to name: ``by`` says so instead."""

    id: str | None
    ip: str | None
    user_agent: str | None
    by: str | None = None

    def values(self) -> dict[str, str | None]:
        """For a statement that records it."""
        return {"actor": self.id, "ip": self.ip, "user_agent": self.user_agent, "by": self.by}


OPERATOR = Actor(None, None, None, by="operator")
