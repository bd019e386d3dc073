"""The range API of Have I Been Pwned, or a mirror of it: it is told five characters of a password's SHA-1."""

import re
from importlib.metadata import version

import aiohttp

from gatepost.breached.password import sha1

# Seconds until the answer is there whole, and all that comes before it: a registration waits as long.
DEADLINE = 1.0
# Requests at once: more wait, and give up at the same deadline.
CONNECTIONS = 16
# An answer has some 1,000 lines of at most 50 bytes; with padding no more than the longest.
MAX_BYTES = 256 * 1024
_PREFIX = 5
_LINE = re.compile(r"([0-9A-Fa-f]{35}):([0-9]{1,12})")


class RangeFailed(Exception):
    """The API did not say anything that could be used; the message says why, without what was asked."""


class RangeApi:
    """``url``: what the five characters are put behind."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._http = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=DEADLINE),
            connector=aiohttp.TCPConnector(limit=CONNECTIONS),
            cookie_jar=aiohttp.DummyCookieJar(),
            # With padding, the length of the answer does not tell which one it is.
            headers={"Add-Padding": "true", "User-Agent": f"Gatepost/{version('gatepost')}"},
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def is_breached(self, password: str) -> bool:
        """Whether the API lists the password. Raises RangeFailed, within a second."""
        digest = sha1(password).hex().upper()
        try:
            # Redirects are not followed: the prefix would go to somebody else.
            async with self._http.get(self._url + digest[:_PREFIX], allow_redirects=False) as answer:
                if answer.status != 200:
                    raise RangeFailed(f"status {answer.status}")
                return _lists(await _read(answer), digest[_PREFIX:])
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RangeFailed(type(error).__name__) from None


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    content = b""
    while chunk := await answer.content.read(64 * 1024):
        content += chunk
        if len(content) > MAX_BYTES:
            raise RangeFailed("the answer is too long")
    return content


def _lists(content: bytes, suffix: str) -> bool:
    """Whether a line of the answer has this suffix, and not as padding, which has a count of 0."""
    for line in content.decode("ascii", "replace").split():
        match = _LINE.fullmatch(line)
        if match is None:
            raise RangeFailed("the answer is malformed")
        if match[1].upper() == suffix:
            return int(match[2]) > 0
    return False
