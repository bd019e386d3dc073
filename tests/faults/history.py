"""What clients saw, and whether a sign-in service may have answered so: the invariants S1 to S4 of the design.

A history is a plain list of requests. Times are those of the client, from before it sent to after it had the whole
answer, so whatever the service did lies between the two. A request without an answer, or with a 5xx, may have
taken effect, at any time after it was sent: a statement can lie in a frozen server's socket until it thaws.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

Kind = Literal["register", "login", "check", "logout", "change", "end_all", "sign_out", "profile"]


@dataclass(frozen=True, slots=True)
class Request:
    """One request and what came of it. Users have names, tokens and passwords numbers: no secret is in a history.

    ``token`` is carried; ``password`` is given (for a login without one: a guess that is certainly wrong);
    ``new_password`` is set, and numbers of a user's passwords only grow; ``learned`` is the token that was given.
    ``user``: whom it concerns; for a ``sign_out``, which an administrator does, not whose token it carries.
    ``sent`` and ``ended`` in seconds; ``status`` None: no answer. ``final``: sent when all was over. ``whole``: when
    the last byte was sent, where that was held back. ``stale``: seconds by which the answer of a
    leased verifier may be out of date.
    """

    id: int
    kind: Kind
    user: str
    sent: float
    ended: float
    status: int | None
    token: int | None = None
    password: int | None = None
    new_password: int | None = None
    learned: int | None = None
    final: bool = False
    client: int = 0
    code: str = ""
    whole: float = 0.0
    stale: float = 0.0

    @property
    def asked(self) -> float:
        """From when on the service could act on it."""
        return max(self.sent, self.whole)

    @property
    def done(self) -> bool:
        """It was acknowledged."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def refused(self) -> bool:
        """It certainly changed nothing."""
        return self.status is not None and 400 <= self.status < 500

    @property
    def unavailable(self) -> bool:
        """It was not served: 5xx or nothing."""
        return not (self.done or self.refused)


class Token(NamedTuple):
    """A token that a client was given, by which request, and the password that counted then."""

    user: str
    born: Request
    password: int


class Violation(NamedTuple):
    """What must not have happened; ``rule`` is S1 to S5 of the design, or ``bound``."""

    rule: str
    text: str
    request: Request | None = None


class History:
    """Requests, seen by whom and by what they concern."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self.requests: Sequence[Request] = sorted(requests, key=lambda r: r.sent)

    @cached_property
    def tokens(self) -> dict[int, Token]:
        """Every token that was given, by number."""
        found = {}
        for r in self.requests:
            password = r.new_password if r.kind == "change" else r.password
            if r.learned is not None and password is not None:
                found[r.learned] = Token(r.user, r, password)
        return found

    @cached_property
    def _endings(self) -> dict[str, list[Request]]:
        """By user, what may have ended sessions of that user."""
        found = defaultdict(list)
        for r in self.requests:
            if r.kind in {"logout", "change", "end_all", "sign_out"} and not r.refused:
                found[r.user].append(r)
        return found

    @cached_property
    def _passwords(self) -> dict[str, list[Request]]:
        """By user, what may have set a password."""
        found = defaultdict(list)
        for r in self.requests:
            if r.new_password is not None and not r.refused:
                found[r.user].append(r)
        return found

    def ended_before(self, token: int, moment: float) -> Request | None:
        """The acknowledged request because of which this token is certainly worth nothing at the moment."""
        for r in self._endings[self.tokens[token].user]:
            if r.done and r.ended < moment and self._must_end(r, token):
                return r
        return None

    def _must_end(self, r: Request, token: int) -> bool:
        it = self.tokens[token]
        match r.kind:
            case "logout":
                return r.token == token
            case "change":
                # Also a session that a login with the old password was just opening.
                assert r.new_password is not None
                return it.password < r.new_password
            case _:
                return it.born.ended < r.sent

    def may_be_ended(self, token: int, moment: float, *, by_other_than: Request) -> bool:
        """Whether anything that was sent before the moment can have ended this token."""
        it = self.tokens[token]
        for r in self._endings[it.user]:
            if r is by_other_than or r.sent >= moment:
                continue
            if r.kind in {"logout", "change"}:
                if self._must_end(r, token):
                    return True
            elif not r.done or it.born.sent < r.ended:
                return True
        return False

    def superseded(self, user: str, password: int, moment: float) -> Request | None:
        """The acknowledged change because of which this is certainly no longer the user's password."""
        for r in self._passwords[user]:
            if r.done and r.ended < moment and r.new_password is not None and r.new_password > password:
                return r
        return None

    def certainly_current(self, user: str, password: int, asked: Request) -> bool:
        """Whether this was the user's password all the time in which a request may have been decided."""
        changes = self._passwords[user]
        if any(r.sent < asked.ended and r.new_password is not None and r.new_password > password for r in changes):
            return False
        known = (r for r in changes if r.new_password == password)
        tried = (r for r in self.requests if r.kind == "login" and r.user == user and r.password == password)
        return any(r.done and r.ended < asked.sent for r in (*known, *tried))


# --------------------------------------------------------------------------------------------------- S1 to S3


# What a request of each kind may be answered; the load has no throttles.
_USUAL: set[int | None] = {200, 401, 503, None}
_STATUSES: dict[Kind, set[int | None]] = {"register": {201, 503, None}, "change": {*_USUAL, 403}}


def judge(requests: Iterable[Request]) -> list[Violation]:
    """What in a history breaks S1, S2 or S3.

    S1: no 2xx for a token whose end was acknowledged before all of the request was sent; of a leased verifier, as
    long before as its lease. S2: what was acknowledged is still so when all is over. S3: no 401 for what is certainly
    right, and no other answer than this API's.
    """
    history = History(requests)
    return [v for r in history.requests for v in _judge_one(history, r)] + list(_never_asked_again(history))


