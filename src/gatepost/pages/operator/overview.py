"""`/operator`: what one looks at to see whether all is well."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from aiohttp import web

from gatepost.http.app import CREDENTIALS, DATABASE
from gatepost.mail.mailer import MAILER
from gatepost.pages.acting import Page, Shown
from gatepost.pages.operator import queries
from gatepost.pages.operator.charts import Chart, chart
from gatepost.pages.wording import N_
from gatepost.postgres import schema
from gatepost.postgres.database import Database
from gatepost.sessions.session import Session

# Seconds by which our clock and the database's may differ; and that mail may wait; and events, to be counted.
CLOCK, MAIL, COUNTING = 2, 600, 600

WON, LOST, THROTTLED = ("authn_login_success",), ("authn_login_fail",), ("authn_login_fail_max",)
NEW = ("user_created", "user_imported")
_KINDS = (*WON, *LOST, *THROTTLED, *NEW)


class Span(NamedTuple):
    """A time to look back over: a column of its charts is a ``unit``, read from the counts by ``counts``."""

    title: str
    unit: str
    counts: str
    step: timedelta
    columns: int


SPANS = (
    Span(N_("The last hour"), "minute", "minute", timedelta(minutes=1), 60),
    Span(N_("The last day"), "hour", "hour", timedelta(hours=1), 24),
    Span(N_("The last month"), "day", "hour", timedelta(days=1), 30),
)


async def _overview(request: web.Request, _session: Session) -> Shown:
    database = request.app[DATABASE]
    before = time.time()
    state = await database.read(queries.state)
    drift = abs(state.now.timestamp() - (before + time.time()) / 2)
    spans = await asyncio.gather(*(_charts(database, span, state.now) for span in SPANS))
    waiting, oldest = request.app[MAILER].backlog
    return {
        "spans": spans,
        "numbers": {
            "live_sessions": state.live_sessions,
            "users": state.users,
            "hashes": request.app[CREDENTIALS].hasher.waiting,
            "mails": waiting,
        },
        "wrong": [
            *([N_("The schema is not the one of this release.")] if state.schema != schema.newest() else []),
            *([N_("The clock of this machine and that of the database differ.")] if drift > CLOCK else []),
            *([N_("Mail has been waiting for more than ten minutes.")] if oldest > MAIL else []),
            *([N_("Events of more than ten minutes are not counted yet.")] if state.lag > COUNTING else []),
        ],
    }


async def _charts(database: Database, span: Span, now: datetime) -> dict[str, Any]:
    begin = _floor(now.astimezone(UTC), span) - span.step * (span.columns - 1)
    found = await database.read(queries.counts, unit=span.unit, span=span.counts, since=begin, kinds=_KINDS)
    gauges = await database.read(queries.peaks, unit=span.unit, span=span.counts, since=begin)
    by_kind: dict[str, dict[datetime, int]] = defaultdict(dict)
    for at, kind, number in (*found, *gauges):
        by_kind[kind][at.astimezone(UTC)] = number

    def drawn(*series: Sequence[str]) -> Chart:
        added = [
            {at: sum(by_kind[kind].get(at, 0) for kind in kinds) for kind in kinds for at in by_kind[kind]}
            for kinds in series
        ]
        return chart(added, begin, span.step, span.columns)

    return {
        "title": span.title,
        "logins": drawn(WON, LOST),
        "throttled": drawn(THROTTLED),
        "new": drawn(NEW),
        "sessions": drawn(["live_sessions"]),
        "hashes": drawn(["hashes_waiting"]),
    }


def _floor(moment: datetime, span: Span) -> datetime:
    if span.unit == "minute":
        return moment.replace(second=0, microsecond=0)
    hour = moment.replace(minute=0, second=0, microsecond=0)
    return hour if span.unit == "hour" else hour.replace(hour=0)


OVERVIEW = Page("/operator", "operator/overview.html", _overview, role="admin")

routes = [OVERVIEW.route()]
