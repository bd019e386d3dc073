"""What a client can be told has gone wrong.

Each class is one problem of RFC 9457: its ``status``, its stable ``code``, and its docstring as the text a
person reads. ``http.app.problems`` is the one place that renders them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing wrong with one field of a request body.

    ``field`` is its dotted path, ``code`` stable and for programs, ``message`` for people. None repeats the
    value that was sent: it may be a password.
    """

    field: str
    code: str
    message: str


class Problem(Exception):
    """The request could not be served."""

    status = 500
    code = "internal_error"
    headers: Mapping[str, str] = {}
    event: str | None = None
    """The kind of event that was recorded with it."""

    def __init__(self, detail: str | None = None, *, code: str | None = None) -> None:
        super().__init__(detail or type(self).__doc__ or "")
        self.detail = str(self)
        self.code = code or self.code
        self.fields: Sequence[FieldError] = ()
        self.members: Mapping[str, object] = {}
        """What the answer says besides (RFC 9457 §3.2)."""


class BadRequest(Problem):
    """The request is malformed."""

    status = 400
    code = "bad_request"


class RequestTimeout(Problem):
    """The request did not arrive in time."""

    status = 408
    code = "request_timeout"
    headers: Mapping[str, str] = {"Connection": "close"}


class InvalidBody(Problem):
    """The body is well-formed, but not what this request needs."""

    status = 422
    code = "invalid_body"

    def __init__(self, fields: Sequence[FieldError]) -> None:
        super().__init__("; ".join(f"{e.field}: {e.message}" for e in fields))
        self.fields = fields


class BreachedPassword(InvalidBody):
    """The new password was published in a breach of another service."""


class UnsupportedMediaType(Problem):
    """Send the body as application/json, not encoded."""

    status = 415
    code = "unsupported_media_type"


class Unauthorized(Problem):
    """There is no session with this token: sign in again."""

    status = 401
    code = "unauthorized"
    headers: Mapping[str, str] = {"WWW-Authenticate": 'Bearer realm="gatepost"'}


class InvalidCredentials(Unauthorized):
    """The username or the password is wrong."""

    code = "invalid_credentials"
    event = "authn_login_fail"


class SecondFactorRequired(Unauthorized):
    """The password is right, and the account has a second factor: go on with the ticket at POST /user/factor."""

    code = "second_factor_required"
    event = "authn_login_factor_required"

    def __init__(self, ticket: str, methods: Sequence[str], expires_at: str) -> None:
        """``methods``: each is a key that the further step takes. ``expires_at``: until when the ticket counts."""
        super().__init__()
        self.ticket, self.methods = ticket, list(methods)
        self.members = {"login": ticket, "methods": self.methods, "expires_at": expires_at}


class PasskeyUnknown(Unauthorized):
    """No account can be signed in to with this passkey."""

    code = "passkey_unknown"
    event = "authn_factor_fail"


class LoginExpired(Unauthorized):
    """This sign-in has expired, or its tries are used up: begin again with the password."""

    code = "login_expired"


class Forbidden(Problem):
    """This is not for you."""

    status = 403
    code = "forbidden"


class ForeignOrigin(Forbidden):
    """A page of another origin may not do this with your cookie."""

    code = "foreign_origin"


class AmbiguousPath(Forbidden):
    """A proxy and the service behind it could read this path in different ways."""

    code = "ambiguous_path"


class WrongPassword(Forbidden):
    """The current password is wrong."""

    code = "wrong_password"


class ConfirmationRequired(Forbidden):
    """Confirm that it is still you, at POST /user/confirm, and then do this again."""

    code = "confirmation_required"


class InvalidPasskey(Forbidden):
    """This passkey does not prove who you are: try again."""

    code = "invalid_passkey"


class FactorRequired(Forbidden):
    """Your role demands a second factor: add one at POST /account/factors, and then do this again."""

    code = "factor_required"


class InvalidCode(Forbidden):
    """This code is wrong, used or too old: ask for a new one."""

    code = "invalid_code"


