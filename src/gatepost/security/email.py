"""What a mail address is, so that one mailbox is one address however it is typed."""

import re
import unicodedata
from functools import cache
from typing import Any, NamedTuple

# RFC 5321 §4.5.3.1: 64 octets, @, 255; a path of 256 has two brackets. Longer text is not looked at.
MAX_LENGTH = 254
# IDNA takes 6 us a character that is not ASCII, on the event loop.
MAX_IDNA_LENGTH = 128
MAX_LOCAL_LENGTH = 64
# Most addresses are of this form, for which the library (50 us) gives the same: a test sees to it. A label with two
# hyphens may be IDNA.
_LABEL = r"(?!.{0,61}--)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_PLAIN = re.compile(rf"({_ATOM}(?:\.{_ATOM})*)@((?:{_LABEL}\.)+[A-Za-z]{{2,63}})")
# Those of the library's SPECIAL_USE_DOMAIN_NAMES that may end an address of this form.
RESERVED = frozenset({"arpa", "invalid", "localhost", "onion"})


class InvalidAddress(ValueError):
    """The text is no address that mail could be sent to; the message says why, without repeating it."""


class Address(NamedTuple):
    """``written``: as mail is sent to it. ``canonical``: as addresses are compared."""

    written: str
    canonical: str


def parse(text: str) -> Address:
    """An address: a part before the @ in ASCII, compared without case, and a domain, compared as IDNA (RFC 5891).

    RFC 5321 lets a server tell case apart before the @; none that is in use does, and two accounts for one mailbox
    would be worse. Quoted parts, comments, names and domain literals are refused. So is what is not ASCII before the
    @ (RFC 6531): few servers take it, and what cannot be delivered would be noticed only by the mail that is missing.
    Raises InvalidAddress.
    """
    most = MAX_LENGTH if text.isascii() else MAX_IDNA_LENGTH
    # Normalized: some characters come apart into eighteen.
    if len(text) > most or len(unicodedata.normalize("NFKC", text)) > most:
        raise InvalidAddress(f"must have at most {most} characters")
    if found := _PLAIN.fullmatch(text):
        domain = found[2].lower()
        if len(found[1]) <= MAX_LOCAL_LENGTH and domain.rpartition(".")[2] not in RESERVED:
            return Address(f"{found[1]}@{domain}", f"{found[1]}@{domain}".lower())
    library = _library()
    try:
        # strict: at most 64 characters before the @. globally_deliverable: a company's own domain may have no dot.
        found = library.validate_email(
            text, check_deliverability=False, allow_smtputf8=False, globally_deliverable=False, strict=True
        )
    except library.EmailNotValidError:
        raise InvalidAddress("must be a mail address: a name in ASCII, @, and a domain") from None
    local, domain = found.local_part, found.ascii_domain
    return Address(f"{local}@{domain}", f"{local}@{domain}".lower())


@cache
def _library() -> Any:
    # Imported at its first use: a service whose users have no addresses does without (2 MB).
    import email_validator  # noqa: PLC0415

    # The way that the library names to admit more domains: of these, some companies use the first inside, and tests
    # the second (RFC 2606).
    for name in ("local", "test"):
        email_validator.SPECIAL_USE_DOMAIN_NAMES.remove(name)
    return email_validator


def canonical(text: str) -> str | None:
    """The form in which addresses are looked up; None for what is none.

    ASCII need not be parsed for that: what is no address is found nowhere. Parsing takes 60 us, by which a login with
    an address would differ from one with a name.
    """
    if "@" not in text:
        return None
    if text.isascii():
        return text.lower() if len(text) <= MAX_LENGTH else None
    try:
        return parse(text).canonical
    except InvalidAddress:
        return None
