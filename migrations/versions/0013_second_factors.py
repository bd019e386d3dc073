"""Logins in steps: TOTP, recovery codes, passkeys, tickets; and how and when a session was authenticated."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, TIMESTAMP, UUID

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None
# Older code opens sessions without open_session_3, and would pass over second factors.
serves_from = "0011"

# A function of its own: a login and every further step ask it. NULL for a user without one.
_SECOND_FACTORS = """
CREATE FUNCTION gatepost.second_factors(account uuid) RETURNS text[]
LANGUAGE plpgsql STABLE SET enable_seqscan = off AS $$
DECLARE
    methods text[];
BEGIN
    IF EXISTS (SELECT FROM gatepost.totp_factors f WHERE f.user_id = account AND f.confirmed_at IS NOT NULL) THEN
        methods := '{totp}';
    END IF;
    IF EXISTS (SELECT FROM gatepost.passkeys p WHERE p.user_id = account) THEN
        methods := methods || '{passkey}'::text[];
    END IF;
    IF methods IS NOT NULL AND EXISTS (SELECT FROM gatepost.recovery_codes r WHERE r.user_id = account) THEN
        methods := methods || '{recovery_code}'::text[];
    END IF;
    RETURN methods;
END
$$
"""

# Every way to sign in ends here. `how`: the methods of RFC 8176.
_BEGIN_SESSION = """
CREATE FUNCTION gatepost.begin_session(
    account gatepost.users, new_hash bytea, lifetime integer, max_per_user integer, from_ip inet, agent text,
    from_place bytea, how text[]
) RETURNS timestamptz
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    opened gatepost.sessions;
BEGIN
    INSERT INTO gatepost.sessions (token_hash, user_id, epoch, expires_at, ip, user_agent, amr)
    VALUES (new_hash, account.id, account.epoch, clock_timestamp() + make_interval(secs => lifetime),
        from_ip, agent, how)
    RETURNING * INTO opened;
    INSERT INTO gatepost.events (kind, user_id, session_handle, ip, user_agent, detail)
    VALUES ('authn_login_success', account.id, opened.handle, from_ip, agent,
        CASE WHEN how = '{pwd}' THEN '{}'::jsonb ELSE jsonb_build_object('amr', how) END);
    WITH superseded AS (
        DELETE FROM gatepost.sessions WHERE token_hash = ANY (ARRAY(
            SELECT s.token_hash FROM gatepost.sessions s
            WHERE s.user_id = account.id AND s.token_hash <> new_hash
            ORDER BY s.epoch = account.epoch AND s.expires_at > clock_timestamp() DESC, s.created_at DESC
            OFFSET max_per_user - 1))
        RETURNING handle
    )
    INSERT INTO gatepost.events (kind, user_id, session_handle, ip, user_agent, detail)
    SELECT 'session_revoked', account.id, handle, from_ip, agent, '{"reason": "session_limit"}' FROM superseded;
    IF from_place IS NOT NULL THEN
        INSERT INTO gatepost.known_places AS k (user_id, place) VALUES (account.id, from_place)
        ON CONFLICT (user_id, place) DO UPDATE SET seen_at = clock_timestamp()
        WHERE k.seen_at < clock_timestamp() - interval '1 hour';
        IF FOUND THEN
            DELETE FROM gatepost.known_places WHERE user_id = account.id AND place = ANY (ARRAY(
                SELECT k.place FROM gatepost.known_places k WHERE k.user_id = account.id
                ORDER BY k.place = from_place DESC, k.seen_at DESC OFFSET 10));
        END IF;
    END IF;
    RETURN opened.expires_at;