def _judge_one(history: History, r: Request) -> Iterator[Violation]:
    if r.status not in _STATUSES.get(r.kind, _USUAL):
        yield Violation("S3", f"{r.kind} was answered {r.status} {r.code}", r)
    if r.final and r.unavailable:
        yield Violation("S2", f"{r.kind} cannot be told when all is over: {r.status}", r)
    if r.token is not None and r.token in history.tokens:
        yield from _judge_token(history, r, r.token)
    if r.kind in {"login", "change"}:
        yield from _judge_password(history, r)


def _judge_token(history: History, r: Request, token: int) -> Iterator[Violation]:
    if r.done and (end := history.ended_before(token, r.asked - r.stale)):
        rule = "S2" if r.final else "S1"
        yield Violation(rule, f"{r.kind} with token {token}, which request {end.id} ({end.kind}) had ended: 2xx", r)
    if r.status == 401 and not history.may_be_ended(token, r.ended, by_other_than=r):
        rule = "S2" if r.final else "S3"
        yield Violation(rule, f"{r.kind} with token {token}, which nothing had ended: 401", r)


def _judge_password(history: History, r: Request) -> Iterator[Violation]:
    if r.password is None:
        if r.done:
            yield Violation("S3", f"{r.kind} with a wrong password: 2xx", r)
        return
    if r.done and (change := history.superseded(r.user, r.password, r.sent)):
        yield Violation("S2", f"{r.kind} with a password that request {change.id} had replaced: 2xx", r)
    wrong = 401 if r.kind == "login" else 403
    if r.status == wrong and history.certainly_current(r.user, r.password, r):
        yield Violation("S2" if r.final else "S3", f"{r.kind} with the right password: {wrong}", r)


def _never_asked_again(history: History) -> Iterator[Violation]:
    """S2 is a promise about afterwards: a history in which nobody looked does not show it."""
    asked_tokens = {r.token for r in history.requests if r.final}
    asked_users = {r.user for r in history.requests if r.final and r.kind == "login"}
    for token, it in history.tokens.items():
        if token not in asked_tokens and not it.born.final:
            yield Violation("S2", f"token {token} was not asked for when all was over", it.born)
    for user in {r.user for r in history.requests if r.kind == "register" and r.done} - asked_users:
        yield Violation("S2", f"{user} did not log in when all was over")


# ---------------------------------------------------------------------------------------------------------- S4

# What each kind of request leaves in gatepost.events when it is done, and when it is refused for a wrong password.
_RECORDED: dict[Kind, tuple[str, str | None, int]] = {
    "register": ("user_created", None, 0),
    "login": ("authn_login_success", "authn_login_fail", 401),
    "logout": ("authn_logout", None, 0),
    "change": ("authn_password_change", "authn_password_change_fail", 403),
}


class Record(NamedTuple):
    """What the database holds when all is over: the kind of each event, and each session's, with the number of
    the request that it came of (clients send it as their user agent); 0 for another's.
    """

    events: Sequence[tuple[str, int]]
    sessions: Sequence[int]


def judge_record(requests: Sequence[Request], record: Record) -> list[Violation]:
    """What breaks S4: one event for each decided login (and logout, change), no session without its event."""
    counts = Counter(record.events)
    found = []
    for r in requests:
        if r.kind not in _RECORDED:
            continue
        success, failure, wrong = _RECORDED[r.kind]
        seen = (counts[success, r.id], counts[failure, r.id] if failure else 0)
        decided = (int(r.done), int(r.status == wrong))
        if not (sum(seen) <= 1 if r.unavailable else seen == decided):
            found.append(Violation("S4", f"{r.kind} answered {r.status} has {seen} events {success}, {failure}", r))
    numbers = {r.id for r in requests}
    found += [
        Violation("S4", f"an event {kind} of no request")
        for (kind, number) in counts
        if kind.startswith("authn_") and number not in numbers
    ]
    found += [
        Violation("S4", f"a session of request {number} without its event")
        for number in record.sessions
        if not counts["authn_login_success", number]
    ]
    return found


def leaks(log: str, secrets: Iterable[str]) -> list[Violation]:
    """What breaks S4's other half: a secret in a log. The secret is not repeated."""
    return [Violation("S4", f"secret number {n} is in the log") for n, secret in enumerate(secrets) if secret in log]


# ------------------------------------------------------------------------------------------------------- bounds


def took(r: Request) -> float:
    """Seconds until the answer."""
    return r.ended - r.asked


def late(requests: Iterable[Request], bound: float, measure: Callable[[Request], float] = took) -> list[Violation]:
    """Those whose answer took more than ``bound`` seconds, by this measure."""
    return [
        Violation("bound", f"{r.kind} took {measure(r):.2f} s, {bound:g} are allowed: {r.status}", r)
        for r in requests
        if measure(r) > bound
    ]


def unanswered(requests: Iterable[Request]) -> list[Violation]:
    """Those that were dropped."""
    return [Violation("bound", f"{r.kind} had no answer: {r.code}", r) for r in requests if r.status is None]


def recovery(requests: Iterable[Request], since: float) -> float:
    """Seconds from a moment to the last request that was not served; 0 when there is none."""
    return max((r.ended - since for r in requests if r.unavailable and r.ended > since), default=0.0)


def write(requests: Iterable[Request], file: Path) -> None:
    """As JSON lines, for people to look at."""
    with file.open("w") as out:
        out.writelines(json.dumps(asdict(r)) + "\n" for r in requests)
