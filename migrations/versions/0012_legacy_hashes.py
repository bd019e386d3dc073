"""Passwords of more kinds: crypt's, PHP's, LDAP's within Argon2id."""

from alembic import op

revision = "0012"
down_revision = "0011"
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
    + " WHEN 'sha256-crypt' THEN split_part(setting, '$', 3) ~ '^rounds=[1-9][0-9]{3,5}$'"
    " WHEN 'sha512-crypt' THEN split_part(setting, '$', 3) ~ '^rounds=[1-9][0-9]{3,5}$'"
    " WHEN 'yescrypt' THEN split_part(setting, '$', 3) ~ '^j([78]5|[789A-D]T)$'"
    # phpass and Drupal 7: 2^7 to 2^17 rounds
    " WHEN 'phpass' THEN split_part(setting, '$', 3) ~ '^n=([7-9]|1[0-7])$'"
    " WHEN 'drupal' THEN split_part(setting, '$', 3) ~ '^n=([7-9]|1[0-7])$'"
    " WHEN 'wp-bcrypt' THEN split_part(setting, '$', 3) ~ '^t=2b,r=([4-9]|1[0-4])$'"
    # LDAP's within Argon2id: as argon2
    " WHEN 'ldap-argon2id' THEN split_part(setting, '$', 3) ~ '^h=(md5|sha1|sha256|sha512),"
    "m=([1-9][0-9]{0,4}|1[0-9]{5}|2[0-5][0-9]{4}|26[01][0-9]{3}|262(0[0-9]{2}|1[0-3][0-9]|14[0-4])),"
    "t=([1-9]|10),p=([1-9]|1[0-6])$'"
    " ELSE false END"
)

# Those that the release before knows.
BEFORE = (
    "CASE WHEN split_part(setting, '$', 2) IN ('sha256-crypt', 'sha512-crypt', 'yescrypt', 'phpass', 'drupal', "
    f"'wp-bcrypt', 'ldap-argon2id') THEN false ELSE ({SETTING}) END"
)


def _check(condition: str) -> None:
    # Each statement by itself, and such that it can be repeated: among a million passwords this takes seconds, in
    # which people sign in.
    with op.get_context().autocommit_block():
        op.execute(
            "ALTER TABLE gatepost.passwords DROP CONSTRAINT IF EXISTS passwords_setting_known_check, "
            f"ADD CONSTRAINT passwords_setting_known_check CHECK ({condition}) NOT VALID"
        )
        op.execute("ALTER TABLE gatepost.passwords VALIDATE CONSTRAINT passwords_setting_known_check")


def upgrade() -> None:
    """Admit them."""
    _check(SETTING)


def downgrade() -> None:
    """Take away the passwords that could not be checked any more, as if nobody had brought them along."""
    op.execute(f"DELETE FROM gatepost.passwords WHERE NOT ({BEFORE})")
    _check(BEFORE)