END
$$
"""

# As `open_session_3`; and for a user with a second factor, `new_hash` becomes that of a ticket instead of a session:
# `methods` then says what the next step takes, and `expires_at` is the ticket's. The password was right, so what the
# attempt took is given back; guesses at the second factor are counted by themselves.
_OPEN_SESSION = """
CREATE FUNCTION gatepost.open_session_4(
    name text, email text, with_setting text, with_pepper text, with_digest bytea,
    new_hash bytea, lifetime integer, max_per_user integer, from_ip inet, agent text, from_place bytea,
    taken bytea[], everys float8[], limits text[], bursts integer[],
    activity bytea, activity_burst integer, activity_every float8, abandoned boolean,
    OUT unchanged boolean, OUT refusing float8, OUT methods text[], OUT expires_at timestamptz,
    OUT id uuid, OUT username text, OUT roles text[], OUT profile jsonb
) LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    account gatepost.users;
    password gatepost.passwords;
    refused text;
    by_address boolean := false;
    durable CONSTANT text := current_setting('synchronous_commit');
BEGIN
    FOR locked IN 0 .. 1 LOOP
        IF locked = 0 THEN
            SELECT u.* INTO account FROM gatepost.users u WHERE u.canonical = name;
            IF account.id IS NULL AND email IS NOT NULL THEN
                by_address := true;
                SELECT u.* INTO account FROM gatepost.emails e JOIN gatepost.users u ON u.id = e.user_id
                WHERE e.canonical = email AND e.verified_at IS NOT NULL;
            END IF;
        ELSE
            SELECT u.* INTO account FROM gatepost.users u WHERE u.id = account.id FOR NO KEY UPDATE;
            IF by_address THEN
                PERFORM FROM gatepost.emails e
                WHERE e.canonical = email AND e.verified_at IS NOT NULL AND e.user_id = account.id;
                by_address := FOUND;
            END IF;
        END IF;
        SELECT p.* INTO password FROM gatepost.passwords p WHERE p.user_id = account.id;
        unchanged := password.setting = with_setting AND password.pepper IS NOT DISTINCT FROM with_pepper;
        IF NOT unchanged THEN
            RETURN;
        END IF;
        refused := CASE
            WHEN account.id IS NULL OR (account.canonical <> name AND NOT by_address) THEN 'unknown_user'
            WHEN password.user_id IS NULL THEN 'no_password'
            WHEN password.digest <> with_digest THEN 'wrong_password'
            WHEN account.disabled_at IS NOT NULL THEN 'disabled'
        END;
        EXIT WHEN refused IS NOT NULL;
    END LOOP;
    IF refused IS NOT NULL THEN
        INSERT INTO gatepost.events (kind, user_id, ip, user_agent, detail)
        VALUES ('authn_login_fail', account.id, from_ip, agent, jsonb_build_object('reason', refused));
        INSERT INTO gatepost.events (kind, user_id, ip, user_agent, detail)
        SELECT 'authn_login_fail_max', account.id, from_ip, agent,
            jsonb_build_object('limit', l.limit_name, 'max', l.burst)
        FROM unnest(limits, bursts) AS l (limit_name, burst);
        RETURN;
    END IF;
    IF NOT abandoned THEN
        SELECT t.seconds INTO refusing
        FROM gatepost.take_2(ARRAY[activity], ARRAY[activity_burst], ARRAY[activity_every]) t;
        PERFORM set_config('synchronous_commit', durable, true);
    END IF;
    IF refusing IS NOT NULL THEN
        RETURN;
    END IF;
    IF NOT abandoned THEN
        methods := gatepost.second_factors(account.id);
        IF methods IS NULL THEN
            expires_at := gatepost.begin_session(
                account, new_hash, lifetime, max_per_user, from_ip, agent, from_place, '{pwd}');
        ELSE
            expires_at := clock_timestamp() + interval '10 minutes';
            INSERT INTO gatepost.login_tickets (ticket_hash, user_id, epoch, expires_at)
            VALUES (new_hash, account.id, account.epoch, expires_at);
            DELETE FROM gatepost.login_tickets WHERE ticket_hash = ANY (ARRAY(
                SELECT t.ticket_hash FROM gatepost.login_tickets t WHERE t.user_id = account.id
                ORDER BY t.expires_at DESC OFFSET 10));
            INSERT INTO gatepost.events (kind, user_id, ip, user_agent)
            VALUES ('authn_login_factor_required', account.id, from_ip, agent);
        END IF;
        id := account.id;
        username := account.username;
        roles := account.roles;
        profile := account.profile;
    END IF;
    -- Last: other logins of this account wait for these rows.
    UPDATE gatepost.throttles t SET due = t.due - make_interval(secs => held.every)
    FROM (
        SELECT t.key, w.every FROM unnest(taken, everys) AS w (key, every) JOIN gatepost.throttles t USING (key)
        ORDER BY t.key FOR NO KEY UPDATE OF t
    ) AS held WHERE t.key = held.key;
