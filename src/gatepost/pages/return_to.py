"""Where one goes after signing in: to a path of ours, or to an origin that the operator has named."""

import re
from collections.abc import Collection

HOME = "/"

# Printable ASCII only: browsers drop tabs and line ends from a URL, and read a backslash as a slash (WHATWG URL).
_TARGET = re.compile(r"[!-\[\]-~]{1,2048}")
_ORIGIN = re.compile(r"https?://[^/?#]*")


def safe(target: str, origins: Collection[str]) -> str:
    """The target, query string and all, if one may be sent there; else `HOME`.

    A path of ours begins with one slash; with two, it would name a host. An origin is compared as a whole, so a user
    name or another port in it is another origin. ``origins``: in lower case, without a path.
    """
    if not _TARGET.fullmatch(target):
        return HOME
    if target.startswith("/"):
        return HOME if target.startswith("//") else target
    origin = _ORIGIN.match(target.lower())
    return target if origin and origin[0] in origins else HOME
