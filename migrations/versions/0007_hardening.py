"""What an attack found: locks that told who has an account, a clock set back, rows without end, two demotions."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None
serves_from = "0001"

# The functions are new under new names: the code of the release before goes on with the old ones.

# As `take`; and a bucket never counts for more than its burst. What is due later than that was written before the
# clock was set back. It is put right, and this attempt refused: so nothing else is locked meanwhile.
_TAKE = """
CREATE FUNCTION gatepost.take_2(
    keys bytea[], bursts integer[], everys float8[],
    OUT refusing integer, OUT seconds float8, OUT taken integer[], OUT last integer[]
) LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    moment CONSTANT timestamptz := clock_timestamp();
    latest timestamptz;
    ahead double precision;
    is_last boolean;
BEGIN
    FOR i IN 1 .. cardinality(keys) LOOP
        SELECT extract(epoch FROM t.due - moment) - everys[i] * (bursts[i] - 1) INTO ahead
        FROM gatepost.throttles t WHERE t.key = keys[i];
        IF ahead > everys[i] THEN
            UPDATE gatepost.throttles t SET due = moment + make_interval(secs => everys[i] * bursts[i])
            WHERE t.key = keys[i] AND t.due > moment + make_interval(secs => everys[i] * bursts[i]);
            ahead := everys[i];
        END IF;
        IF ahead > coalesce(seconds, 0) THEN
            refusing := i;
            seconds := ahead;
        END IF;
    END LOOP;
    IF refusing IS NOT NULL THEN
        RETURN;
    END IF;
    PERFORM set_config('synchronous_commit', 'off', true);
    FOR i IN 1 .. cardinality(keys) LOOP
        CONTINUE WHEN keys[i] IS NULL;
        latest := moment + make_interval(secs => everys[i] * (bursts[i] - 1));
        INSERT INTO gatepost.throttles AS t (key, due) VALUES (keys[i], moment + make_interval(secs => everys[i]))
        ON CONFLICT (key) DO UPDATE SET due = greatest(t.due, moment) + make_interval(secs => everys[i])
        WHERE t.due <= latest
        RETURNING t.due > latest INTO is_last;
        IF NOT FOUND THEN
            UPDATE gatepost.throttles t SET due = t.due - make_interval(secs => everys[n])
            FROM unnest(taken) AS n WHERE t.key = keys[n];
            SELECT i, extract(epoch FROM t.due - latest), NULL, NULL INTO refusing, seconds, taken, last
            FROM gatepost.throttles t WHERE t.key = keys[i];
            RETURN;
        END IF;
        taken := taken || i;
        IF is_last THEN
            last := last || i;
        END IF;
    END LOOP;
END
$$
"""

_FIND_SETTING = """
CREATE FUNCTION gatepost.find_setting_2(
    name text, from_place bytea, keys bytea[], bursts integer[], everys float8[],
    OUT refusing integer, OUT seconds float8, OUT taken integer[], OUT last integer[],
    OUT setting text, OUT pepper text, OUT norm text
) LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    nobody CONSTANT uuid := '00000000-0000-0000-0000-000000000000';
    account uuid;
BEGIN
    SELECT u.id INTO account FROM gatepost.users u WHERE u.canonical = name;
    account := coalesce(account, nobody);
    PERFORM FROM gatepost.known_places k WHERE k.user_id = account AND k.place = from_place;
    IF FOUND THEN
        keys[1] := NULL;
    END IF;
    SELECT t.* INTO refusing, seconds, taken, last FROM gatepost.take_2(keys, bursts, everys) t;
    SELECT p.setting, p.pepper, p.norm INTO setting, pepper, norm
    FROM gatepost.passwords p WHERE p.user_id = account AND refusing IS NULL;
END
$$
"""

# As `open_session`; and a login that is lost locks nothing, or guesses at a name that exists would wait for each
# other's commits, and tell by it that it exists. One that may be won is judged again with the user's row locked.
#
# Who knows the password takes from the bucket `activity` instead of those of guesses: each session that is opened
# leaves rows. That bucket may be had again after a crash, the session not: so `durable`.
#
# `abandoned`: its caller has gone. The attempt is judged, and no session opened that nobody has.
_OPEN_SESSION = """
CREATE FUNCTION gatepost.open_session_2(
    name text, with_setting text, with_pepper text, with_digest bytea,
    new_hash bytea, lifetime integer, max_per_user integer, from_ip inet, agent text, from_place bytea,
    taken bytea[], everys float8[], limits text[], bursts integer[],
    activity bytea, activity_burst integer, activity_every float8, abandoned boolean,
    OUT unchanged boolean, OUT refusing float8, OUT expires_at timestamptz,
    OUT id uuid, OUT username text, OUT roles text[], OUT profile jsonb
) LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    account gatepost.users;
    password gatepost.passwords;
    opened gatepost.sessions;
    refused text;
    durable CONSTANT text := current_setting('synchronous_commit');