END
$$
"""

# Nodes of the release before call it. They know of no further step, so to them such a login is lost.
_OPEN_SESSION_BEFORE = """
CREATE FUNCTION gatepost.open_session_3(
    name text, email text, with_setting text, with_pepper text, with_digest bytea,
    new_hash bytea, lifetime integer, max_per_user integer, from_ip inet, agent text, from_place bytea,
    taken bytea[], everys float8[], limits text[], bursts integer[],
    activity bytea, activity_burst integer, activity_every float8, abandoned boolean,
    OUT unchanged boolean, OUT refusing float8, OUT expires_at timestamptz,
    OUT id uuid, OUT username text, OUT roles text[], OUT profile jsonb
) LANGUAGE plpgsql AS $$
DECLARE
    opened record;
BEGIN
    SELECT o.* INTO opened FROM gatepost.open_session_4(
        name, email, with_setting, with_pepper, with_digest, new_hash, lifetime, max_per_user, from_ip, agent,
        from_place, taken, everys, limits, bursts, activity, activity_burst, activity_every, abandoned) o;
    unchanged := opened.unchanged;
    refusing := opened.refusing;
    IF opened.methods IS NULL THEN
        expires_at := opened.expires_at;
        id := opened.id;
        username := opened.username;
        roles := opened.roles;
        profile := opened.profile;
    END IF;
END
$$
"""

# Whether a code or a passkey proves who somebody is, and uses it up: one of two at once wins. `factor`, `step`: the
# TOTP factor that a code fits, and the number of its 30 seconds, each of which is worth one proof. `recovery`: the
# hash of a recovery code, of which the owner is told by mail in `language`. `passkey`, `counter`: one that has signed
# `challenge`, which counts once. A counter that does not rise tells of a copy.
_PROVE = """
CREATE FUNCTION gatepost.prove(
    account uuid, factor uuid, step bigint, recovery bytea, passkey uuid, counter bigint, challenge bytea,
    language text
) RETURNS boolean
LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    IF passkey IS NOT NULL THEN
        INSERT INTO gatepost.used_challenges (challenge_hash) VALUES (challenge) ON CONFLICT DO NOTHING;
        IF NOT FOUND THEN
            RETURN false;
        END IF;
        UPDATE gatepost.passkeys p SET sign_count = counter, last_used_at = clock_timestamp()
        WHERE p.id = passkey AND p.user_id = account
            AND (p.sign_count < counter OR p.sign_count = 0 AND counter = 0);
        IF FOUND THEN
            RETURN true;
        END IF;
        INSERT INTO gatepost.events (kind, user_id, detail)
        SELECT 'passkey_counter_fell', account, jsonb_build_object('passkey', p.name)
        FROM gatepost.passkeys p WHERE p.id = passkey AND p.user_id = account;
        RETURN false;
    END IF;
    IF recovery IS NULL THEN
        UPDATE gatepost.totp_factors f SET last_step = step, last_used_at = clock_timestamp()
        WHERE f.id = factor AND f.user_id = account AND f.confirmed_at IS NOT NULL AND f.last_step < step;
        RETURN FOUND;
    END IF;
    IF gatepost.second_factors(account) IS NULL THEN
        RETURN false;
    END IF;
    DELETE FROM gatepost.recovery_codes r WHERE r.user_id = account AND r.code_hash = recovery;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO gatepost.outbox (kind, user_id, address, language, detail)
    SELECT 'factor_changed', account, e.address, language, jsonb_build_object('change', 'recovery_code',
        'left', (SELECT count(*) FROM gatepost.recovery_codes r WHERE r.user_id = account))
    FROM gatepost.emails e WHERE e.user_id = account AND e.verified_at IS NOT NULL AND language IS NOT NULL;
    RETURN true;
