"""Gatepost's API for a program that signs people in: log in and out, account, sessions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack  # noqa: TID251 (pydantic does not read it)
from urllib.parse import quote

import aiohttp

from gatepost_client.identity import NotKnown, SignedIn

Json = dict[str, Any]


class GatepostError(Exception):
    """Gatepost refuses. ``code`` is stable and for programs (`invalid_credentials`, `username_taken`, …).

    ``errors``: what is wrong with which field, as the API's problem documents have it. ``retry_after``: seconds to
    wait, where Gatepost says so.
    """

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after: int | None) -> None:
        self.status = status
        self.code = str(problem.get("code", "unknown"))
        self.errors: list[Json] = list(problem.get("errors", ()))
        self.retry_after = retry_after
        super().__init__(f"{status} {self.code}: {problem.get('detail', '')}")


class SecondFactorRequired(GatepostError):
    """The password was right, and the account has a second factor: go on with `GatepostClient.finish_log_in`.

    ``ticket``: what it takes, for ten minutes and five tries. ``methods``: the proofs that it takes.
    """

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after: int | None) -> None:
        super().__init__(status, problem, retry_after)
        self.ticket = str(problem["login"])
        self.methods: list[str] = list(problem["methods"])


class Proof(TypedDict, total=False):
    """One of them proves who somebody is. ``passkey``: what the browser has signed, as JSON."""

    password: str
    totp: str
    recovery_code: str
    passkey: Json


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session that was opened, or goes on under a new token. ``token`` is told here and never again.

    ``password_breached``: the password is known from a breach of another service; its user should choose another one.
    """

    token: str = field(repr=False)
    expires_at: datetime
    user: Json | None = None
    password_breached: bool = False

    @classmethod
    def of(cls, answer: Json) -> Self:
        """Read what Gatepost answers."""
        return cls(
            answer["session_id"],
            datetime.fromisoformat(answer["expires_at"]),
            answer.get("user"),
            answer.get("password_breached", False),
        )


