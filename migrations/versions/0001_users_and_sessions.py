"""Users, passwords, sessions, events, deployment keys."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None
serves_from = "0001"


def upgrade() -> None:
    """Create them."""
    op.create_table(
        "deployment_keys",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("key", postgresql.BYTEA(), nullable=False),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint("octet_length(key) = 32", name=op.f("deployment_keys_key_length_check")),
        sa.PrimaryKeyConstraint("name", name=op.f("deployment_keys_pkey")),
        schema="gatepost",
    )
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("user_id", postgresql.UUID(), nullable=True),
        sa.Column("actor_id", postgresql.UUID(), nullable=True),
        sa.Column("session_handle", postgresql.UUID(), nullable=True),
        sa.Column("ip", postgresql.INET(), nullable=True),
        sa.Column("user_agent", sa.Text(), nullable=True),
        sa.Column(
            "detail",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.CheckConstraint("kind ~ '^[a-z]+(_[a-z]+)*$'", name=op.f("events_kind_form_check")),
        sa.CheckConstraint("octet_length(user_agent) <= 2048", name=op.f("events_user_agent_length_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("events_pkey")),
        schema="gatepost",
    )
    op.create_index(op.f("events_at_idx"), "events", ["at"], unique=False, schema="gatepost")
    op.create_index(op.f("events_user_id_at_idx"), "events", ["user_id", "at"], unique=False, schema="gatepost")
    op.create_table(
        "users",
        sa.Column("id", postgresql.UUID(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("username", sa.Text(), nullable=False),
        sa.Column("canonical", sa.Text(collation="C"), nullable=False),
        sa.Column("roles", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'::text[]"), nullable=False),
        sa.Column(
            "profile",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column("epoch", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("disabled_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("jsonb_typeof(profile) = 'object'", name=op.f("users_profile_object_check")),
        sa.CheckConstraint("epoch > 0", name=op.f("users_epoch_positive_check")),
        sa.CheckConstraint("octet_length(canonical) BETWEEN 1 AND 1024", name=op.f("users_canonical_length_check")),
        sa.CheckConstraint("octet_length(profile::text) <= 8192", name=op.f("users_profile_size_check")),
        sa.CheckConstraint("octet_length(username) BETWEEN 1 AND 1024", name=op.f("users_username_length_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("users_pkey")),
        sa.UniqueConstraint("canonical", name=op.f("users_canonical_key")),
        schema="gatepost",
    )
    op.create_table(
        "passwords",
        sa.Column("user_id", postgresql.UUID(), nullable=False),
        sa.Column("setting", sa.Text(), nullable=False),
        sa.Column("digest", postgresql.BYTEA(), nullable=False),
        sa.Column("norm", sa.Text(), nullable=False),
        sa.Column("pepper", sa.Text(), nullable=True),
        sa.Column(
            "changed_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint("norm IN ('opaque')", name=op.f("passwords_norm_known_check")),
        sa.CheckConstraint(
            "setting ~ '^[$]argon2id[$]' AND octet_length(setting) <= 256",
            name=op.f("passwords_setting_known_check"),
        ),
        sa.CheckConstraint("octet_length(digest) = 32", name=op.f("passwords_digest_length_check")),
        sa.ForeignKeyConstraint(
            ["user_id"], ["gatepost.users.id"], name=op.f("passwords_user_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", name=op.f("passwords_pkey")),
        schema="gatepost",
    )
    op.create_table(
        "sessions",
        sa.Column("token_hash", postgresql.BYTEA(), nullable=False),
        sa.Column("handle", postgresql.UUID(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("user_id", postgresql.UUID(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column(
            "last_seen_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("expires_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("ip", postgresql.INET(), nullable=True),
        sa.Column("user_agent", sa.Text(), nullable=True),
        sa.CheckConstraint("expires_at > created_at", name=op.f("sessions_expires_later_check")),
        sa.CheckConstraint("octet_length(token_hash) = 32", name=op.f("sessions_token_hash_length_check")),
        sa.CheckConstraint("octet_length(user_agent) <= 2048", name=op.f("sessions_user_agent_length_check")),
        sa.ForeignKeyConstraint(
            ["user_id"], ["gatepost.users.id"], name=op.f("sessions_user_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("sessions_pkey")),
        sa.UniqueConstraint("handle", name=op.f("sessions_handle_key")),
        schema="gatepost",
    )
    op.create_index(
        op.f("sessions_user_id_created_at_idx"),
        "sessions",
        ["user_id", "created_at"],
        unique=False,
        schema="gatepost",
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_index(op.f("sessions_user_id_created_at_idx"), table_name="sessions", schema="gatepost")
    op.drop_table("sessions", schema="gatepost")
    op.drop_table("passwords", schema="gatepost")
    op.drop_table("users", schema="gatepost")
    op.drop_index(op.f("events_user_id_at_idx"), table_name="events", schema="gatepost")
    op.drop_index(op.f("events_at_idx"), table_name="events", schema="gatepost")
    op.drop_table("events", schema="gatepost")
    op.drop_table("deployment_keys", schema="gatepost")