BEGIN
    FOR locked IN 0 .. 1 LOOP
        IF locked = 0 THEN
            SELECT u.* INTO account FROM gatepost.users u WHERE u.canonical = name;
        ELSE
            SELECT u.* INTO account FROM gatepost.users u WHERE u.id = account.id FOR NO KEY UPDATE;
        END IF;
        SELECT p.* INTO password FROM gatepost.passwords p WHERE p.user_id = account.id;
        unchanged := password.setting = with_setting AND password.pepper IS NOT DISTINCT FROM with_pepper;
        IF NOT unchanged THEN
            RETURN;
        END IF;
        refused := CASE
            WHEN account.id IS NULL OR account.canonical <> name THEN 'unknown_user'
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
        INSERT INTO gatepost.sessions (token_hash, user_id, epoch, expires_at, ip, user_agent)
        VALUES (new_hash, account.id, account.epoch, clock_timestamp() + make_interval(secs => lifetime),
            from_ip, agent)
        RETURNING * INTO opened;
        INSERT INTO gatepost.events (kind, user_id, session_handle, ip, user_agent)
        VALUES ('authn_login_success', account.id, opened.handle, from_ip, agent);
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
        expires_at := opened.expires_at;
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

# As `live_sessions`; and the canonical name, which is stored, so that nobody computes it again.
_LIVE_SESSIONS = """
CREATE FUNCTION gatepost.live_sessions_2(hashes bytea[], idle_timeout integer)
RETURNS TABLE (token_hash bytea, canonical text, document text)
LANGUAGE plpgsql STABLE SET enable_seqscan = off AS $$
BEGIN
    RETURN QUERY
    SELECT s.token_hash, u.canonical, json_build_object(
        'user', json_build_object(
            'id', u.id, 'username', u.username, 'roles', u.roles, 'profile', u.profile),
        'session', json_build_object(
            'handle', s.handle, 'created_at', s.created_at, 'last_seen_at', s.last_seen_at,
            'expires_at', s.expires_at, 'ip', host(s.ip), 'user_agent', s.user_agent))::text
    FROM gatepost.sessions s JOIN gatepost.users u ON u.id = s.user_id AND u.epoch = s.epoch
    WHERE s.token_hash = ANY (hashes)
        AND u.disabled_at IS NULL AND s.expires_at > clock_timestamp()
        AND s.last_seen_at > clock_timestamp() - make_interval(secs => idle_timeout);
END
$$
"""

# Under READ COMMITTED the count sees what has been committed while the lock was waited for. A snapshot that is kept
# does not; there one administrator who stays is locked, which Postgres refuses (40001) if that row has changed since.
# Replaced in place: code of any release minds it no more than before.
_KEEP_AN_ADMIN = """
CREATE OR REPLACE FUNCTION gatepost.keep_an_admin() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(7449363237422001518); -- "gateadmn"
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
        PERFORM FROM gatepost.users
        WHERE roles <> '{}' AND roles @> '{admin}' AND disabled_at IS NULL AND id <> OLD.id
        ORDER BY id LIMIT 1 FOR NO KEY UPDATE;
    END IF;
    -- count, not EXISTS: that may be planned as a walk over the whole table until one turns up.
    IF 0 = (
        SELECT count(*) FROM gatepost.users
        WHERE roles <> '{}' AND roles @> '{admin}' AND disabled_at IS NULL AND id <> OLD.id
    ) THEN
        RAISE EXCEPTION 'the last administrator stays' USING
            ERRCODE = 'check_violation', SCHEMA = 'gatepost', TABLE = 'users', CONSTRAINT = 'users_last_admin';
    END IF;
    RETURN coalesce(NEW, OLD);
END
$$
"""

_KEPT_BEFORE = """
CREATE OR REPLACE FUNCTION gatepost.keep_an_admin() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(7449363237422001518); -- "gateadmn"
    -- count, not EXISTS: that may be planned as a walk over the whole table until one turns up.
    IF 0 = (
        SELECT count(*) FROM gatepost.users
        WHERE roles <> '{}' AND roles @> '{admin}' AND disabled_at IS NULL AND id <> OLD.id
    ) THEN
        RAISE EXCEPTION 'the last administrator stays' USING
            ERRCODE = 'check_violation', SCHEMA = 'gatepost', TABLE = 'users', CONSTRAINT = 'users_last_admin';
    END IF;
    RETURN coalesce(NEW, OLD);
END
$$
"""


def upgrade() -> None:
    """Create them."""
    op.execute(_TAKE)
    op.execute(_FIND_SETTING)
    op.execute(_OPEN_SESSION)
    op.execute(_LIVE_SESSIONS)
    op.execute(_KEEP_AN_ADMIN)


def downgrade() -> None:
    """Drop them."""
    op.execute(_KEPT_BEFORE)
    op.execute("DROP FUNCTION gatepost.live_sessions_2")
    op.execute("DROP FUNCTION gatepost.open_session_2")
    op.execute("DROP FUNCTION gatepost.find_setting_2")
    op.execute("DROP FUNCTION gatepost.take_2")