class GatepostClient:
    """Calls Gatepost for people who sign in. Use it with ``async with``.

    Methods raise GatepostError for what Gatepost refuses (4xx), and NotKnown when it cannot answer (5xx, no
    connection, no answer within ``timeout`` seconds).
    """

    def __init__(self, url: str, *, timeout: float = 10.0) -> None:
        self._url = url.rstrip("/")
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the connections."""
        # No cookies: a client serves many people.
        self._http = aiohttp.ClientSession(timeout=self._timeout, cookie_jar=aiohttp.DummyCookieJar())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close them."""
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def register(self, username: str, password: str, email: str | None = None) -> Json:
        """Make an account; the user. Where registration is open."""
        body = {"username": username, "password": password} | ({"email": email} if email is not None else {})
        user: Json = (await self._call("POST", "/account", body=body))["user"]
        return user

    async def log_in(self, username: str, password: str) -> NewSession:
        """Open a session. A wrong name and a wrong password look alike (`invalid_credentials`).

        Raises SecondFactorRequired for a user who has one.
        """
        return NewSession.of(await self._call("POST", "/user", body={"username": username, "password": password}))

    async def finish_log_in(self, ticket: str, **proof: Unpack[Proof]) -> NewSession:
        """Go on with a login that raised SecondFactorRequired, with one proof: ``totp``, ``recovery_code``,
        ``passkey``.
        """
        return NewSession.of(await self._call("POST", "/user/factor", body={"login": ticket, **proof}))

    async def passkey_options(self) -> Json:
        """What a browser is asked for a passkey that exists (`navigator.credentials.get`)."""
        return await self._call("POST", "/user/passkey/options")

    async def log_in_with_passkey(self, credential: Json) -> NewSession:
        """Open a session with what a browser has signed, as JSON."""
        return NewSession.of(await self._call("POST", "/user/passkey", body={"credential": credential}))

    async def confirm(self, token: str, **proof: Unpack[Proof]) -> datetime:
        """Prove again who the session's user is, for what is refused with `confirmation_required`; when."""
        answer = await self._call("POST", "/user/confirm", token, dict(proof))
        return datetime.fromisoformat(answer["authenticated_at"])

    async def factors(self, token: str) -> Json:
        """The user's authenticator apps, and how many recovery codes are left."""
        return await self._call("GET", "/account/factors", token)

    async def add_factor(self, token: str, name: str) -> Json:
        """Add an authenticator app: its secret, URI and QR code. It counts once `confirm_factor` is given a code."""
        return await self._call("POST", "/account/factors", token, {"name": name})

    async def confirm_factor(self, token: str, factor_id: str, code: str) -> Json:
        """Let an app count; the first one brings recovery codes."""
        path = f"/account/factors/{quote(factor_id, safe='')}/confirm"
        return await self._call("POST", path, token, {"code": code})

    async def remove_factor(self, token: str, factor_id: str) -> None:
        """Remove an app."""
        await self._call("DELETE", f"/account/factors/{quote(factor_id, safe='')}", token)

    async def new_recovery_codes(self, token: str) -> list[str]:
        """Ten recovery codes, in place of earlier ones."""
        codes: list[str] = (await self._call("POST", "/account/factors/recovery-codes", token))["recovery_codes"]
        return codes

    async def passkeys(self, token: str) -> list[Json]:
        """The user's passkeys, the oldest first."""
        passkeys: list[Json] = (await self._call("GET", "/account/passkeys", token))["passkeys"]
        return passkeys

    async def new_passkey_options(self, token: str) -> Json:
        """What a browser is asked for a new passkey (`navigator.credentials.create`)."""
        return await self._call("POST", "/account/passkeys/options", token)

    async def add_passkey(self, token: str, credential: Json, name: str) -> Json:
        """Add the passkey that a browser has made; the first second factor brings recovery codes."""
        return await self._call("POST", "/account/passkeys", token, {"credential": credential, "name": name})

    async def rename_passkey(self, token: str, passkey_id: str, name: str) -> Json:
        """Call a passkey otherwise."""
        return await self._call("PATCH", f"/account/passkeys/{quote(passkey_id, safe='')}", token, {"name": name})

    async def remove_passkey(self, token: str, passkey_id: str) -> None:
        """Remove a passkey."""
        await self._call("DELETE", f"/account/passkeys/{quote(passkey_id, safe='')}", token)

    async def log_out(self, token: str) -> bool:
        """End the session, everywhere and at once. False if it had ended before."""
        return await self._unless_ended("DELETE", "/user", token) is not None

    async def who_am_i(self, token: str) -> SignedIn | None:
        """Whose session this is; None for no session. For many of them there is `Verifier`."""
        answer = await self._unless_ended("GET", "/user", token)
        return None if answer is None else SignedIn.of(answer)

    async def account(self, token: str) -> Json:
        """The account of the session's user."""
        return await self._call("GET", "/account", token)

    async def update_account(self, token: str, changes: Json) -> Json:
        """Change the name or the profile (a JSON merge patch, RFC 7396)."""
        return await self._call("PATCH", "/account", token, changes)

    async def change_password(self, token: str, current: str, new: str) -> NewSession:
        """Change the password. This session goes on under a new token, the user's other sessions end."""
        return NewSession.of(await self._call("PUT", "/account/password", token, {"current": current, "new": new}))

    async def recover(self, identifier: str) -> None:
        """Ask for a way back, with a username or an address. Whether there is such a user, nobody is told."""
        await self._call("POST", "/account/recovery", body={"identifier": identifier})

    async def redeem_code(self, code: str, new: str, identifier: str | None = None) -> None:
        """Choose a new password with a code. One that was typed takes the identifier that it was asked for with."""
        body = {"code": code, "new": new} | ({"identifier": identifier} if identifier is not None else {})
        await self._call("POST", "/account/password/redeem", body=body)

    async def emails(self, token: str) -> list[Json]:
        """The user's mail addresses, the primary one first."""
        emails: list[Json] = (await self._call("GET", "/account/emails", token))["emails"]
        return emails

    async def add_email(self, token: str, email: str, password: str) -> Json:
        """Add an address; a code is mailed to it. Added again, it gets another one."""
        return await self._email("POST", "/account/emails", token, {"email": email, "password": password})

    async def verify_email(self, token: str, email_id: str, code: str) -> Json:
        """Prove with the code from the mail, typed or from its link, that an address is the user's."""
        return await self._email("POST", f"/account/emails/{quote(email_id, safe='')}/verify", token, {"code": code})

    async def make_email_primary(self, token: str, email_id: str) -> Json:
        """Let mail go to this verified address."""
        return await self._email("PUT", f"/account/emails/{quote(email_id, safe='')}/primary", token)

    async def remove_email(self, token: str, email_id: str) -> None:
        """Remove an address."""
        await self._call("DELETE", f"/account/emails/{quote(email_id, safe='')}", token)

    async def undo_email_changes(self, code: str) -> None:
        """Undo changes of addresses with the code from the notice. Every session ends, and so does the password."""
        await self._call("POST", "/account/emails/undo", body={"code": code})

    async def _email(self, method: str, path: str, token: str, body: Json | None = None) -> Json:
        email: Json = (await self._call(method, path, token, body))["email"]
        return email

    async def delete_account(self, token: str, password: str) -> Json:
        """Delete the account with everything that belongs to it."""
        return await self._call("DELETE", "/account", token, {"password": password})

    async def sessions(self, token: str) -> list[Json]:
        """The user's live sessions, the newest first; ``current`` is the one that asks."""
        sessions: list[Json] = (await self._call("GET", "/sessions", token))["sessions"]
        return sessions

    async def end_session(self, token: str, handle: str) -> Json:
        """End one of the user's sessions."""
        return await self._call("DELETE", f"/sessions/{quote(handle, safe='')}", token)

    async def end_sessions(self, token: str, scope: Literal["others", "all"]) -> Json:
        """End the user's other sessions, or all."""
        return await self._call("DELETE", f"/sessions?scope={scope}", token)

    async def _unless_ended(self, method: str, path: str, token: str) -> Json | None:
        try:
            return await self._call(method, path, token)
        except GatepostError as error:
            if error.status == 401:
                return None
            raise

    async def _call(self, method: str, path: str, token: str | None = None, body: Json | None = None) -> Json:
        if self._http is None:
            raise RuntimeError("use the client with `async with`")
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        try:
            async with self._http.request(method, self._url + path, json=body, headers=headers) as answer:
                document: Json = await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise NotKnown(f"Gatepost cannot be reached ({type(error).__name__})") from error
        if answer.status >= 500:
            raise NotKnown(f"Gatepost answers {answer.status} ({document.get('code', '')})")
        if answer.status >= 400:
            after = answer.headers.get("Retry-After", "")
            kind = SecondFactorRequired if document.get("code") == "second_factor_required" else GatepostError
            raise kind(answer.status, document, int(after) if after.isdecimal() else None)
        return document
