"""Mail addresses: one mailbox is one address, and what is none is refused."""

import re

import email_validator
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gatepost.security import email
from gatepost.security.email import MAX_IDNA_LENGTH, MAX_LENGTH, Address, InvalidAddress, canonical, parse
from gatepost.security.identifier import Identifier

LABELS = st.from_regex(r"[A-Za-z0-9-]{1,20}|xn--[a-z0-9-]{1,8}|a{60,66}", fullmatch=True)
LOCALS = st.from_regex(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,70}", fullmatch=True)


def of_the_library(text: str) -> Address | None:
    library = email._library()
    try:
        found = library.validate_email(
            text, check_deliverability=False, allow_smtputf8=False, globally_deliverable=False, strict=True
        )
    except email_validator.EmailNotValidError:
        return None
    written = f"{found.local_part}@{found.ascii_domain}"
    return Address(written, written.lower())


@given(LOCALS, st.lists(LABELS, min_size=1, max_size=4).map(".".join))
@example("ada", "example.org")
@example("ada", "xn--bcher-kva.example")
@example("ada", "ab--cd.org")
@example("ada", "example.localhost")
@example("ada", "x.onion")
@example("ada", "1.in-addr.arpa")
@example("ada", "example.c0m")
@example("a" * 64, "example.org")
@example("a" * 65, "example.org")
def test_the_short_cut_for_plain_addresses_is_what_the_library_says(local: str, domain: str) -> None:
    text = f"{local}@{domain}"
    try:
        found = parse(text)
    except InvalidAddress:
        found = None
    if len(text) <= MAX_LENGTH:
        assert found == of_the_library(text)
    if found is not None:
        assert canonical(text) == found.canonical
        assert canonical(found.written) == found.canonical
        assert parse(found.canonical).canonical == found.canonical


def test_the_reserved_domains_are_the_librarys() -> None:
    email._library()
    found = {name.rpartition(".")[2] for name in email_validator.SPECIAL_USE_DOMAIN_NAMES}
    assert {name for name in found if of_the_library(f"ada@x.{name}") is None} == email.RESERVED


@given(st.text(max_size=300))
def test_whatever_is_typed_is_one_recipient_or_none(text: str) -> None:
    try:
        address = parse(f"{text}@example.org")
    except InvalidAddress:
        return
    assert address.written.isascii()
    assert re.fullmatch(r"[^\s<>@,;\"]+@example\.org", address.written)


@pytest.mark.parametrize(
    "text", ["a@" + "a." * 200 + "org", "a@" + "\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}" * 14]
)
def test_what_is_too_long_is_refused_before_it_is_parsed(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(email, "_library", lambda: pytest.fail("it was parsed"))
    with pytest.raises(InvalidAddress, match=f"at most ({MAX_LENGTH}|{MAX_IDNA_LENGTH}) characters"):
        parse(text)


def test_an_identifier_is_a_name_and_where_there_are_addresses_maybe_one() -> None:
    assert Identifier.of("Ada", addresses=True) == ("ada", None)
    assert Identifier.of("Ada@Example.org", addresses=True) == ("ada@example.org", "ada@example.org")
    assert Identifier.of("Ada@Example.org", addresses=False) == ("ada@example.org", None)
    assert Identifier.of("a da@example.org", addresses=True).subject == "a da@example.org"
    long = "a" * 60 + "@" + "b" * 60 + "." + "c" * 60 + ".org"
    assert Identifier.of(long, addresses=True).subject == long
    assert Identifier.of("two words", addresses=True) == (" two words", None)
