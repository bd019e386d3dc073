"""`make mutants`: changes that no test may let pass, one at a time, each with the tests that ought to notice it.

The source is copied, changed and tested; the checkout stays as it is. A change whose tests stay green has survived:
then a test is missing, or too weak.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
COPIED = ("src", "migrations", "tests", "docs", "bench", "pyproject.toml", "README.md", "config.json")
# Seconds that the tests of one change may take.
PATIENCE = 300
HARDENING = "migrations/versions/0007_hardening.py"


class Mutant(NamedTuple):
    """``old`` stands in the file exactly once, and becomes ``new``; ``tests``: what pytest is given."""

    file: str
    old: str
    new: str
    tests: str


def src(file: str, old: str, new: str, tests: str) -> Mutant:
    """One of the source."""
    return Mutant(f"src/gatepost/{file}", old, new, tests)


FEED = "migrations/versions/0009_feed.py"
ROWS = "migrations/versions/0010_row_level_security.py"
LEASE = "src/gatepost_client/lease.py"
VERIFIER = "src/gatepost_client/verifier.py"

FACTORS = "migrations/versions/0013_second_factors.py"

MUTANTS = [
    # Pages: where they lead, who may send their forms, what they count.
    src("pages/return_to.py", 'HOME if target.startswith("//") else target', "target", "tests/test_pages.py"),
    src("pages/return_to.py", "[!-\\[\\]-~]", "[ -~]", "tests/test_pages.py"),
    src("pages/return_to.py", "origin[0] in origins", "origin[0].startswith(tuple(origins))", "tests/test_pages.py"),
    src("pages/page.py", "            demand_own_origin(request)\n", "            pass\n", "tests/test_pages.py"),
    src("pages/page.py", "            autoescape=True,", "            autoescape=False,", "tests/test_pages.py"),
    src("pages/page.py", "role not in session.roles", "False", "tests/test_operator_pages.py"),
    src("pages/sign_in.py", '"username": form.get("username", "")}', "**form}", "tests/test_pages.py"),
    src("pages/operator/queries.py", "FOR UPDATE SKIP LOCKED", "", "tests/test_operator_pages.py"),
    src(
        "pages/operator/queries.py",
        "statement_timestamp() - interval '10 minutes'",
        "clock_timestamp() - interval '10 minutes'",
        "tests/test_operator_pages.py",
    ),
    src("pages/operator/queries.py", "e.at < step.until", "true", "tests/test_operator_pages.py"),
    src("pages/operator/queries.py", " WHERE excluded.peak > before.peak", "", "tests/test_operator_pages.py"),
    src(
        "sessions/guard.py",
        "                request[FOUND] = session\n",
        "                pass\n",
        "tests/test_operator_pages.py",
    ),
    src("sessions/guard.py", "request.method in (hdrs.METH_GET, hdrs.METH_HEAD)", "True", "tests/test_pages.py"),
    src("mail/outbox/sender.py", "typed = mail.kind not in _LONG", "typed = True", "tests/test_mail.py"),
    src(
        "admin/access_queries.py",
        "id = :id AND disabled_at IS NULL FOR KEY",
        "id = :id FOR KEY",
        "tests/test_mail.py",
    ),
    src(
        "pages/operator/events.py",
        "if now is None or now.restricted or ROLE not in now.roles:",
        "if False:",
        "tests/test_operator_pages.py",
    ),
    src(
        "pages/operator/events.py",
        "restricted or ROLE not in now.roles",
        "restricted",
        "tests/test_operator_pages.py",
    ),
    src("pages/operator/events.py", 'f"\'{cell}" if', "cell if", "tests/test_operator_pages.py"),
    src(
        "config/sections.py",
        'f".{host}".endswith(f".{self.domain}")',
        "host.endswith(self.domain)",
        "tests/test_cookies.py",
    ),
    src("factors/passkeys.py", "            _refuse_certificates(credential)\n", "", "tests/test_passkeys.py"),
    src("factors/passkeys.py", "if not usual or int", "if int", "tests/test_passkeys.py"),
    # What can be asked for without end, and what is shared with others.
    src(
        "http/connection_limits.py",
        "left <= MAX_UNTAKEN and total <= most",
        "left <= MAX_UNTAKEN",
        "tests/test_connection.py tests/test_export.py",
    ),
    src("transfer/lines.py", "len(self._taken) >= MAX_ROW_LINES or size", "size", "tests/test_import.py"),
    src("transfer/queries.py", "    if is_pooled(connection):\n", "    if False:\n", "tests/test_pooler.py"),
    src("postgres/schema.py", "    if is_pooled(connection", "    if False and (connection", "tests/test_pooler.py"),
    Mutant("docs/nginx.conf", "            return 400;\n", "            set $x 1;\n", "tests/test_forward_auth.py"),
    Mutant("docs/nginx.conf", "|%25(2e|2f|5c))", ")", "tests/test_forward_auth.py"),
    # Second factors: what decides, and what is asked.
    Mutant(FACTORS, "AND f.last_step < step;", ";", "tests/test_epoch.py tests/test_factors.py"),
    Mutant(FACTORS, "t.epoch = account.epoch\n", "true\n", "tests/test_epoch.py tests/test_factors.py"),
    Mutant(
        FACTORS,
        "    DELETE FROM gatepost.login_tickets t WHERE t.ticket_hash = ticket;\n",
        "",
        "tests/test_factors.py",
    ),
    Mutant(FACTORS, " AND account.disabled_at IS NULL);", ");", "tests/test_epoch.py tests/test_factors.py"),
    Mutant(FACTORS, "    IF opened.methods IS NULL THEN\n", "    IF true THEN\n", "tests/test_factors.py"),
    Mutant(FACTORS, "    WHERE NOT l.restricted;", ";", "tests/test_factors.py"),
    Mutant(
        FACTORS,
        "(challenge) ON CONFLICT DO NOTHING;\n        IF NOT FOUND",
        "(challenge) ON CONFLICT DO NOTHING;\n        IF false",
        "tests/test_passkeys.py",
    ),
    Mutant(FACTORS, "(p.sign_count < counter OR", "(true OR", "tests/test_passkeys.py"),
    src("factors/proving_queries.py", "AND tries < :tries AND", "AND", "tests/test_factors.py"),
    src("factors/passkeys.py", " or until < time.time():", ":", "tests/test_passkeys.py"),
    src("factors/passkeys.py", "+ purpose.encode()", "", "tests/test_passkeys.py"),
    src("factors/passkeys.py", "_decoded(handle) != UUID(passkey.user_id).bytes", "False", "tests/test_passkeys.py"),
    src(
        "factors/vault.py",
        "decrypt(nonce, text, user_id.encode())",
        "decrypt(nonce, text, None)",
        "tests/test_factors.py",
    ),
    src("services/handlers.py", " if not session.restricted}", "}", "tests/test_factors.py"),
    src("sessions/guard.py", "session.restricted and not restricted:", "False:", "tests/test_factors.py"),
    src(
        "sessions/current_password.py",
        "c.confirmed AND coalesce(p.digest",
        "coalesce(p.digest",
        "tests/test_factors.py",
    ),
    # Breached passwords.
    src("breached/range_api.py", "return int(match[2]) > 0", "return True", "tests/test_breached.py"),
    src("breached/range_api.py", "allow_redirects=False", "allow_redirects=True", "tests/test_breached.py"),
    src(
        "breached/elias_fano.py",
        "start, shift = divmod(first, 8)",
        "start, shift = first // 8, 0",
        "tests/test_breached.py",
    ),
    # The feed and the verifier.
    Mutant(FEED, "WHERE expires_at > clock_timestamp() LIMIT 51", "LIMIT 51", "tests/test_feed.py"),
    src("feed/handlers.py", "if watch.take() and not await verifier.still():", "if False:", "tests/test_feed.py"),
    src("feed/listener.py", "self._feed.publish(Notice())  # what", "pass  # what", "tests/test_feed.py"),
    src("http/connection.py", "return self._streams or self.is_idle", "return self.is_idle", "tests/test_feed.py"),
    Mutant(LEASE, "moment = self._began + (proven - self._their_now)", "moment = now", "tests/test_lease.py"),
    Mutant(LEASE, "asking.revoked.add(key)", "pass", "tests/test_lease.py"),
    Mutant(LEASE, 'if data["resumed"] is not True:', "if False:", "tests/test_lease.py"),
    Mutant(VERIFIER, "clock() - began > SLOW:", "clock() - began > 600:", "tests/test_client.py"),
    Mutant(
        "src/gatepost_client/request.py",
        ' or header("Upgrade") is not None',
        "",
        "tests/test_client_request.py",
    ),
    Mutant(
        "src/gatepost_client/request.py",
        "return value if not values and is_token",
        "return value if is_token",
        "tests/test_client_request.py",
    ),
    Mutant(VERIFIER, "if not is_token(token):", "if False:", "tests/test_client.py"),
    # Sessions inside Postgres.
    Mutant(ROWS, " || timestamptz_send(transaction_timestamp())", "", "tests/test_row_level_security.py"),
    Mutant(ROWS, "uuid_send(id) || timestamptz", "timestamptz", "tests/test_row_level_security.py"),
    Mutant(ROWS, "        IF sha256(decode", "        IF true OR sha256(decode", "tests/test_row_level_security.py"),
    Mutant(
        ROWS,
        "        AND NOT current_setting('transaction_read_only')::boolean\n",
        "",
        "tests/test_row_level_security.py",
    ),
    Mutant(
        ROWS,
        "        AND NOT EXISTS (SELECT FROM gatepost.session_uses WHERE handle = used)\n",
        "",
        "tests/test_row_level_security.py",
    ),
    Mutant(
        ROWS,
        "make_interval(secs => idle_timeout / 10.0)",
        "make_interval(secs => 0)",
        "tests/test_row_level_security.py",
    ),
    Mutant(
        ROWS,
        "gatepost.user_id() RETURNS uuid\nLANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = "
        "pg_catalog, pg_temp",
        "gatepost.user_id() RETURNS uuid\nLANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER",
        "tests/test_row_level_security.py",
    ),
    Mutant(ROWS, "AND role = ANY (roles)", "", "tests/test_row_level_security.py"),
    src("row_level_security/queries.py", " AND s.last_seen_at < used.at", "", "tests/test_row_level_security.py"),
    src(
        "row_level_security/queries.py",
        " WHERE settings.value <> excluded.value",
        " WHERE false",
        "tests/test_row_level_security.py",
    ),
    # Sessions.
    Mutant(
        FACTORS,
        "u.epoch = s.epoch\n    WHERE s.token_hash = ANY",
        "true\n    WHERE s.token_hash = ANY",
        "tests/test_epoch.py",
    ),
    Mutant(
        FACTORS,
        "        AND u.disabled_at IS NULL AND s.expires_at",
        "        AND s.expires_at",
        "tests/test_admin.py tests/test_epoch.py",
    ),
    Mutant(
        FACTORS,
        "s.expires_at > clock_timestamp()\n        AND s.last_seen_at",
        "s.expires_at IS NOT NULL\n        AND s.last_seen_at",
        "tests/test_login.py tests/test_my_sessions.py",
    ),
    Mutant(
        FACTORS,
        "        AND s.last_seen_at > clock_timestamp() - make_interval(secs => idle_timeout);",
        ";",
        "tests/test_my_sessions.py",
    ),
    Mutant(
        FACTORS,
        "WHEN password.digest <> with_digest THEN",
        "WHEN length(password.digest) <> length(with_digest) THEN",
        "tests/test_login.py",
    ),
    Mutant(
        FACTORS,
        "WHEN account.disabled_at IS NOT NULL THEN 'disabled'",
        "WHEN false THEN 'disabled'",
        "tests/test_login.py tests/test_epoch.py tests/test_admin.py",
    ),
    Mutant(FACTORS, "OFFSET max_per_user - 1", "OFFSET max_per_user", "tests/test_login.py tests/test_epoch.py"),
    Mutant(
        FACTORS,
        "SELECT u.* INTO account FROM gatepost.users u WHERE u.id = account.id FOR NO KEY UPDATE;",
        "SELECT u.* INTO account FROM gatepost.users u WHERE u.id = account.id;",
        "tests/test_epoch.py tests/test_login.py",
    ),
    Mutant(FACTORS, "EXIT WHEN refused IS NOT NULL;", "", "tests/test_attempts.py"),
    Mutant(
        FACTORS,
        "    IF NOT abandoned THEN\n        SELECT t.seconds",
        "    IF false THEN\n        SELECT t.seconds",
        "tests/test_attempts.py",
    ),
    Mutant(
        HARDENING,
        "        IF ahead > everys[i] THEN\n            UPDATE",
        "        IF false THEN\n            UPDATE",
        "tests/test_throttle.py",
    ),
    Mutant(
        HARDENING,
        "IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN",
        "IF false THEN",
        "tests/test_admin.py",
    ),
    src(
        "sessions/handlers.py",
        "        if opened is None:\n            raise InvalidCredentials",
        "        if opened is None:\n            raise Unauthorized",
        "tests/test_login.py",
    ),
    src(
        "sessions/handlers.py",
        "    if login.cookie and is_from_a_page(request):",
        "    if False and is_from_a_page(request):",
        "tests/test_cookies.py",
    ),
    src(
        "sessions/handlers.py",
        "        await asyncio.sleep(failure_due - time.monotonic())",
        "        await asyncio.sleep(0)",
        "tests/test_login.py",
    ),
    src(
        "sessions/handlers.py",
        "    credentials.demand_room(client.queue_share)",
        "    credentials.dummy(name)",
        "tests/test_flood.py",
    ),
    src(
        "sessions/handlers.py",
        "            abandoned=client.has_disconnected,",
        "            abandoned=False,",
        "tests/test_attempts.py",
    ),
    src("sessions/session.py", "hashlib.sha256(", "hashlib.sha1(", "tests/test_login.py tests/test_schema.py"),
    src(
        "sessions/guard.py",
        "        if role is not None and role not in session.roles:",
        "        if False:",
        "tests/test_admin.py tests/test_guard.py",
    ),
    src(
        "sessions/guard.py",
        "        await demand(connection, session",
        "        connection and demand(connection, session",
        "tests/test_authority.py",
    ),
    src(
        "sessions/authority.py",
        "    if role is not None and role not in row[0]:",
        "    if role is None and role not in row[0]:",
        "tests/test_authority.py",
    ),
    src(
        "sessions/authority.py",
        "u.id = :user_id AND u.disabled_at IS NULL",
        "u.id = :user_id",
        "tests/test_authority.py",
    ),
    src(
        "sessions/lookup.py",
        "        deadline = next(iter(batch.values())).since + ANSWER_TIMEOUT",
        "        deadline = time.monotonic() + ANSWER_TIMEOUT",
        "tests/test_lookup.py",
    ),
    # Accounts, recovery, administration.
    src(
        "accounts/password_queries.py",
        "UPDATE gatepost.users SET epoch = epoch + 1",
        "UPDATE gatepost.users SET epoch = epoch",
        "tests/test_epoch.py tests/test_my_account.py",
    ),
    src(
        "sessions/current_password.py",
        "    SELECT FROM gatepost.users WHERE id = :id FOR NO KEY UPDATE;\n",
        "    SELECT FROM gatepost.users WHERE id = :id;\n",
        "tests/test_epoch.py",
    ),
    src(
        "accounts/password_queries.py",
        "AND k.place IS DISTINCT FROM CAST(:place AS bytea)",
        "AND k.place IS NULL",
        "tests/test_guessing.py tests/test_my_account.py",
    ),
    src(
        "accounts/password_queries.py",
        "DELETE FROM gatepost.sessions s USING bumped b WHERE s.user_id = b.id AND s.handle <> :handle",
        "DELETE FROM gatepost.sessions s USING bumped b WHERE s.user_id = b.id AND s.handle IS NULL",
        "tests/test_epoch.py",
    ),
    src(
        "accounts/handlers.py",
        '    if config.accounts.registration == "closed":',
        '    if config.accounts.registration == "shut":',
        "tests/test_accounts.py",
    ),
    src(
        "accounts/handlers.py",
        "        buckets += request.app[THROTTLE].for_rename(session.user_id)",
        "        pass",
        "tests/test_guessing.py tests/test_my_account.py tests/test_attempts.py",
    ),
    src(
        "accounts/policy.py", "in _common_passwords(", "in () or None in _common_passwords(", "tests/test_accounts.py"
    ),
    src(
        "admin/queries.py",
        "CASE WHEN b.new_roles OR b.disabling THEN 1 ELSE 0 END",
        "CASE WHEN b.disabling THEN 1 ELSE 0 END",
        "tests/test_epoch.py tests/test_admin.py",
    ),
    src(
        "admin/queries.py",
        "WHERE r.user_id = b.id AND b.disabling\n",
        "WHERE r.user_id = b.id AND b.enabling\n",
        "tests/test_admin.py",
    ),
    src(
        "recovery/queries.py",
        "r.code_hash = :code_hash AND r.expires_at > clock_timestamp()\n            AND u.id",
        "r.code_hash = :code_hash\n            AND u.id",
        "tests/test_epoch.py",
    ),
    src(
        "recovery/queries.py",
        "UPDATE gatepost.users SET epoch = epoch + 1 WHERE",
        "UPDATE gatepost.users SET epoch = epoch WHERE",
        "tests/test_epoch.py tests/test_my_account.py",
    ),
    # Tokens, cookies, proxies.
    src(
        "http/tokens.py",
        "-4[0-9a-f]{3}-",
        "-[0-9a-f]{4}-",
        "tests/test_guard.py tests/test_login.py tests/test_bad_input.py",
    ),
    src(
        "http/tokens.py",
        "    if method not in _SAFE_METHODS:",
        "    if method in _SAFE_METHODS:",
        "tests/test_cookies.py",
    ),
    src(
        "http/tokens.py",
        'token, domain=domain, path="/", httponly=True',
        'token, domain=domain, path="/", httponly=False',
        "tests/test_cookies.py",
    ),
    src(
        "http/tokens.py",
        'samesite="Lax"\n    )\n\n\ndef has',
        'samesite="None"\n    )\n\n\ndef has',
        "tests/test_cookies.py",
    ),
    src("http/tokens.py", "if not values and _TOKEN", "if _TOKEN", "tests/test_cookies.py"),
    src(
        "forward_auth/handlers.py",
        "if demand.role is not None and set(",
        "if demand.role is None and set(",
        "tests/test_forward_auth.py",
    ),
    src(
        "forward_auth/handlers.py",
        "        raise AmbiguousPath",
        "        pass",
        "tests/test_forward_auth.py",
    ),
    src(
        "security/addresses.py",
        "while entries and within(believed, trusted):",
        "while entries:",
        "tests/test_addresses.py",
    ),
    # Throttles, hashing, refunds.
    src(
        "security/refunds.py",
        "            if not isinstance(error, Problem) or isinstance(error, DatabaseUnavailable):\n                self._hold(taken)",
        "            if not isinstance(error, Problem):\n                pass",
        "tests/test_refunds.py",
    ),
    src(
        "security/refunds.py",
        "JUDGED = (Unauthorized, WrongPassword,",
        "JUDGED = (Unauthorized,",
        "tests/test_attempts.py tests/test_refunds.py tests/test_guessing.py",
    ),
    src(
        "security/credentials/checker.py",
        "        costs = (kind.memory_kib",
        "        return False\n        costs = (kind.memory_kib",
        "tests/test_credentials.py",
    ),
    src(
        "security/credentials/checker.py",
        "        digest = derived.digest if usable else secrets.token_bytes(DIGEST_BYTES)",
        "        digest = derived.digest",
        "tests/test_credentials.py tests/test_login.py",
    ),
    src("security/precis.py", "MAX_MARKS = 30", "MAX_MARKS = 30_000", "tests/test_loop_work.py"),
    # HTTP.
    src(
        "http/connection.py",
        "        self._body_by = self._allow(self._config.body_timeout)",
        "        self._body_by = _NEVER",
        "tests/test_connection.py tests/test_ways_in.py",
    ),
    src(
        "http/connection.py",
        "            if self._chunked_left < 0:",
        "            if False:",
        "tests/test_connection.py",
    ),
    src(
        "http/app.py",
        '    headers.setdefault("Cache-Control", "no-store")',
        '    headers["Cache-Control"] = "private"',
        "tests/test_http.py tests/test_web.py",
    ),
    src("http/strict_json.py", "MAX_DEPTH = ", "MAX_DEPTH = 10 * ", "tests/test_bad_input.py tests/test_web.py"),
    src(
        "postgres/database.py",
        "            if not lost or time.monotonic() - began > ACQUIRE_TIMEOUT:",
        "            if True:",
        "tests/test_database.py",
    ),
    src(
        "postgres/pool.py",
        "        if self.closed or not connection.is_idle:",
        "        if self.closed:",
        "tests/test_database.py",
    ),
    # Logs and terminals.
    src(
        "process/console.py",
        '    return "".join(character if character.isprintable() else "\\ufffd" for character in text)',
        "    return text",
        "tests/test_terminal.py",
    ),
    src(
        "http/access_log.py",
        "given if _SOUND.fullmatch(given) else uuid.uuid4().hex",
        "given or uuid.uuid4().hex",
        "tests/test_logs.py tests/test_http.py",
    ),
]


def survives(mutant: Mutant) -> str | None:
    """Why the change was not caught, if it was not."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
            else:
                shutil.copy(ROOT / name, copy / name)
        path = copy / mutant.file
        text = path.read_text()
        if text.count(mutant.old) != 1:
            return f"the text stands there {text.count(mutant.old)} times"
        path.write_text(text.replace(mutant.old, mutant.new))
        done = subprocess.run(
            [
                *("timeout", "--kill-after=10", str(PATIENCE)),
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-x",
                "--no-header",
                "-p",
                "no:cacheprovider",
                *mutant.tests.split(),
            ],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": f"{copy / 'src'}:{copy}"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return "its tests stay green"
        if done.returncode not in {1, 124}:  # 124: its tests hang, which would be noticed too
            return f"pytest ended with {done.returncode}: {done.stdout[-500:]}"
        return None


def main() -> None:
    """Try all of them, or those whose file or text contains what is given; exit with 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("containing", nargs="?", default="")
    parser.add_argument("--at-once", type=int, default=(os.cpu_count() or 1) + 1)
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if options.containing in f"{m.file}\n{m.old}"]
    with ThreadPoolExecutor(options.at_once) as threads:
        survived = 0
        for mutant, reason in zip(chosen, threads.map(survives, chosen), strict=True):
            survived += reason is not None
            line = " ".join(mutant.old.split())[:90]
            print(
                f"{'SURVIVED' if reason else 'caught  '} {mutant.file}: {line}"
                + (f"\n    {reason}" if reason else "")
            )
    print(f"{len(chosen) - survived} of {len(chosen)} caught")
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()
