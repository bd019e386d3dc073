"""The feed: triggers that notify of every revocation, whoever's SQL it was."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None
serves_from = "0001"

# A statement is one notification, however many rows it touched. Postgres takes 8,000 bytes of a payload: above
# 50 sessions the users are named, and above 100 users nobody is: whoever listens starts over.
#
# The functions run with the rights of whoever writes, so they set no search_path, which would cost 20 us each time.
_NOTIFY = """
CREATE FUNCTION gatepost.notify_of_users(ids uuid[]) RETURNS void
LANGUAGE sql AS $$
    SELECT pg_notify('gatepost_feed', CASE WHEN cardinality(ids) <= 100
        THEN json_build_object('users', ids) ELSE json_build_object('all', true) END::text)
    WHERE cardinality(ids) > 0
$$
"""

# Sessions that have expired are swept by the thousand, and nobody has to hear of them.
_SESSIONS_DELETED = """
CREATE FUNCTION gatepost.sessions_deleted() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    few json;
    number integer;
BEGIN
    SELECT json_agg(json_build_array(handle, user_id)), count(*) INTO few, number
    FROM (SELECT handle, user_id FROM deleted WHERE expires_at > clock_timestamp() LIMIT 51) AS ended;
    IF number BETWEEN 1 AND 50 THEN
        PERFORM pg_notify('gatepost_feed', '{"sessions":' || few || '}');
    ELSIF number > 50 THEN
        PERFORM gatepost.notify_of_users(ARRAY(
            SELECT DISTINCT user_id FROM deleted WHERE expires_at > clock_timestamp() LIMIT 101));
    END IF;
    RETURN NULL;
END
$$
"""
# Gatepost itself updates nothing but last_seen_at, and only to a later time. The condition costs that nothing: it is
# judged without a call of the function.
_SESSION_CHANGED = """
CREATE FUNCTION gatepost.session_changed() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('gatepost_feed', json_build_object(
        'sessions', json_build_array(json_build_array(OLD.handle, OLD.user_id)))::text);
    RETURN NULL;
END
$$
"""
_USERS_CHANGED = """
CREATE FUNCTION gatepost.users_changed() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM gatepost.notify_of_users(ARRAY(
        SELECT id FROM (
            SELECT id, username, roles, profile, epoch, disabled_at FROM before
            EXCEPT SELECT id, username, roles, profile, epoch, disabled_at FROM after
        ) AS changed LIMIT 101));
    RETURN NULL;
END
$$
"""
_USERS_DELETED = """
CREATE FUNCTION gatepost.users_deleted() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM gatepost.notify_of_users(ARRAY(SELECT id FROM deleted LIMIT 101));
    RETURN NULL;
END
$$
"""
_SERVICES_CHANGED = """
CREATE FUNCTION gatepost.service_changed() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('gatepost_feed', json_build_object('services', json_build_array(OLD.name))::text);
    RETURN NULL;
END
$$
"""
_TRUNCATED = """
CREATE FUNCTION gatepost.truncated() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('gatepost_feed', '{"all": true}');
    RETURN NULL;
END
$$
"""
_TRIGGERS = """
CREATE TRIGGER sessions_deleted AFTER DELETE ON gatepost.sessions REFERENCING OLD TABLE AS deleted
    FOR EACH STATEMENT EXECUTE FUNCTION gatepost.sessions_deleted();
CREATE TRIGGER session_changed AFTER UPDATE ON gatepost.sessions FOR EACH ROW WHEN (
        NEW.expires_at < OLD.expires_at OR NEW.last_seen_at < OLD.last_seen_at OR NEW.epoch <> OLD.epoch
        OR NEW.token_hash <> OLD.token_hash OR NEW.handle <> OLD.handle OR NEW.user_id <> OLD.user_id)
    EXECUTE FUNCTION gatepost.session_changed();
CREATE TRIGGER users_changed AFTER UPDATE ON gatepost.users REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION gatepost.users_changed();
CREATE TRIGGER users_deleted AFTER DELETE ON gatepost.users REFERENCING OLD TABLE AS deleted
    FOR EACH STATEMENT EXECUTE FUNCTION gatepost.users_deleted();
CREATE TRIGGER service_changed AFTER UPDATE OR DELETE ON gatepost.services
    FOR EACH ROW EXECUTE FUNCTION gatepost.service_changed();
CREATE TRIGGER sessions_truncated AFTER TRUNCATE ON gatepost.sessions EXECUTE FUNCTION gatepost.truncated();
CREATE TRIGGER users_truncated AFTER TRUNCATE ON gatepost.users EXECUTE FUNCTION gatepost.truncated();
CREATE TRIGGER services_truncated AFTER TRUNCATE ON gatepost.services EXECUTE FUNCTION gatepost.truncated();
"""


def upgrade() -> None:
    """Create the functions and the triggers."""
    for sql in (
        _NOTIFY,
        _SESSIONS_DELETED,
        _SESSION_CHANGED,
        _USERS_CHANGED,
        _USERS_DELETED,
        _SERVICES_CHANGED,
        _TRUNCATED,
        _TRIGGERS,
    ):
        op.execute(sql)


def downgrade() -> None:
    """Drop them."""
    for trigger, table in (
        ("sessions_deleted", "sessions"),
        ("session_changed", "sessions"),
        ("sessions_truncated", "sessions"),
        ("users_changed", "users"),
        ("users_deleted", "users"),
        ("users_truncated", "users"),
        ("service_changed", "services"),
        ("services_truncated", "services"),
    ):
        op.execute(f"DROP TRIGGER {trigger} ON gatepost.{table}")
    for function in (
        "truncated()",
        "service_changed()",
        "users_deleted()",
        "users_changed()",
        "session_changed()",
        "sessions_deleted()",
        "notify_of_users(uuid[])",
    ):
        op.execute(f"DROP FUNCTION gatepost.{function}")
