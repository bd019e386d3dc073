"""Mail addresses, the codes that are mailed, and the outbox; a login with an address."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import BYTEA, JSONB, TIMESTAMP, UUID

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None
serves_from = "0001"

# As `find_setting_2`; and where no user has this name, the user with this verified address. `email` is NULL for a
# login without an @, and then it is not looked for.
_FIND_SETTING = """
CREATE FUNCTION gatepost.find_setting_3(
    name text, email text, from_place bytea, keys bytea[], bursts integer[], everys float8[],
    OUT refusing integer, OUT seconds float8, OUT taken integer[], OUT last integer[],
    OUT setting text, OUT pepper text, OUT norm text
) LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    nobody CONSTANT uuid := '00000000-0000-0000-0000-000000000000';
    account uuid;
BEGIN
    SELECT u.id INTO account FROM gatepost.users u WHERE u.canonical = name;
    IF account IS NULL AND email IS NOT NULL THEN
        SELECT e.user_id INTO account FROM gatepost.emails e
        WHERE e.canonical = email AND e.verified_at IS NOT NULL;
    END IF;
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

# As `open_session_2`, with an address as `find_setting_3`. With the user's row locked it is judged again whether the
# name or the address is still that user's.
_OPEN_SESSION = """
CREATE FUNCTION gatepost.open_session_3(
    name text, email text, with_setting text, with_pepper text, with_digest bytea,
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


def _now(name: str) -> sa.Column[Any]:
    return sa.Column(name, TIMESTAMP(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()"))


def _id() -> sa.Column[Any]:
    return sa.Column(
        "id", UUID(as_uuid=True), primary_key=True, nullable=False, server_default=sa.text("gen_random_uuid()")
    )


def _user(*, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(
        "user_id", UUID(as_uuid=True), sa.ForeignKey("gatepost.users.id", ondelete="CASCADE"), nullable=nullable
    )


def _email(name: str) -> sa.Column[Any]:
    return sa.Column(name, UUID(as_uuid=True), sa.ForeignKey("gatepost.emails.id", ondelete="CASCADE"))


def upgrade() -> None:
    """Create the tables and the functions."""
    op.create_table(
        "emails",
        _id(),
        _user(),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("canonical", sa.Text(collation="C"), nullable=False),
        sa.Column("is_primary", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("verified_at", TIMESTAMP(timezone=True)),
        _now("created_at"),
        sa.UniqueConstraint("user_id", "canonical", name="emails_user_id_key"),
        sa.CheckConstraint("octet_length(address) BETWEEN 3 AND 512", name="address_length"),
        sa.CheckConstraint("octet_length(canonical) BETWEEN 3 AND 512", name="canonical_length"),
        sa.CheckConstraint("NOT is_primary OR verified_at IS NOT NULL", name="primary_verified"),
        schema="gatepost",
    )
    verified, unverified = sa.text("verified_at IS NOT NULL"), sa.text("verified_at IS NULL")
    op.create_index(
        "emails_verified_key", "emails", ["canonical"], unique=True, schema="gatepost", postgresql_where=verified
    )
    op.create_index(
        "emails_primary_key",
        "emails",
        ["user_id"],
        unique=True,
        schema="gatepost",
        postgresql_where=sa.text("is_primary"),
    )
    op.create_index("emails_canonical_idx", "emails", ["canonical"], schema="gatepost")
    op.create_index("emails_unverified_idx", "emails", ["created_at"], schema="gatepost", postgresql_where=unverified)
    op.create_table(
        "codes",
        _id(),
        sa.Column("purpose", sa.Text, nullable=False),
        _user(),
        _email("email_id"),
        sa.Column("address", sa.Text),
        sa.Column("since", TIMESTAMP(timezone=True)),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("link_hash", BYTEA, nullable=False, unique=True),
        sa.Column("typed_hash", BYTEA, unique=True),
        _now("created_at"),
        sa.Column("expires_at", TIMESTAMP(timezone=True), nullable=False),
        sa.CheckConstraint("purpose IN ('verify_email', 'recovery', 'undo_email')", name="purpose_known"),
        sa.CheckConstraint("octet_length(link_hash) = 32", name="link_hash_length"),
        sa.CheckConstraint("octet_length(typed_hash) = 32", name="typed_hash_length"),
        schema="gatepost",
    )
    for column in ("user_id", "email_id", "expires_at"):
        op.create_index(f"codes_{column}_idx", "codes", [column], schema="gatepost")
    op.create_table(
        "outbox",
        _id(),
        sa.Column("kind", sa.Text, nullable=False),
        _user(nullable=True),
        _email("email_id"),
        sa.Column("address", sa.Text),
        sa.Column("language", sa.Text, nullable=False),
        sa.Column("detail", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
        _now("created_at"),
        _now("due_at"),
        sa.Column("tries", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("error", sa.Text),
        sa.CheckConstraint("octet_length(detail::text) <= 4096", name="detail_size"),
        schema="gatepost",
    )
    for column in ("user_id", "email_id", "due_at"):
        op.create_index(f"outbox_{column}_idx", "outbox", [column], schema="gatepost")
    op.execute(_FIND_SETTING)
    op.execute(_OPEN_SESSION)


def downgrade() -> None:
    """Drop them."""
    op.execute("DROP FUNCTION gatepost.open_session_3")
    op.execute("DROP FUNCTION gatepost.find_setting_3")
    for table in ("outbox", "codes", "emails"):
        op.drop_table(table, schema="gatepost")
