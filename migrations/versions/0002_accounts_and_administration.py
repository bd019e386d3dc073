"""What lists, sweeps and password resets need."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None
serves_from = "0001"


# Whoever takes an administrator away waits for the one before to commit, and then counts again: of two who demote
# each other, the second is refused. In the database, so that no statement, present or future, can go round it.
_LAST_ADMIN = """
CREATE FUNCTION gatepost.keep_an_admin() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
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
_WAS_ADMIN = "OLD.roles @> '{admin}' AND OLD.disabled_at IS NULL"


def _index(name: str, table: str, columns: list[str], **kwargs: Any) -> None:
    op.drop_index(name, table, schema="gatepost", if_exists=True, postgresql_concurrently=True)  # half built, once
    op.create_index(name, table, columns, schema="gatepost", postgresql_concurrently=True, **kwargs)


def upgrade() -> None:
    """Create it."""
    # What takes long on large tables comes first and can be repeated: it locks out nobody, and is not undone.
    with op.get_context().autocommit_block():
        op.execute(
            "ALTER TABLE gatepost.users DROP CONSTRAINT IF EXISTS users_roles_count_check, "
            "ADD CONSTRAINT users_roles_count_check CHECK (cardinality(roles) <= 32) NOT VALID"
        )
        op.execute("ALTER TABLE gatepost.users VALIDATE CONSTRAINT users_roles_count_check")
        _index(
            "users_roles_idx",
            "users",
            ["roles"],
            postgresql_using="gin",
            postgresql_where=sa.text("roles <> '{}'::text[]"),
        )
        _index("users_disabled_idx", "users", ["canonical"], postgresql_where=sa.text("disabled_at IS NOT NULL"))
        _index("sessions_expires_at_idx", "sessions", ["expires_at"])
        _index("events_user_id_id_idx", "events", ["user_id", "id"])
        _index("events_kind_id_idx", "events", ["kind", "id"])
        _index(
            "events_actor_id_id_idx",
            "events",
            ["actor_id", "id"],
            postgresql_where=sa.text("actor_id IS NOT NULL"),
        )
        op.drop_index(
            "events_user_id_at_idx", "events", schema="gatepost", if_exists=True, postgresql_concurrently=True
        )
    op.execute(_LAST_ADMIN)
    op.execute(
        "CREATE TRIGGER users_last_admin_kept BEFORE UPDATE OF roles, disabled_at ON gatepost.users FOR EACH ROW "
        f"WHEN ({_WAS_ADMIN} AND NOT (NEW.roles @> '{{admin}}' AND NEW.disabled_at IS NULL)) "
        "EXECUTE FUNCTION gatepost.keep_an_admin()"
    )
    op.execute(
        "CREATE TRIGGER users_last_admin_not_deleted BEFORE DELETE ON gatepost.users FOR EACH ROW "
        f"WHEN ({_WAS_ADMIN}) EXECUTE FUNCTION gatepost.keep_an_admin()"
    )
    op.create_table(
        "password_resets",
        sa.Column("user_id", postgresql.UUID(), nullable=False),
        sa.Column("code_hash", postgresql.BYTEA(), nullable=False),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("expires_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.CheckConstraint("octet_length(code_hash) = 32", name=op.f("password_resets_code_hash_length_check")),
        sa.ForeignKeyConstraint(
            ["user_id"], ["gatepost.users.id"], name=op.f("password_resets_user_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", name=op.f("password_resets_pkey")),
        sa.UniqueConstraint("code_hash", name=op.f("password_resets_code_hash_key")),
        schema="gatepost",
    )


def downgrade() -> None:
    """Drop it."""
    op.execute("DROP TRIGGER users_last_admin_not_deleted ON gatepost.users")
    op.execute("DROP TRIGGER users_last_admin_kept ON gatepost.users")
    op.execute("DROP FUNCTION gatepost.keep_an_admin()")
    op.drop_index(op.f("events_actor_id_id_idx"), table_name="events", schema="gatepost")
    op.drop_index(op.f("events_kind_id_idx"), table_name="events", schema="gatepost")
    op.drop_index(op.f("events_user_id_id_idx"), table_name="events", schema="gatepost")
    op.create_index(op.f("events_user_id_at_idx"), "events", ["user_id", "at"], schema="gatepost")
    op.drop_index(op.f("sessions_expires_at_idx"), table_name="sessions", schema="gatepost")
    op.drop_index("users_disabled_idx", table_name="users", schema="gatepost")
    op.drop_index("users_roles_idx", table_name="users", schema="gatepost")
    op.drop_constraint(op.f("users_roles_count_check"), "users", schema="gatepost")
    op.drop_table("password_resets", schema="gatepost")