END
$$
"""

# The second step of a login, and one guess from the user's bucket, which a right code gets back. `alive`: whether the
# ticket counts. Judged with the user's row locked: a change of the
# password, a disabling and a removal of the factor come before or after it.
_FINISH_LOGIN = """
CREATE FUNCTION gatepost.finish_login(
    ticket bytea, factor uuid, step bigint, recovery bytea, passkey uuid, counter bigint, challenge bytea,
    language text, how text[],
    new_hash bytea, lifetime integer, max_per_user integer, from_ip inet, agent text, from_place bytea,
    guesses bytea, guesses_burst integer, guesses_every float8, taken bytea[], everys float8[],
    OUT alive boolean, OUT refusing float8, OUT expires_at timestamptz,
    OUT id uuid, OUT username text, OUT roles text[], OUT profile jsonb
) LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    account gatepost.users;
    durable CONSTANT text := current_setting('synchronous_commit');
BEGIN
    SELECT u.* INTO account FROM gatepost.users u
    WHERE u.id = (SELECT t.user_id FROM gatepost.login_tickets t WHERE t.ticket_hash = ticket) FOR NO KEY UPDATE;
    alive := EXISTS (
        SELECT FROM gatepost.login_tickets t WHERE t.ticket_hash = ticket AND t.epoch = account.epoch
            AND t.expires_at > clock_timestamp() AND account.disabled_at IS NULL);
    IF NOT alive THEN
        RETURN;
    END IF;
    SELECT t.seconds INTO refusing
    FROM gatepost.take_2(ARRAY[guesses], ARRAY[guesses_burst], ARRAY[guesses_every]) t;
    PERFORM set_config('synchronous_commit', durable, true);
    IF refusing IS NOT NULL THEN
        RETURN;
    END IF;
    IF NOT gatepost.prove(account.id, factor, step, recovery, passkey, counter, challenge, language) THEN
        INSERT INTO gatepost.events (kind, user_id, ip, user_agent)
        VALUES ('authn_factor_fail', account.id, from_ip, agent);
        RETURN;
    END IF;
    DELETE FROM gatepost.login_tickets t WHERE t.ticket_hash = ticket;
    expires_at := gatepost.begin_session(
        account, new_hash, lifetime, max_per_user, from_ip, agent, from_place, how);
    IF recovery IS NOT NULL THEN
        INSERT INTO gatepost.events (kind, user_id, ip, user_agent)
        VALUES ('recovery_code_used', account.id, from_ip, agent);
    END IF;
    id := account.id;
    username := account.username;
    roles := account.roles;
    profile := account.profile;
    UPDATE gatepost.throttles t SET due = t.due - make_interval(secs => held.every)
    FROM (
        SELECT t.key, w.every FROM unnest(taken || guesses, everys || guesses_every) AS w (key, every)
            JOIN gatepost.throttles t USING (key)
        ORDER BY t.key FOR NO KEY UPDATE OF t
    ) AS held WHERE t.key = held.key;
END
$$
"""

# A passkey alone: it is two factors in one gesture. One is taken from `activity`, as for a right password.
_SIGN_IN = """
CREATE FUNCTION gatepost.sign_in_with_passkey(
    passkey uuid, counter bigint, challenge bytea, how text[],
    new_hash bytea, lifetime integer, max_per_user integer, from_ip inet, agent text, from_place bytea,
    activity bytea, activity_burst integer, activity_every float8, taken bytea[], everys float8[],
    OUT refusing float8, OUT expires_at timestamptz,
    OUT id uuid, OUT username text, OUT roles text[], OUT profile jsonb
) LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    account gatepost.users;
    durable CONSTANT text := current_setting('synchronous_commit');
