"""Mail addresses of users, and mail to them."""

import contextlib
from collections.abc import AsyncIterator
from functools import partial

from gatepost.http.app import THROTTLE
from gatepost.http.feature import Feature, Parts
from gatepost.mail import commands, handlers, queries
from gatepost.mail.mailer import MAILER, Mailer
from gatepost.postgres.batches import in_batches
from gatepost.process.periodic import every
from gatepost.sessions import upkeep


@contextlib.asynccontextmanager
async def _open(parts: Parts) -> AsyncIterator[None]:
    await parts.database.read(queries.permitted)  # said here, and not when somebody changes a password
    if not parts.config.has_addresses:
        parts.share(MAILER, Mailer(parts.config, None))
        yield
        return
    # Imported here: what sends mail takes 2 MB.
    from gatepost.mail.outbox.sender import Sender  # noqa: PLC0415

    database, metrics = parts.database, parts.metrics
    sender = Sender(parts.config, database, parts[THROTTLE])
    parts.share(MAILER, Mailer(parts.config, sender))
    for outcome in ("sent", "refused", "given_up", "held_back"):
        name, text = "gatepost_mails_total", "Mail, by what became of it."
        metrics.follow(name, text, partial(getattr, sender, outcome), outcome=outcome)
    waiting, text = "gatepost_mails_waiting", "Mail in the outbox, also of other nodes."
    metrics.follow(waiting, text, lambda: sender.waiting, across="mostrecent")
    oldest, text = "gatepost_mails_oldest_age_seconds", "Age of the oldest mail in the outbox, also of other nodes."
    metrics.follow(oldest, text, lambda: sender.oldest, across="mostrecent")

    async with (
        sender.running(),
        every(upkeep.INTERVAL, sender.look),
        parts.sweeping("emails", partial(in_batches, lambda most: database.write(queries.sweep_unverified, most))),
        parts.sweeping("codes", partial(in_batches, lambda most: database.write(queries.sweep_codes, most))),
    ):
        yield


FEATURE = Feature(
    routes=handlers.routes,
    open=_open,
    commands=commands.register,
    events={
        "email_added": "",
        "email_verified": "",
        "email_primary_changed": "",
        "email_removed": "",
        "email_changes_undone": "the password is gone, and a code for a new one is mailed",
        "mail_given_up": "after a day: `mail` (its kind), `tries`, `error`",
    },
)
