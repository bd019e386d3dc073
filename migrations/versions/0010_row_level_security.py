"""Sessions inside Postgres: `gatepost.sign_in_as(token)` and what row-level-security policies ask for."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP, UUID

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None
serves_from = "0001"

# Any role may SET the setting that says who is signed in. It is worth nothing without this seal, which holds in one
# transaction. The first node makes the key. All messages have the same length, so a SHA-256 over key and message is a
# MAC; it is nested as in HMAC all the same. No pg_backend_pid(): it differs in parallel workers.
_SEAL = """
CREATE FUNCTION gatepost.sign_in_seal(id uuid) RETURNS bytea
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    secret bytea := (SELECT key FROM gatepost.deployment_keys WHERE name = 'sign_in_as');
BEGIN
    RETURN sha256(secret || sha256(secret || uuid_send(id) || timestamptz_send(transaction_timestamp())));
END
$$
"""

# The rule is that of a check: live_sessions_2. A use is recorded in session_uses, from which the nodes update
# last_seen_at: an UPDATE here would lock the row, and a log-out would wait for the application's transaction to end.
_SIGN_IN_AS = """
CREATE FUNCTION gatepost.sign_in_as(token text) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    idle_timeout integer := (SELECT value FROM gatepost.settings WHERE name = 'idle_timeout');
    session json;
    used uuid;
    id uuid;
BEGIN
    IF idle_timeout IS NULL THEN
        RAISE EXCEPTION 'the idle timeout is not known: no node of Gatepost has started on this database'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF octet_length(token) = 36 THEN
        SELECT document::json INTO session
        FROM gatepost.live_sessions_2(ARRAY[sha256(convert_to(token, 'UTF8'))], idle_timeout);
    END IF;
    IF session IS NULL THEN
        RAISE EXCEPTION 'this token is not a live session''s' USING ERRCODE = 'invalid_authorization_specification';
    END IF;
    used := session -> 'session' ->> 'handle';
    IF (session -> 'session' ->> 'last_seen_at')::timestamptz
            < clock_timestamp() - make_interval(secs => idle_timeout / 10.0)
        AND NOT current_setting('transaction_read_only')::boolean
        AND NOT EXISTS (SELECT FROM gatepost.session_uses WHERE handle = used)
    THEN
        INSERT INTO gatepost.session_uses (handle) VALUES (used);
    END IF;
    id := session -> 'user' ->> 'id';
    PERFORM set_config('gatepost.signed_in', encode(uuid_send(id) || gatepost.sign_in_seal(id), 'hex'), true);
    RETURN id;
END
$$
"""

# The seals are hashed before they are compared, so that the time of the comparison tells nothing about them.
_USER_ID = """
CREATE FUNCTION gatepost.user_id() RETURNS uuid
LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    given text := current_setting('gatepost.signed_in', true);
    id uuid;
BEGIN
    IF octet_length(given) = 96 AND given ~ '^[0-9a-f]*$' THEN
        id := left(given, 32)::uuid;
        IF sha256(decode(right(given, 64), 'hex')) = sha256(gatepost.sign_in_seal(id)) THEN
            RETURN id;
        END IF;
    END IF;
    RETURN NULL;
END
$$
"""

_HAS_ROLE = """
CREATE FUNCTION gatepost.has_role(role text) RETURNS boolean
LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN EXISTS (SELECT FROM gatepost.users WHERE id = gatepost.user_id() AND role = ANY (roles));
END
$$
"""

_FUNCTIONS = ("sign_in_seal(uuid)", "sign_in_as(text)", "user_id()", "has_role(text)")


def upgrade() -> None:
    """Create the tables and the functions."""
    op.create_table(
        "settings",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("settings_pkey")),
        schema="gatepost",
    )
    op.create_table(
        "session_uses",
        sa.Column("handle", UUID(as_uuid=True), nullable=False),
        sa.Column("at", TIMESTAMP(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()")),
        schema="gatepost",
    )
    op.create_index(op.f("session_uses_handle_idx"), "session_uses", ["handle"], schema="gatepost")
    for sql in (_SEAL, _SIGN_IN_AS, _USER_ID, _HAS_ROLE):
        op.execute(sql)
    # Postgres lets everybody execute a new function.
    for function in _FUNCTIONS:
        op.execute(f"REVOKE EXECUTE ON FUNCTION gatepost.{function} FROM PUBLIC")


def downgrade() -> None:
    """Drop them."""
    for function in reversed(_FUNCTIONS):
        op.execute(f"DROP FUNCTION gatepost.{function}")
    op.execute("DELETE FROM gatepost.deployment_keys WHERE name = 'sign_in_as'")
    op.drop_table("session_uses", schema="gatepost")
    op.drop_table("settings", schema="gatepost")
