"""What mail says, in every language, and what operators do about it."""

import json
import re
from datetime import UTC, datetime
from email import message_from_bytes
from email.policy import strict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import html5lib
import pytest
from pydantic import ValidationError

from gatepost.config import Config, ConfigError, MailConfig
from gatepost.config.mail import LANGUAGES
from gatepost.mail.outbox.message import Composer, Envelope
from gatepost.mail.outbox.samples import SAMPLES
from gatepost.mail.outbox.templating import Templates
from gatepost.postgres.database import Dsn
from tests.conftest import rows
from tests.gatepost_process import gatepost
from tests.received_mail import Received
from tests.test_server import environment_of

LINK = f"https://app.example/account#recovery={'0' * 32}&email=1"
EVERY_MAIL = [(kind, language) for kind in SAMPLES for language in LANGUAGES]


class Text(HTMLParser):
    """All text outside of `style` and `title`, and where links lead: another reader of HTML than html5lib."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.links: list[str | None] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"br", "meta"}:
            self.open.append(tag)
        if tag == "a":
            self.links.append(dict(attrs)["href"])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "title" not in self.open:
            self.words += data.split()


@pytest.mark.parametrize("link", [None, LINK])
@pytest.mark.parametrize(("kind", "language"), EVERY_MAIL)
def test_every_mail_says_the_same_as_text_and_as_html(kind: str, language: str, link: str | None) -> None:
    content = Templates(MailConfig()).render(kind, language, SAMPLES[kind], link if "code" in SAMPLES[kind] else None)
    html5lib.HTMLParser(strict=True).parse(content.html)
    html = Text(content.html)
    assert html.open == []
    assert html.words == [*content.subject.split(), *content.text.split()]
    assert html.links == ([link] if link and "code" in SAMPLES[kind] else [])
    assert f'<html lang="{language}">' in content.html
    assert not re.search(r"\n{3}|^\s|{|}", content.text)
    assert "src=" not in content.html  # nothing is loaded, so nobody is told that it was read


@pytest.mark.parametrize("kind", SAMPLES)
def test_no_two_languages_say_the_same(kind: str) -> None:
    templates = Templates(MailConfig())
    contents = [templates.render(kind, language, SAMPLES[kind]) for language in LANGUAGES]
    assert len({content.subject for content in contents}) == len({content.text for content in contents}) == 4


def test_a_change_of_addresses_says_which() -> None:
    templates = Templates(MailConfig())
    for language in LANGUAGES:
        said = {
            templates.render("email_changed", language, SAMPLES["email_changed"] | {"change": change}).text
            for change in ("added", "primary", "removed")
        }
        assert len(said) == 3


@pytest.mark.parametrize("service", ["Gatepost", "Bäckerei Müller & Söhne", "例え " * 20])
@pytest.mark.parametrize(("kind", "language"), [("recovery", "en"), ("recovery", "fr"), ("test", "de")])
def test_a_mail_is_read_as_it_was_meant(kind: str, language: str, service: str) -> None:
    config = MailConfig(service=service, from_address=f"{'Müller' if 'ü' in service else 'Example'} <a@example.org>")
    values = SAMPLES[kind] | ({"username": "ada<b>&amp;c\N{PILE OF POO}"} if kind == "recovery" else {})
    content = Templates(config).render(kind, language, values)
    envelope = Envelope("ada@example.org", "0b5e", datetime(2026, 11, 28, 12, tzinfo=UTC), language)
    wire = Composer(config).compose(content, envelope)
    assert wire.isascii()
    assert all(len(line) <= 998 for line in wire.split(b"\r\n"))
    assert b"\n" not in wire.replace(b"\r\n", b"")
    message_from_bytes(wire, policy=strict)  # raises for what is no mail
    mail = Received(wire)
    assert mail.subject == content.subject
    assert mail.text == content.text
    assert mail.html.rstrip() == content.html.rstrip()
    assert str(mail.message["From"]) == config.from_address
    assert mail.message["Date"].datetime == envelope.created_at
    assert mail.message["Message-ID"] == "<0b5e@example.org>"
    if kind == "recovery":
        assert "ada<b>&amp;c" in mail.text
        assert "ada&lt;b&gt;&amp;amp;c" in mail.html


# ------------------------------------------------------------------------------------------- own templates


def test_templates_are_replaced_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "recovery.de.txt").write_text("Subject: Ihr Code\n\nHallo {{ username }}:\n{{ code }}\n", "utf-8")
    (tmp_path / "test.en.html").write_text("<!DOCTYPE html><title>{{ subject }}</title><p>own words", "utf-8")
    templates = Templates(MailConfig(templates=tmp_path))
    german = templates.render("recovery", "de", SAMPLES["recovery"])
    assert (german.subject, german.text) == ("Ihr Code", "Hallo ada:\n7KQ2-M9XD\n")
    assert "<strong" in german.html
    assert templates.render("recovery", "en", SAMPLES["recovery"]).subject.startswith("Choose")
    test = templates.render("test", "en", {})
    assert test.html.endswith("<p>own words")
    assert "This is a test" in test.text


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("recovery.en.txt", "Subject: x\n\n{{ passwort }}\n", "recovery.en: 'passwort' is undefined"),
        ("recovery.en.txt", "Subject: x\n\n{% if %}\n", "recovery.en: "),
        ("recovery.en.txt", "no subject\n\nx\n", "must begin with `Subject: …`"),
        ("recovery.en.txt", "Subject: x\nBcc: eve@example.org\n\nx\n", "must begin with `Subject: …`"),
        ("recovery.en.txt", "Subject: " + "x" * 201 + "\n\nx\n", "at most 200 characters"),
        ("recovery.it.txt", "Subject: x\n\nx\n", "is no mail of ours"),
        ("layout.html", "{{ nothing }}", "'nothing' is undefined"),
    ],
)
def test_a_template_with_a_mistake_is_told_before_anything_starts(
    dsn: Dsn, tmp_path: Path, name: str, text: str, said: str
) -> None:
    folder = tmp_path / "templates"
    folder.mkdir()
    (folder / name).write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=re.escape(said)):
        Templates(MailConfig(templates=folder))
    if name == "layout.html":
        variables = {"GATEPOST_MAIL__DIRECTORY": "mail", "GATEPOST_MAIL__TEMPLATES": str(folder)}
        done = gatepost("run", cwd=tmp_path, **environment_of(dsn), **variables)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert said in done.stderr


def test_a_folder_of_templates_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        Templates(MailConfig(templates=tmp_path / "nowhere"))


# ------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"from_address": "nobody"}, "must be an address"),
        ({"from_address": "a@example.org\nBcc: b@example.org"}, "must be an address"),
        ({"from_address": "A <a@example.org>, B <b@example.org>"}, "must be an address"),
        ({"host": "smtp.example.org", "from_address": "a@example.org", "port": 465}, "port 465 is for tls"),
        ({"host": "h", "from_address": "a@example.org", "port": 587, "security": "tls"}, "port 587 is for starttls"),
        ({"host": "h", "from_address": "a@example.org", "port": 25, "security": "none"}, None),
        ({"host": "h", "directory": "x"}, "exclude each other"),
        ({"user": "u", "password": "p"}, "host must be given too"),
        ({"host": "h", "from_address": "a@example.org", "user": "u"}, "must be given together"),
        (
            {"host": "h", "port": 1025, "security": "none", "from_address": "a@b.org", "user": "u", "password": "p"},
            "as plain text",
        ),
        ({"host": "smtp.example.org"}, "from_address must be given"),
        ({"page": "app.example"}, "must be an address of a page"),
        ({"page": "https://app.example/#x"}, "without a #"),
        ({"page": "javascript:alert(1)"}, "must be an address of a page"),
        ({"service": "two\nlines"}, "must be one line"),
        ({"security": "ssl"}, "Input should be"),
        ({"language": "it"}, "Input should be"),
        ({"connections": 0}, "greater than or equal to 1"),
    ],
)
def test_what_cannot_send_is_said_at_the_start(values: dict[str, Any], said: str | None) -> None:
    if said is None:
        MailConfig.model_validate(values)
        return
    with pytest.raises(ValidationError, match=re.escape(said)):
        MailConfig.model_validate(values)


def test_required_addresses_need_a_way_for_mail_to_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GATEPOST_ACCOUNTS__EMAIL", "required")
    with pytest.raises(ConfigError, match="is required, so mail"):
        Config.load()
    monkeypatch.setenv("GATEPOST_MAIL__DIRECTORY", "mail")
    assert Config.load().has_addresses
    monkeypatch.setenv("GATEPOST_ACCOUNTS__EMAIL", "off")
    assert not Config.load().has_addresses


# ----------------------------------------------------------------------------------------------- commands


def test_an_operator_tries_sees_and_watches_mail(dsn: Dsn, tmp_path: Path) -> None:
    def run(*arguments: str, **variables: str) -> tuple[int, str, str]:
        done = gatepost("mail", *arguments, cwd=tmp_path, **environment_of(dsn), **variables)
        return done.returncode, done.stdout, done.stderr

    assert run("test", "ada@example.org")[::2] == (
        1,
        "gatepost: there is no way for mail to leave: give mail.host or mail.directory\n",
    )
    here = {"GATEPOST_MAIL__DIRECTORY": "mail"}
    assert run("test", "ada@example.org", "--language", "es", **here)[:2] == (0, "Written to mail.\n")
    [file] = (tmp_path / "mail").glob("*.eml")
    mail = Received(file.read_bytes())
    assert (mail.recipients, mail.subject) == (["ada@example.org"], "Gatepost puede enviar correo")
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert "must be a mail address" in run("test", "ada", **here)[2]
    assert "no language of ours" in run("test", "ada@example.org", "--language", "it", **here)[2]
    down = {"HOST": "127.0.0.1", "PORT": "1", "SECURITY": "none", "FROM_ADDRESS": "a@example.org"}
    code, _, said = run("test", "ada@example.org", **{f"GATEPOST_MAIL__{k}": v for k, v in down.items()})
    assert (code, said.count("\n")) == (1, 1)
    assert said.startswith("gatepost: not sent: 127.0.0.1: ")

    code, text, _ = run("preview", "recovery", "--language", "de", GATEPOST_MAIL__PAGE="https://app.example/")
    assert code == 0
    assert text.startswith("Subject: Wählen Sie ein neues Passwort für Gatepost\n\nGuten Tag ada,")
    assert "https://app.example/#code=" in text
    assert run("preview", "recovery", "--html")[1].startswith("<!DOCTYPE html>")
    assert "is no mail; there are verify_email," in run("preview", "nothing")[2]

    rows(
        dsn,
        "INSERT INTO gatepost.outbox (kind, address, language, tries, error) "
        "VALUES ('recovery', 'ada@example.org', 'en', 3, '450 mailbox busy') RETURNING 1",
    )
    assert re.search(r"recovery +ada@example\.org .* 3 +\S+ +450 mailbox busy", run("queue")[1])
    document = json.loads(run("queue", "--json")[1])
    assert (document["more"], document["mails"][0]["tries"], document["mails"][0]["error"]) == (
        False,
        3,
        "450 mailbox busy",
    )