class NotFound(Problem):
    """There is no such thing."""

    status = 404
    code = "not_found"


class MethodNotAllowed(Problem):
    """This resource answers to other methods."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, allowed: str) -> None:
        super().__init__(f"This resource answers to {allowed}.")
        self.headers = {"Allow": allowed}


class BodyTooLarge(Problem):
    """The body is too large."""

    status = 413
    code = "body_too_large"


class Conflict(Problem):
    """This cannot be done as things stand."""

    status = 409
    code = "conflict"


class LastAdmin(Conflict):
    """This is the last administrator: make another one first."""

    code = "last_admin"


class RegistrationClosed(Problem):
    """Accounts are created by the operator of this service."""

    status = 403
    code = "registration_closed"


class TooManyAttempts(Problem):
    """Too many attempts: wait before the next one."""

    status = 429
    code = "too_many_attempts"
    headers: Mapping[str, str] = {"Retry-After": "1", "RateLimit": "", "RateLimit-Policy": ""}

    def __init__(self, limit: str, quota: int, window: int, seconds: int) -> None:
        """``limit`` is the name of what stands in the way: ``quota`` attempts, all of them had anew after ``window``
        seconds, and one after ``seconds``. The fields are those of draft-ietf-httpapi-ratelimit-headers-11.
        """
        super().__init__()
        self.limit, self.seconds = limit, max(1, seconds)
        self.headers = {
            "Retry-After": str(self.seconds),
            "RateLimit": f'"{limit}";r=0;t={self.seconds}',
            "RateLimit-Policy": f'"{limit}";q={quota};w={max(1, window)}',
        }


class UsernameTaken(Problem):
    """An account of this name exists already."""

    status = 409
    code = "username_taken"


class EmailTaken(Conflict):
    """This address belongs to another account."""

    code = "email_taken"


class TooManyEmails(Conflict):
    """An account has at most ten addresses: remove one first."""

    code = "too_many_emails"


class NoAddress(Conflict):
    """This user is disabled, or has no verified address to write to."""

    code = "no_address"


class LastFactor(Conflict):
    """Your role demands a second factor, and this is the only one: add another first."""

    code = "last_factor"


class PasskeyTaken(Conflict):
    """This passkey belongs to an account already."""

    code = "passkey_taken"


class TooManyPasskeys(Conflict):
    """An account has at most twenty passkeys: remove one first."""

    code = "too_many_passkeys"


class NoSecondFactor(Conflict):
    """There is no second factor yet: add one first."""

    code = "no_second_factor"


class TooManyFactors(Conflict):
    """An account has at most five authenticator apps: remove one first."""

    code = "too_many_factors"


class Unavailable(Problem):
    """The service cannot answer right now: try again."""

    status = 503
    code = "unavailable"
    headers: Mapping[str, str] = {"Retry-After": "1"}


class DatabaseUnavailable(Unavailable):
    """The database did not answer in time: try again."""

    code = "database_unavailable"


class DatabaseRefuses(DatabaseUnavailable):
    """The database does not let us in."""


class NotPermitted(DatabaseRefuses):
    """The database does not let us do this."""


class Stopping(Unavailable):
    """This node is about to stop: use another one."""

    code = "stopping"


class Overloaded(Unavailable):
    """Too many sign-ins are under way: try again."""

    code = "overloaded"

    def __init__(self, seconds: float = 1) -> None:
        super().__init__()
        self.headers = {"Retry-After": str(max(1, math.ceil(seconds)))}


class MissingSecret(Exception):
    """Something is stored that needs a secret which the configuration does not have; the message names it. Ends the
    start.
    """


class UnsupportedLibrary(Exception):
    """A library that is installed lacks something that Gatepost uses of it; the message says what. Ends the start."""

    @classmethod
    def missing(cls, library: str, name: str, purpose: str) -> "UnsupportedLibrary":
        """``name`` is not there, which is used for ``purpose``."""
        return cls(f"this {library} has no {name} ({purpose}): install a release that pyproject.toml admits")