BEGIN
    SELECT u.* INTO account FROM gatepost.users u
    WHERE u.id = (SELECT p.user_id FROM gatepost.passkeys p WHERE p.id = passkey) FOR NO KEY UPDATE;
    IF account.id IS NULL OR account.disabled_at IS NOT NULL THEN
        RETURN;
    END IF;
    SELECT t.seconds INTO refusing
    FROM gatepost.take_2(ARRAY[activity], ARRAY[activity_burst], ARRAY[activity_every]) t;
    PERFORM set_config('synchronous_commit', durable, true);
    IF refusing IS NOT NULL THEN
        RETURN;
    END IF;
    IF NOT gatepost.prove(account.id, NULL, NULL, NULL, passkey, counter, challenge, NULL) THEN
        INSERT INTO gatepost.events (kind, user_id, ip, user_agent)
        VALUES ('authn_factor_fail', account.id, from_ip, agent);
        RETURN;
    END IF;
    expires_at := gatepost.begin_session(
        account, new_hash, lifetime, max_per_user, from_ip, agent, from_place, how);
    id := account.id;
    username := account.username;
    roles := account.roles;
    profile := account.profile;
    UPDATE gatepost.throttles t SET due = t.due - make_interval(secs => held.every)
    FROM (
        SELECT t.key, w.every FROM unnest(taken, everys) AS w (key, every) JOIN gatepost.throttles t USING (key)
        ORDER BY t.key FOR NO KEY UPDATE OF t
    ) AS held WHERE t.key = held.key;
END
$$
"""

# The user of this session proves again who it is. `alive`: whether the session is.
_CONFIRM_SESSION = """
CREATE FUNCTION gatepost.confirm_session(
    account uuid, of_handle uuid, factor uuid, step bigint, recovery bytea, passkey uuid, counter bigint,
    challenge bytea, language text, how text[], from_ip inet, agent text,
    OUT alive boolean, OUT confirmed_at timestamptz
) LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    PERFORM FROM gatepost.users u WHERE u.id = account FOR NO KEY UPDATE;
    PERFORM FROM gatepost.sessions s JOIN gatepost.users u ON u.id = s.user_id AND u.epoch = s.epoch
    WHERE s.user_id = account AND s.handle = of_handle AND u.disabled_at IS NULL
        AND s.expires_at > clock_timestamp() FOR NO KEY UPDATE OF s;
    alive := FOUND;
    IF NOT alive THEN
        RETURN;
    END IF;
    IF NOT gatepost.prove(account, factor, step, recovery, passkey, counter, challenge, language) THEN
        INSERT INTO gatepost.events (kind, user_id, session_handle, ip, user_agent)
        VALUES ('authn_factor_fail', account, of_handle, from_ip, agent);
        RETURN;
    END IF;
    UPDATE gatepost.sessions s SET confirmed_at = clock_timestamp(),
        amr = ARRAY(SELECT m FROM unnest(s.amr) AS m UNION SELECT m FROM unnest(how) AS m ORDER BY m)
    WHERE s.user_id = account AND s.handle = of_handle RETURNING s.confirmed_at INTO confirmed_at;
    INSERT INTO gatepost.events (kind, user_id, session_handle, ip, user_agent)
    VALUES ('session_confirmed', account, of_handle, from_ip, agent);
    IF recovery IS NOT NULL THEN
        INSERT INTO gatepost.events (kind, user_id, session_handle, ip, user_agent)
        VALUES ('recovery_code_used', account, of_handle, from_ip, agent);
    END IF;
