"""The style sheet and the script of pages, and the logo: each under a name that changes with its content."""

import gzip
import hashlib
import re
from importlib.resources import files
from pathlib import Path

from aiohttp import hdrs, web

from gatepost.config import ConfigError, PagesConfig
from gatepost.errors import NotFound
from gatepost.http.operation import operation

MAX_LOGO = 64 * 1024
_FOR_EVER = "public, max-age=31536000, immutable"
_PICTURES = {".svg": "image/svg+xml", ".png": "image/png", ".webp": "image/webp"}


class Asset:
    """A file that browsers keep: its path names its content."""

    def __init__(self, name: str, content: bytes, media_type: str) -> None:
        stem, _, ending = name.rpartition(".")
        self.path = f"/assets/{stem}-{hashlib.sha256(content).hexdigest()[:16]}.{ending}"
        self.content = content
        self.compressed = gzip.compress(content, 9, mtime=0)
        self.media_type = media_type

    def answer(self, request: web.Request) -> web.Response:
        """This file, compressed for those who take it so."""
        headers = {
            "Cache-Control": _FOR_EVER,
            # A logo is a document too, if somebody opens it by its address.
            "Content-Security-Policy": "default-src 'none'; sandbox",
            hdrs.VARY: hdrs.ACCEPT_ENCODING,
        }
        takes_gzip = re.search(
            r"\bgzip\b(?!\s*;\s*q=0(?:\.0*)?(?:\s*,|\s*$))", request.headers.get(hdrs.ACCEPT_ENCODING, "")[:256]
        )
        if takes_gzip and len(self.compressed) < len(self.content):
            headers[hdrs.CONTENT_ENCODING] = "gzip"
            return web.Response(body=self.compressed, content_type=self.media_type, headers=headers)
        return web.Response(body=self.content, content_type=self.media_type, headers=headers)


class Assets:
    """All of them, made when the service starts."""

    def __init__(self, config: PagesConfig) -> None:
        """Raises ConfigError for a logo that cannot be used."""
        folder = files("gatepost.pages") / "assets"
        colours = f":root {{ --accent: {config.accent}; --on-accent: {readable_on(config.accent)}; }}\n"
        style = (colours + (folder / "style.css").read_text("utf-8")).encode()
        self.style = Asset("style.css", style, "text/css")
        self.script = Asset("script.js", (folder / "script.js").read_bytes(), "text/javascript")
        self.logo = _logo(config.logo) if config.logo else None
        self.by_path = {asset.path: asset for asset in (self.style, self.script, self.logo) if asset}


def _logo(file: Path) -> Asset:
    media_type = _PICTURES.get(file.suffix.lower())
    if media_type is None:
        raise ConfigError(f"pages.logo: {file} must end in one of {', '.join(_PICTURES)}")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"pages.logo: {file}: {error.strerror}") from None
    if len(content) > MAX_LOGO:
        raise ConfigError(f"pages.logo: {file} has more than {MAX_LOGO} bytes")
    return Asset(f"logo{file.suffix.lower()}", content, media_type)


def readable_on(colour: str) -> str:
    """Black or white, whichever has more contrast (WCAG 2.2, contrast ratio); at least 4.58 to 1 for any colour."""
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "#ffffff"


ASSETS = web.AppKey("assets", Assets)


@operation(None, check=True)
async def asset(request: web.Request) -> web.Response:
    """The style sheet, the script or the logo."""
    found = request.app[ASSETS].by_path.get(request.path)
    if found is None:
        raise NotFound
    return found.answer(request)
