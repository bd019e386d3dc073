"""Passwords of other kinds than ours, with what they may cost at most."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_SALT = "[A-Za-z0-9./+]{0,86}"
_SETTING = "|".join(
    [
        "[$]argon2(id|i)[$]v=(16|19)[$]m=([1-9][0-9]{0,4}|1[0-9]{5}|2[0-5][0-9]{4}|26[01][0-9]{3}|262(0[0-9]{2}"
        f"|1[0-3][0-9]|14[0-4])),t=([1-9]|10),p=([1-9]|1[0-6])(,l=[1-6][0-9])?[$]{_SALT}",
        "([$]2b[$](0[4-9]|1[0-4])|[$](bcrypt-sha256[$]v=[12]|django-bcrypt-sha256[$]t=2b)(,t=2b)?,r=([4-9]|1[0-4]))"
        "[$][A-Za-z0-9./]{22}",
        f"[$]pbkdf2(-sha256|-sha512)?[$]([1-9][0-9]{{0,5}}|1[0-9]{{6}}|2000000)[$]{_SALT}",
        f"[$](firebase-)?scrypt[$]ln=([1-9]|1[0-7]),r=[1-8],p=[1-4](,l=[1-6][0-9])?[$]{_SALT}",
    ]
)


def _checks(**conditions: str) -> None:
    for name, condition in conditions.items():
        constraint = op.f(f"passwords_{name}_check")
        op.drop_constraint(constraint, "passwords", schema="gatepost")
        op.create_check_constraint(constraint, "passwords", sa.text(condition), schema="gatepost")


def upgrade() -> None:
    """Admit them."""
    _checks(
        digest_length="octet_length(digest) BETWEEN 16 AND 64",
        norm_known="norm IN ('opaque', 'raw')",
        setting_known=f"setting ~ '^({_SETTING})$'",
    )
    op.create_index(
        "passwords_scheme_idx",
        "passwords",
        [sa.text("substring(setting COLLATE \"C\", '^(.*)[$]'::text)")],
        schema="gatepost",
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
