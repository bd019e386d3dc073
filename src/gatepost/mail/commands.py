"""`gatepost mail …`: trying, seeing and watching mail from a shell."""

import asyncio
import uuid
from datetime import UTC, datetime
from typing import Annotated

import typer

from gatepost.config import Config
from gatepost.config.mail import LANGUAGES
from gatepost.mail.outbox import queries
from gatepost.mail.outbox.samples import SAMPLES
from gatepost.process.console import (
    CommandError,
    ConfigOption,
    JsonOption,
    complain,
    print_json,
    print_table,
    say,
    with_database,
)
from gatepost.security import email
from gatepost.sessions.session import timestamp

LanguageOption = Annotated[str | None, typer.Option("--language", help="One of en, de, fr, es.", show_default=False)]


def send_test(address: str, config: ConfigOption = None, *, language: LanguageOption = None) -> None:
    """Send a test mail to ADDRESS at once, past the outbox, and say what the server says."""
    # Imported here and below: a process that sends nothing does without what sending needs (2 MB).
    from gatepost.mail.outbox.message import Composer, Envelope  # noqa: PLC0415
    from gatepost.mail.outbox.templating import Templates  # noqa: PLC0415
    from gatepost.mail.outbox.transports import Away, Refused, transport  # noqa: PLC0415

    settings = Config.load(config).mail
    if not settings.sends:
        raise CommandError("there is no way for mail to leave: give mail.host or mail.directory")
    try:
        to = email.parse(address).written
    except email.InvalidAddress as error:
        raise CommandError(f"ADDRESS {error}") from None
    language = _language(language, settings.language)
    content = Templates(settings).render("test", language, SAMPLES["test"])
    envelope = Envelope(to, str(uuid.uuid4()), datetime.now(UTC), language)
    way = transport(settings)

    async def send() -> None:
        async with way.open() as connection:
            await connection.send(Composer(settings).compose(content, envelope), to, envelope.mail_id)

    try:
        asyncio.run(send())
    except (Away, Refused) as error:
        raise CommandError(f"not sent: {error}") from None
    say(f"Accepted for {to}." if settings.host else f"Written to {settings.directory}.")


def preview(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(SAMPLES)}.")],
    config: ConfigOption = None,
    *,
    language: LanguageOption = None,
    html: Annotated[bool, typer.Option("--html", help="The HTML in place of the text.")] = False,
) -> None:
    """Print a mail with sample values, from your own templates where there are some."""
    from gatepost.mail.outbox.templating import Templates  # noqa: PLC0415

    settings = Config.load(config).mail
    if kind not in SAMPLES:
        raise CommandError(f"{kind!r} is no mail; there are {', '.join(SAMPLES)}")
    page = f"{settings.page}#code={'0' * 32}" if settings.page else None
    content = Templates(settings).render(kind, _language(language, settings.language), SAMPLES[kind], page)
    shown = content.html if html else f"Subject: {content.subject}\n\n{content.text}"
    for line in shown.splitlines():
        say(line)


def queue(
    config: ConfigOption = None,
    *,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List mail that waits, the oldest first: how often it was tried, and why it did not leave."""
    found = with_database(Config.load(config), lambda database: database.read(queries.waiting, limit + 1))
    shown = found[:limit]
    if as_json:
        rows = [
            mail._asdict() | {"created_at": timestamp(mail.created_at), "due_at": timestamp(mail.due_at)}
            for mail in shown
        ]
        print_json({"mails": rows, "more": len(found) > len(shown)})
        return
    print_table(
        ["kind", "to", "since", "tries", "next", "why"],
        [
            (
                m.kind,
                m.address or "",
                _when(m.created_at),
                str(m.tries),
                _when(m.due_at),
                m.error or "",
            )
            for m in shown
        ],
    )
    if len(found) > len(shown):
        complain(f"There are more than {limit}: see --limit.")


def _language(given: str | None, default: str) -> str:
    """The language that was asked for. Raises CommandError for one that we do not have."""
    if given is not None and given not in LANGUAGES:
        raise CommandError(f"{given!r} is no language of ours; there are {', '.join(LANGUAGES)}")
    return given or default


def _when(moment: datetime) -> str:
    return timestamp(moment)[:19]


def register(root: typer.Typer) -> None:
    """Add `gatepost mail`."""
    mail = typer.Typer(help="Mail: try it, see it, watch the queue.", no_args_is_help=True)
    mail.command("test")(send_test)
    mail.command("preview")(preview)
    mail.command("queue")(queue)
    root.add_typer(mail, name="mail")
