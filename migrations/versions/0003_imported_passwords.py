"""Passwords of other kinds than ours, with what they may cost at most."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None
serves_from = "0001"

SETTING = (
    "octet_length(setting) <= 160 AND CASE split_part(setting, '$', 2)"
    # argon2: m to 256 MiB, t to 10, p to 16
    + "".join(
        f" WHEN '{kind}' THEN split_part(setting, '$', 3) IN ('v=16', 'v=19') AND split_part(setting, '$', 4) ~ "
        "'^m=([1-9][0-9]{0,4}|1[0-9]{5}|2[0-5][0-9]{4}|26[01][0-9]{3}|262(0[0-9]{2}|1[0-3][0-9]|14[0-4])),"
        "t=([1-9]|10),p=([1-9]|1[0-6])(,l=[1-6][0-9])?$'"
        for kind in ("argon2id", "argon2i")
    )
    # bcrypt: 4 to 14 rounds
    + " WHEN '2b' THEN split_part(setting, '$', 3) ~ '^(0[4-9]|1[0-4])$'"
    " WHEN 'bcrypt-sha256' THEN split_part(setting, '$', 3) ~ '^v=[12],t=2b,r=([4-9]|1[0-4])$'"
    " WHEN 'django-bcrypt-sha256' THEN split_part(setting, '$', 3) ~ '^t=2b,r=([4-9]|1[0-4])$'"
    # PBKDF2: to 2,000,000 iterations
    + "".join(
        f" WHEN '{kind}' THEN split_part(setting, '$', 3) ~ '^([1-9][0-9]{{0,5}}|1[0-9]{{6}}|2000000)$'"
        for kind in ("pbkdf2", "pbkdf2-sha256", "pbkdf2-sha512")
    )
    # scrypt: N to 2^17, r to 8, p to 4, or to 16 with N to 2^14 (Django's p is 5)
    + "".join(
        f" WHEN '{kind}' THEN split_part(setting, '$', 3) ~ '^(ln=([1-9]|1[0-7]),r=[1-8],p=[1-4]|"
        "ln=([1-9]|1[0-4]),r=[1-8],p=([1-9]|1[0-6]))(,l=[1-6][0-9])?$'"
        for kind in ("scrypt", "firebase-scrypt")
    )
    + " ELSE false END"
)


def _checks(**conditions: str) -> None:
    for name, condition in conditions.items():
        constraint = f"passwords_{name}_check"
        op.execute(
            f"ALTER TABLE gatepost.passwords DROP CONSTRAINT IF EXISTS {constraint}, "
            f"ADD CONSTRAINT {constraint} CHECK ({condition}) NOT VALID"
        )
        op.execute(f"ALTER TABLE gatepost.passwords VALIDATE CONSTRAINT {constraint}")


def upgrade() -> None:
    """Admit them."""
    # Each statement by itself, and such that it can be repeated: among a million passwords this takes seconds, in
    # which people sign in.
    with op.get_context().autocommit_block():
        _checks(
            digest_length="octet_length(digest) BETWEEN 16 AND 64",
            norm_known="norm IN ('opaque', 'raw')",
            setting_known=SETTING,
        )
        op.drop_index(
            "passwords_scheme_idx", "passwords", schema="gatepost", if_exists=True, postgresql_concurrently=True
        )
        op.create_index(
            "passwords_scheme_idx",
            "passwords",
            [sa.text("substring(setting COLLATE \"C\", '^(.*)[$]'::text)")],
            schema="gatepost",
            postgresql_concurrently=True,
        )


def downgrade() -> None:
    """Go back to ours only. Users whose password is of another kind have none afterwards."""
    op.drop_index("passwords_scheme_idx", table_name="passwords", schema="gatepost")
    op.execute("DELETE FROM gatepost.passwords WHERE norm <> 'opaque' OR octet_length(digest) <> 32")
    _checks(
        digest_length="octet_length(digest) = 32",
        norm_known="norm IN ('opaque')",
        setting_known="setting ~ '^[$]argon2id[$]' AND octet_length(setting) <= 256",
    )
