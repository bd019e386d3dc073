"""An SMTP server that the tests can break."""

import asyncio
import contextlib
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.received_mail import Received

USER, SMTP_PASSWORD = "gatepost", "a secret of the mail server"

# What the server says to DATA: "250 OK" accepts.
Answer = Callable[[SMTP, Envelope], Awaitable[str]]


async def accept(_server: SMTP, _envelope: Envelope) -> str:
    return "250 OK"


@dataclass
class SmtpServer:
    """``answer``: what becomes of a mail whose content has arrived. ``refused``: recipients who get 450."""

    answer: Answer = accept
    refused: set[str] = field(default_factory=set)
    received: list[Received] = field(default_factory=list)
    plain: list[bool] = field(default_factory=list)
    """Of each mail, whether it came without TLS."""
    users: list[str | None] = field(default_factory=list)
    port: int = 0

    # --- aiosmtpd's handler

    async def handle_RCPT(  # noqa: N802 (the name is aiosmtpd's)
        self, _server: SMTP, _session: Any, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        if address in self.refused:
            return "450 mailbox busy"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Envelope) -> str:  # noqa: N802
        said = await self.answer(server, envelope)
        if said.startswith("250"):
            assert isinstance(envelope.content, bytes)
            self.received.append(Received(envelope.content, list(envelope.rcpt_tos)))
            self.plain.append(session.ssl is None)
            self.users.append(session.auth_data.login.decode() if session.auth_data else None)
        return said

    def authenticate(self, _server: SMTP, _session: Any, _envelope: Envelope, _how: str, data: Any) -> AuthResult:
        good = isinstance(data, LoginPassword) and data == LoginPassword(USER.encode(), SMTP_PASSWORD.encode())
        return AuthResult(success=good, handled=good, auth_data=data if good else None)

    async def count(self, number: int) -> None:
        """Wait until so many mails have been accepted."""
        async with asyncio.timeout(60):
            while len(self.received) < number:
                await asyncio.sleep(0.01)

    @contextlib.asynccontextmanager
    async def listening(
        self, *, starttls: ssl.SSLContext | None = None, tls: ssl.SSLContext | None = None, auth: bool = False
    ) -> AsyncIterator[None]:
        """On a port that stays the same however often this is called."""

        def protocol() -> SMTP:
            return SMTP(
                self,
                hostname="localhost",
                tls_context=starttls,
                authenticator=self.authenticate if auth else None,
                auth_required=auth,
                auth_require_tls=starttls is not None,
                enable_SMTPUTF8=True,
            )

        server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", self.port, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            if hasattr(server, "close_clients"):
                server.close_clients()


def certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """For 127.0.0.1: what a server serves with, and the authority that a client trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    authority, secret = folder / "ca.pem", folder / "key.pem"
    authority.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, secret)
    return context, authority