END
$$
"""

# As `live_sessions_2`; and how long ago by the database's clock its user has confirmed who it is, whether by two
# factors, and whether a role of the user demands two and it has been one.
_LIVE_SESSIONS = """
CREATE FUNCTION gatepost.live_sessions_3(hashes bytea[], idle_timeout integer, two_factors_for text[])
RETURNS TABLE (
    token_hash bytea, canonical text, document text, confirmed_ago float8, two_factors boolean, restricted boolean
)
LANGUAGE plpgsql STABLE SET enable_seqscan = off AS $$
BEGIN
    RETURN QUERY
    SELECT s.token_hash, u.canonical, json_build_object(
        'user', json_build_object(
            'id', u.id, 'username', u.username, 'roles', u.roles, 'profile', u.profile),
        'session', json_build_object(
            'handle', s.handle, 'created_at', s.created_at, 'last_seen_at', s.last_seen_at,
            'expires_at', s.expires_at, 'ip', host(s.ip), 'user_agent', s.user_agent,
            'amr', s.amr, 'authenticated_at', coalesce(s.confirmed_at, s.created_at)))::text,
        date_part('epoch', clock_timestamp() - coalesce(s.confirmed_at, s.created_at)), -- extract gives a numeric
        'mfa' = ANY (s.amr), u.roles && two_factors_for AND 'mfa' <> ALL (s.amr)
    FROM gatepost.sessions s JOIN gatepost.users u ON u.id = s.user_id AND u.epoch = s.epoch
    WHERE s.token_hash = ANY (hashes)
        AND u.disabled_at IS NULL AND s.expires_at > clock_timestamp()
        AND s.last_seen_at > clock_timestamp() - make_interval(secs => idle_timeout);
END
$$
"""

# Nodes of the release before call it, and `sign_in_as`. Neither may let in who has to add a second factor first; for
# which roles that is, the nodes say in `settings`.
_LIVE_SESSIONS_BEFORE = """
CREATE FUNCTION gatepost.live_sessions_2(hashes bytea[], idle_timeout integer)
RETURNS TABLE (token_hash bytea, canonical text, document text)
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN QUERY
    SELECT l.token_hash, l.canonical, l.document
    FROM gatepost.live_sessions_3(hashes, idle_timeout, ARRAY(
        SELECT substr(s.name, 13) FROM gatepost.settings s WHERE s.name ^@ 'two_factors:')) l
    WHERE NOT l.restricted;
