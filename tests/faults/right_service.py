"""A sign-in service that is right by construction, as a few lines of Python: what histories can come of one."""

from dataclasses import dataclass, field, replace

from tests.faults.history import Kind, Request

REGISTERED = 1.0


@dataclass(frozen=True)
class Step:
    """What a client does: at ``sent`` seconds, taking ``takes``, decided ``part`` of the way (0 to 1).

    ``which`` chooses among the tokens or passwords that it knows. ``fate``: answered; or not, and decided all the
    same, ``late`` seconds after the client gave up; or not decided at all.
    """

    kind: Kind
    sent: float
    takes: float
    part: float
    which: int
    fate: str
    late: float

    @property
    def decided(self) -> float:
        """When, in seconds."""
        return self.sent + self.takes * self.part + (self.late if self.fate == "late" else 0.0)


@dataclass
class RightService:
    """One user's account: decides steps in the order of their moments, and writes the history."""

    password: int = 0
    live: dict[int, int] = field(default_factory=dict)
    """Tokens, and the password under which each was opened."""
    history: list[Request] = field(default_factory=list)
    _numbers: int = 1000

    def serve(self, steps: list[Step]) -> list[Request]:
        """Everything that clients saw, and what they see when all is over."""
        self.history = [Request(1, "register", "ada", 0.0, REGISTERED, 201, new_password=0)]
        known_tokens, known_passwords = [self._open(0)], [0]
        first = Request(2, "login", "ada", 1.1, 1.2, 200, password=0, learned=known_tokens[0])
        self.history.append(first)
        # What a client sends depends on what was known when it sent it: so both moments, in their order.
        moments = sorted([(s.sent, 0, s) for s in steps] + [(s.decided, 1, s) for s in steps], key=lambda m: m[:2])
        sent: dict[int, Request] = {}
        for _, what, step in moments:
            if what == 0:
                sent[id(step)] = self._send(step, known_tokens, known_passwords)
            else:
                answered = self._decide(step, sent[id(step)])
                self.history.append(answered)
                if answered.learned is not None:
                    known_tokens.append(answered.learned)
                if answered.new_password is not None:
                    known_passwords.append(answered.new_password)
        self._look_again(known_tokens, known_passwords)
        return self.history

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _open(self, password: int) -> int:
        token = self._number()
        self.live[token] = password
        return token

    def _send(self, step: Step, tokens: list[int], passwords: list[int]) -> Request:
        request = Request(self._number(), step.kind, "ada", step.sent, step.sent + step.takes, None)
        if step.kind in {"check", "logout", "change", "end_all"}:
            request = replace(request, token=tokens[step.which % len(tokens)])
        if step.kind == "login":
            request = replace(request, password=[*passwords, None][step.which % (len(passwords) + 1)])
        if step.kind == "change":
            request = replace(request, password=passwords[step.which % len(passwords)], new_password=self._number())
        return request

    def _decide(self, step: Step, request: Request) -> Request:
        if step.fate == "never":
            return request
        status, learned = self._apply(request)
        if step.fate == "late":
            return request
        return replace(request, status=status, learned=learned)

    def _apply(self, r: Request) -> tuple[int, int | None]:
        if r.token is not None and r.token not in self.live:
            return 401, None
        match r.kind:
            case "login":
                return (200, self._open(self.password)) if r.password == self.password else (401, None)
            case "logout":
                assert r.token is not None
                del self.live[r.token]
            case "change" if r.password != self.password:
                return 403, None
            case "change":
                assert r.new_password is not None
                self.password = r.new_password
                self.live.clear()
                return 200, self._open(self.password)
            case "end_all" | "sign_out":
                self.live.clear()
        return 200, None

    def _look_again(self, tokens: list[int], passwords: list[int]) -> None:
        for token in tokens:
            status = 200 if token in self.live else 401
            self.history.append(
                Request(self._number(), "check", "ada", 900.0, 901.0, status, token=token, final=True)
            )
        for password in passwords:
            status = 200 if password == self.password else 401
            self.history.append(
                Request(self._number(), "login", "ada", 900.0, 901.0, status, password=password, final=True)
            )
