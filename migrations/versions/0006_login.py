"""The two statements of a login as functions, whose plans Postgres keeps."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None
serves_from = "0001"

# Sent as SQL, the two take Postgres 1.5 ms of processor time, most of it planning; so, 0.6 ms (measured).
#
# enable_seqscan: a plan is kept, also one that was made when the tables were nearly empty. enable_bitmapscan: only a
# plain index scan remembers which entries are dead, and who signs in often leaves many between two vacuums.

# The first of `keys` is the account's own bucket. It is passed over where the account has signed in before from the
# same place: only strangers share it.
#
# The same is looked up for nobody's name as for somebody's: behind a refusal there is no hash that would hide the
# difference.
_FIND_SETTING = """
CREATE FUNCTION gatepost.find_setting(
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
    SELECT t.* INTO refusing, seconds, taken, last FROM gatepost.take(keys, bursts, everys) t;
    SELECT p.setting, p.pepper, p.norm INTO setting, pepper, norm
    FROM gatepost.passwords p WHERE p.user_id = account AND refusing IS NULL;
END
$$
"""

# `unchanged` is false, and nothing has happened, if the password was hashed anew since its setting was read. Whatever
# a login is lost for, the same work is done. `limits` and `bursts` are those that this attempt was the last for;
# `taken` and `everys`, what was taken from the throttles and is given back to who wins, locked in the order in which
# `take` locks.
#
# The user's row is locked first, so that logins of one user wait for each other and each sees all that came before:
# the cap on sessions is exact.
#
# Ten places are remembered, home, work, a telephone's networks, a journey: as many as most people have; each lets 100
# guesses a day pass.
_OPEN_SESSION = """
CREATE FUNCTION gatepost.open_session(
    name text, with_setting text, with_pepper text, with_digest bytea,
    new_hash bytea, lifetime integer, max_per_user integer, from_ip inet, agent text, from_place bytea,
    taken bytea[], everys float8[], limits text[], bursts integer[],
    OUT unchanged boolean, OUT expires_at timestamptz,
    OUT id uuid, OUT username text, OUT roles text[], OUT profile jsonb
) LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    account gatepost.users;
    password gatepost.passwords;
    opened gatepost.sessions;
    refused text;
BEGIN
    SELECT u.* INTO account FROM gatepost.users u WHERE u.canonical = name FOR NO KEY UPDATE;
    SELECT p.* INTO password FROM gatepost.passwords p WHERE p.user_id = account.id;
    unchanged := password.setting = with_setting AND password.pepper IS NOT DISTINCT FROM with_pepper;
    IF NOT unchanged THEN
        RETURN;
    END IF;
    refused := CASE
        WHEN account.id IS NULL THEN 'unknown_user'
        WHEN password.user_id IS NULL THEN 'no_password'
        WHEN password.digest <> with_digest THEN 'wrong_password'
        WHEN account.disabled_at IS NOT NULL THEN 'disabled'
    END;
    IF refused IS NOT NULL THEN
        INSERT INTO gatepost.events (kind, user_id, ip, user_agent, detail)
        VALUES ('authn_login_fail', account.id, from_ip, agent, jsonb_build_object('reason', refused));
        INSERT INTO gatepost.events (kind, user_id, ip, user_agent, detail)
        SELECT 'authn_login_fail_max', account.id, from_ip, agent,
            jsonb_build_object('limit', l.limit_name, 'max', l.burst)
        FROM unnest(limits, bursts) AS l (limit_name, burst);
        RETURN;
    END IF;
    INSERT INTO gatepost.sessions (token_hash, user_id, epoch, expires_at, ip, user_agent)
    VALUES (new_hash, account.id, account.epoch, clock_timestamp() + make_interval(secs => lifetime), from_ip, agent)
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
    UPDATE gatepost.throttles t SET due = t.due - make_interval(secs => held.every)
    FROM (
        SELECT t.key, w.every FROM unnest(taken, everys) AS w (key, every) JOIN gatepost.throttles t USING (key)
        ORDER BY t.key FOR NO KEY UPDATE OF t
    ) AS held WHERE t.key = held.key;
    expires_at := opened.expires_at;
    id := account.id;
    username := account.username;
    roles := account.roles;
    profile := account.profile;
END
$$
"""


def upgrade() -> None:
    """Create them."""
    op.execute(_FIND_SETTING)
    op.execute(_OPEN_SESSION)


def downgrade() -> None:
    """Drop them."""
    op.execute("DROP FUNCTION gatepost.open_session")
    op.execute("DROP FUNCTION gatepost.find_setting")