END
$$
"""

_REPLACED = {
    "open_session_3": _OPEN_SESSION_BEFORE,
    "live_sessions_2": _LIVE_SESSIONS_BEFORE,
}
_NEW = {
    "second_factors": _SECOND_FACTORS,
    "begin_session": _BEGIN_SESSION,
    "open_session_4": _OPEN_SESSION,
    "prove": _PROVE,
    "finish_login": _FINISH_LOGIN,
    "sign_in_with_passkey": _SIGN_IN,
    "confirm_session": _CONFIRM_SESSION,
    "live_sessions_3": _LIVE_SESSIONS,
}


def _now(name: str) -> sa.Column[Any]:
    return sa.Column(name, TIMESTAMP(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()"))


def _user(*, primary_key: bool = False) -> sa.Column[Any]:
    return sa.Column(
        "user_id",
        UUID(as_uuid=True),
        sa.ForeignKey("gatepost.users.id", ondelete="CASCADE"),
        nullable=False,
        primary_key=primary_key,
    )


def upgrade() -> None:
    """Create the tables and the functions. The new columns have fixed defaults, so `sessions` is not rewritten."""
    op.add_column(
        "sessions",
        sa.Column("amr", ARRAY(sa.Text), nullable=False, server_default=sa.text("'{pwd}'::text[]")),
        schema="gatepost",
    )
    op.add_column("sessions", sa.Column("confirmed_at", TIMESTAMP(timezone=True)), schema="gatepost")
    op.create_table(
        "totp_factors",
        sa.Column(
            "id", UUID(as_uuid=True), primary_key=True, nullable=False, server_default=sa.text("gen_random_uuid()")
        ),
        _user(),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("sealed", BYTEA, nullable=False),
        sa.Column("key", sa.Text),
        sa.Column("last_step", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        _now("created_at"),
        sa.Column("confirmed_at", TIMESTAMP(timezone=True)),
        sa.Column("last_used_at", TIMESTAMP(timezone=True)),
        sa.CheckConstraint("octet_length(name) BETWEEN 1 AND 256", name="name_length"),
        sa.CheckConstraint("octet_length(sealed) BETWEEN 44 AND 128", name="sealed_length"),
        schema="gatepost",
    )
    op.create_index("totp_factors_user_id_idx", "totp_factors", ["user_id"], schema="gatepost")
    op.create_index("totp_factors_key_idx", "totp_factors", ["key"], schema="gatepost")
    op.create_index(
        "totp_factors_unconfirmed_idx",
        "totp_factors",
        ["created_at"],
        schema="gatepost",
        postgresql_where=sa.text("confirmed_at IS NULL"),
    )
    op.create_table(
        "recovery_codes",
        _user(primary_key=True),
        sa.Column("code_hash", BYTEA, primary_key=True, nullable=False),
        _now("created_at"),
        sa.CheckConstraint("octet_length(code_hash) = 32", name="code_hash_length"),
        schema="gatepost",
    )
    op.create_table(
        "login_tickets",
        sa.Column("ticket_hash", BYTEA, primary_key=True, nullable=False),
        _user(),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("expires_at", TIMESTAMP(timezone=True), nullable=False),
        sa.CheckConstraint("octet_length(ticket_hash) = 32", name="ticket_hash_length"),
        schema="gatepost",
    )
    op.create_index(
        "login_tickets_user_id_expires_at_idx", "login_tickets", ["user_id", "expires_at"], schema="gatepost"
    )
    op.create_index("login_tickets_expires_at_idx", "login_tickets", ["expires_at"], schema="gatepost")
    op.create_table(
        "passkeys",
        sa.Column(
            "id", UUID(as_uuid=True), primary_key=True, nullable=False, server_default=sa.text("gen_random_uuid()")
        ),
        _user(),
        sa.Column("credential_id", BYTEA, nullable=False, unique=True),
        sa.Column("public_key", BYTEA, nullable=False),
        sa.Column("sign_count", sa.BigInteger, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("synced", sa.Boolean, nullable=False),
        sa.Column("backed_up", sa.Boolean, nullable=False),
        _now("created_at"),
        sa.Column("last_used_at", TIMESTAMP(timezone=True)),
        sa.CheckConstraint("octet_length(credential_id) BETWEEN 1 AND 1023", name="credential_id_length"),
        sa.CheckConstraint("octet_length(public_key) BETWEEN 1 AND 2048", name="public_key_length"),
        sa.CheckConstraint("octet_length(name) BETWEEN 1 AND 256", name="name_length"),
        schema="gatepost",
    )
    op.create_index("passkeys_user_id_idx", "passkeys", ["user_id"], schema="gatepost")
    op.create_table(
        "used_challenges",
        sa.Column("challenge_hash", BYTEA, primary_key=True, nullable=False),
        _now("used_at"),
        sa.CheckConstraint("octet_length(challenge_hash) = 32", name="challenge_hash_length"),
        schema="gatepost",
    )
    op.create_index("used_challenges_used_at_idx", "used_challenges", ["used_at"], schema="gatepost")
    for name in _REPLACED:
        op.execute(f"ALTER FUNCTION gatepost.{name} RENAME TO {name}_before_0013")
    for sql in (*_NEW.values(), *_REPLACED.values()):
        op.execute(sql)


def downgrade() -> None:
    """Drop them. Users with a second factor sign in with their password alone again."""
    for name in (*_REPLACED, *reversed(_NEW)):
        op.execute(f"DROP FUNCTION gatepost.{name}")
    for name in _REPLACED:
        op.execute(f"ALTER FUNCTION gatepost.{name}_before_0013 RENAME TO {name}")
    for table in ("used_challenges", "passkeys", "login_tickets", "recovery_codes", "totp_factors"):
        op.drop_table(table, schema="gatepost")
    for column in ("confirmed_at", "amr"):
        op.drop_column("sessions", column, schema="gatepost")
