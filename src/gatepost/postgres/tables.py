"""The whole schema on one page. Alembic compares it with the database; queries import their tables from here."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, INET, JSONB, TIMESTAMP, UUID

__all__ = [
    "SCHEMA",
    "codes",
    "deployment_keys",
    "emails",
    "event_counts",
    "event_counts_until",
    "events",
    "gauge_peaks",
    "known_places",
    "metadata",
    "outbox",
    "password_resets",
    "passwords",
    "services",
    "session_uses",
    "sessions",
    "settings",
    "throttles",
    "users",
]

SCHEMA = "gatepost"

metadata = sa.MetaData(
    schema=SCHEMA,
    # Named by rule, so that an error names the constraint and a migration can drop it.
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    },
)


def _now(name: str) -> sa.Column[datetime]:
    # clock_timestamp(): now() stands still within a transaction, and expiry is judged against the clock.
    return sa.Column(name, TIMESTAMP(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()"))


users = sa.Table(
    "users",
    metadata,
    sa.Column(
        "id",
        UUID(as_uuid=True),
        primary_key=True,
        server_default=sa.text("gen_random_uuid()"),
        nullable=False,
    ),
    # As the user writes it, and as it is compared (RFC 8265 UsernameCaseMapped). "C": byte for byte, so that
    # uniqueness does not change with the C library's collations.
    sa.Column("username", sa.Text, nullable=False),
    sa.Column("canonical", sa.Text(collation="C"), nullable=False, unique=True),
    sa.Column("roles", ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'::text[]")),
    sa.Column("profile", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
    # A session is valid only while its epoch is the user's; whatever must end all sessions adds one.
    sa.Column("epoch", sa.BigInteger, nullable=False, server_default=sa.text("1")),
    _now("created_at"),
    sa.Column("disabled_at", TIMESTAMP(timezone=True)),
    sa.CheckConstraint("octet_length(username) BETWEEN 1 AND 1024", name="username_length"),
    sa.CheckConstraint("octet_length(canonical) BETWEEN 1 AND 1024", name="canonical_length"),
    sa.CheckConstraint("jsonb_typeof(profile) = 'object'", name="profile_object"),
    sa.CheckConstraint("octet_length(profile::text) <= 8192", name="profile_size"),
    sa.CheckConstraint("epoch > 0", name="epoch_positive"),
    sa.CheckConstraint("cardinality(roles) <= 32", name="roles_count"),
    # And a trigger, users_last_admin (migration 0002): the last enabled user with the role admin stays that.
)
# Partial indexes for what an operator looks for: users with a role, disabled users (by name, as lists are paged).
# Roles have a GIN index on each word, so that three administrators are found among a million members; it costs less
# than a B-tree.
sa.Index("users_roles_idx", users.c.roles, postgresql_using="gin", postgresql_where=sa.text("roles <> '{}'::text[]"))
sa.Index("users_disabled_idx", users.c.canonical, postgresql_where=sa.text("disabled_at IS NOT NULL"))

# What the settings of passwords may be and cost (credentials/kinds.py reads them): a hash that would keep
# a node busy for minutes cannot be stored, whoever writes it. In pieces: as one expression it takes Postgres 70 us.
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

# A table of its own: a listing of users cannot leak a digest, and its grants can differ.
passwords = sa.Table(
    "passwords",
    metadata,
    sa.Column(
        "user_id",
        UUID(as_uuid=True),
        sa.ForeignKey(users.c.id, ondelete="CASCADE"),
        primary_key=True,
        nullable=False,
    ),
    # How the digest was made ($argon2id$v=19$m=…,t=…,p=…$salt), and the digest, apart: a login reads only the
    # setting, and SQL compares the digest.
    sa.Column("setting", sa.Text, nullable=False),
    sa.Column("digest", BYTEA, nullable=False),
    # How the password was prepared before it was hashed: 'opaque' is RFC 8265 OpaqueString, 'raw' its UTF-8 as it was
    # typed, which is how the systems did that users are imported from.
    sa.Column("norm", sa.Text, nullable=False),
    # Id of the pepper over the digest, NULL for none.
    sa.Column("pepper", sa.Text),
    _now("changed_at"),
    sa.CheckConstraint("octet_length(digest) BETWEEN 16 AND 64", name="digest_length"),
    sa.CheckConstraint("norm IN ('opaque', 'raw')", name="norm_known"),
    sa.CheckConstraint(SETTING, name="setting_known"),
    # The kinds that are stored, one probe for each (credentials/population.py).
    sa.Index("passwords_scheme_idx", sa.text("substring(setting COLLATE \"C\", '^(.*)[$]'::text)")),
)

sessions = sa.Table(
    "sessions",
    metadata,
    # SHA-256 of the token; the token itself is known to its holder only.
    sa.Column("token_hash", BYTEA, primary_key=True, nullable=False),
    # How a session is spoken of: shown in lists and events, worth nothing to a thief.
    sa.Column("handle", UUID(as_uuid=True), nullable=False, unique=True, server_default=sa.text("gen_random_uuid()")),
    sa.Column("user_id", UUID(as_uuid=True), sa.ForeignKey(users.c.id, ondelete="CASCADE"), nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    _now("created_at"),
    _now("last_seen_at"),
    sa.Column("expires_at", TIMESTAMP(timezone=True), nullable=False),
    sa.Column("ip", INET),
    sa.Column("user_agent", sa.Text),
    # How its user has proved who it is (RFC 8176), and when last, if that was after the login.
    sa.Column("amr", ARRAY(sa.Text), nullable=False, server_default=sa.text("'{pwd}'::text[]")),
    sa.Column("confirmed_at", TIMESTAMP(timezone=True)),
    sa.CheckConstraint("octet_length(token_hash) = 32", name="token_hash_length"),
    sa.CheckConstraint("expires_at > created_at", name="expires_later"),
    sa.CheckConstraint("octet_length(user_agent) <= 2048", name="user_agent_length"),
    # The cap on sessions asks for a user's newest; so does the foreign key's cascade.
    sa.Index(None, "user_id", "created_at"),
    # The sweeper looks for the expired. Not last_seen_at: an index there would make each touch of it dear.
    sa.Index(None, "expires_at"),
)

# A password reset that an operator has started. One at a time for a user; gone once it is used.
password_resets = sa.Table(
    "password_resets",
    metadata,
    sa.Column(
        "user_id",
        UUID(as_uuid=True),
        sa.ForeignKey(users.c.id, ondelete="CASCADE"),
        primary_key=True,
        nullable=False,
    ),
    # SHA-256 of the code: 128 random bits need no slow hash.
    sa.Column("code_hash", BYTEA, nullable=False, unique=True),
    _now("created_at"),
    sa.Column("expires_at", TIMESTAMP(timezone=True), nullable=False),
    sa.CheckConstraint("octet_length(code_hash) = 32", name="code_hash_length"),
)

# The places from which a user has signed in: guessing from elsewhere does not stand in the way there.
known_places = sa.Table(
    "known_places",
    metadata,
    sa.Column("user_id", UUID(as_uuid=True), sa.ForeignKey(users.c.id, ondelete="CASCADE"), primary_key=True),
    # HMAC of the network (IPv4 /24, IPv6 /56).
    sa.Column("place", BYTEA, primary_key=True),
    _now("seen_at"),
    sa.CheckConstraint("octet_length(place) = 16", name="place_length"),
)

# Buckets of attempts (throttle.py). A row is one key and one moment, and is deleted when that has passed.
throttles = sa.Table(
    "throttles",
    metadata,
    # A letter for the kind, and an HMAC: neither names nor addresses.
    sa.Column("key", BYTEA, primary_key=True, nullable=False),
    # When the bucket is full again. In no index, and with room on each page: so an update touches no index.
    sa.Column("due", TIMESTAMP(timezone=True), nullable=False),
    sa.CheckConstraint("octet_length(key) = 16", name="key_length"),
    # And storage parameters (migration 0004), which SQLAlchemy knows of indexes only.
)

# What happened. user_id is no foreign key: an event outlives the account it speaks of.
events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True, nullable=False),
    _now("at"),
    # OWASP's logging vocabulary: authn_login_success, authn_login_fail, …
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("user_id", UUID(as_uuid=True)),
    # Who did it, where that was not the user: NULL is the user or a stranger.
    sa.Column("actor_id", UUID(as_uuid=True)),
    sa.Column("session_handle", UUID(as_uuid=True)),
    sa.Column("ip", INET),
    sa.Column("user_agent", sa.Text),
    sa.Column("detail", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
    sa.CheckConstraint("kind ~ '^[a-z]+(_[a-z]+)*$'", name="kind_form"),
    sa.CheckConstraint("octet_length(user_agent) <= 2048", name="user_agent_length"),
    sa.Index(None, "user_id", "id"),
    sa.Index(None, "kind", "id"),
    sa.Index(None, "actor_id", "id", postgresql_where=sa.text("actor_id IS NOT NULL")),
    sa.Index(None, "at"),
)

# How many events of each kind there were, by minute and by hour: a month of events is too much to count when asked.
event_counts = sa.Table(
    "event_counts",
    metadata,
    sa.Column("span", sa.Text, primary_key=True, nullable=False),
    sa.Column("at", TIMESTAMP(timezone=True), primary_key=True, nullable=False),
    sa.Column("kind", sa.Text, primary_key=True, nullable=False),
    sa.Column("count", sa.BigInteger, nullable=False),
    sa.CheckConstraint("span IN ('minute', 'hour')", name="span_known"),
)

# Until when they are counted: one row, whose lock is the right to count on.
event_counts_until = sa.Table(
    "event_counts_until",
    metadata,
    sa.Column("singleton", sa.Boolean, primary_key=True, nullable=False, server_default=sa.text("true")),
    sa.Column("at", TIMESTAMP(timezone=True), nullable=False),
    sa.CheckConstraint("singleton", name="only_one"),
)

# The highest value of each gauge, by minute and by hour. Where each process has a value, the highest of all counts.
gauge_peaks = sa.Table(
    "gauge_peaks",
    metadata,
    sa.Column("span", sa.Text, primary_key=True, nullable=False),
    sa.Column("at", TIMESTAMP(timezone=True), primary_key=True, nullable=False),
    sa.Column("name", sa.Text, primary_key=True, nullable=False),
    sa.Column("peak", sa.BigInteger, nullable=False),
    sa.CheckConstraint("span IN ('minute', 'hour')", name="span_known"),
)

# Secrets that all nodes of one deployment share and nobody else knows.
deployment_keys = sa.Table(
    "deployment_keys",
    metadata,
    sa.Column("name", sa.Text, primary_key=True, nullable=False),
    sa.Column("key", BYTEA, nullable=False),
    _now("created_at"),
    sa.CheckConstraint("octet_length(key) = 32", name="key_length"),
)

# Services that check sessions (role verifier), each with a token of its own.
services = sa.Table(
    "services",
    metadata,
    sa.Column("name", sa.Text(collation="C"), primary_key=True, nullable=False),
    # SHA-256 of the token; the token itself is known to the service only.
    sa.Column("token_hash", BYTEA, nullable=False, unique=True),
    _now("created_at"),
    sa.CheckConstraint("name ~ '^[a-z0-9][a-z0-9._-]{0,63}$'", name="name_form"),
    sa.CheckConstraint("octet_length(token_hash) = 32", name="token_hash_length"),
)

# The part of the configuration that functions in the database need; each node writes it when it starts.
settings = sa.Table(
    "settings",
    metadata,
    sa.Column("name", sa.Text, primary_key=True, nullable=False),
    sa.Column("value", sa.Integer, nullable=False),
)

# Sessions that gatepost.sign_in_as has seen in use, until a node has updated their last_seen_at. The index is not
# unique: with a unique one, a transaction of an application would wait for the end of another.
session_uses = sa.Table(
    "session_uses",
    metadata,
    sa.Column("handle", UUID(as_uuid=True), nullable=False),
    _now("at"),
    sa.Index(None, "handle"),
)


def _id() -> sa.Column[Any]:
    return sa.Column(
        "id", UUID(as_uuid=True), primary_key=True, nullable=False, server_default=sa.text("gen_random_uuid()")
    )


def _user(*, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column("user_id", UUID(as_uuid=True), sa.ForeignKey(users.c.id, ondelete="CASCADE"), nullable=nullable)


# Users' mail addresses. Many users may claim an unverified one; it is forgotten after a day.
emails = sa.Table(
    "emails",
    metadata,
    _id(),
    _user(),
    # As the user writes it, and as it is compared (security/email.py).
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("canonical", sa.Text(collation="C"), nullable=False),
    # Where mail goes. A user's first verified address becomes it.
    sa.Column("is_primary", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("verified_at", TIMESTAMP(timezone=True)),
    _now("created_at"),
    sa.UniqueConstraint("user_id", "canonical"),
    sa.CheckConstraint("octet_length(address) BETWEEN 3 AND 512", name="address_length"),
    sa.CheckConstraint("octet_length(canonical) BETWEEN 3 AND 512", name="canonical_length"),
    sa.CheckConstraint("NOT is_primary OR verified_at IS NOT NULL", name="primary_verified"),
)
# One verified address belongs to one user.
sa.Index("emails_verified_key", emails.c.canonical, unique=True, postgresql_where=sa.text("verified_at IS NOT NULL"))
sa.Index("emails_primary_key", emails.c.user_id, unique=True, postgresql_where=sa.text("is_primary"))
sa.Index(None, emails.c.canonical)
sa.Index("emails_unverified_idx", emails.c.created_at, postgresql_where=sa.text("verified_at IS NULL"))

# Codes that have been mailed. Each can be typed, or is in the mail's link.
codes = sa.Table(
    "codes",
    metadata,
    _id(),
    sa.Column("purpose", sa.Text, nullable=False),
    _user(),
    sa.Column("email_id", UUID(as_uuid=True), sa.ForeignKey(emails.c.id, ondelete="CASCADE"), index=True),
    # The address that an undo brings back, which may be deleted by then, and since when it was verified.
    sa.Column("address", sa.Text),
    sa.Column("since", TIMESTAMP(timezone=True)),
    # A code counts only while its epoch is the user's. Not so an undo: a thief may have changed the password.
    sa.Column("epoch", sa.BigInteger, nullable=False),
    # SHA-256 of the 128 random bits in the link, and Argon2id of the 40 bits to type (mail/codes.py).
    sa.Column("link_hash", BYTEA, nullable=False, unique=True),
    sa.Column("typed_hash", BYTEA, unique=True),
    _now("created_at"),
    sa.Column("expires_at", TIMESTAMP(timezone=True), nullable=False, index=True),
    sa.CheckConstraint("purpose IN ('verify_email', 'recovery', 'undo_email')", name="purpose_known"),
    sa.CheckConstraint("octet_length(link_hash) = 32", name="link_hash_length"),
    sa.CheckConstraint("octet_length(typed_hash) = 32", name="typed_hash_length"),
)
sa.Index(None, codes.c.user_id)

# Mail to be sent. It holds no code: those are made when a mail is sent, so that who reads this can redeem nothing.
outbox = sa.Table(
    "outbox",
    metadata,
    # Also in the mail's Message-ID: whoever receives it twice can tell.
    _id(),
    sa.Column("kind", sa.Text, nullable=False),
    # Both empty where it is not known yet who it is for: a recovery is looked up by the sender, not by the request.
    _user(nullable=True),
    sa.Column("email_id", UUID(as_uuid=True), sa.ForeignKey(emails.c.id, ondelete="CASCADE"), index=True),
    sa.Column("address", sa.Text),
    sa.Column("language", sa.Text, nullable=False),
    sa.Column("detail", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
    _now("created_at"),
    # When it is to be tried next. Whoever takes it puts this off, so that no other process sends it meanwhile.
    _now("due_at"),
    sa.Column("tries", sa.Integer, nullable=False, server_default=sa.text("0")),
    # Why the last try failed.
    sa.Column("error", sa.Text),
    sa.CheckConstraint("octet_length(detail::text) <= 4096", name="detail_size"),
    sa.Index(None, "due_at"),
)
sa.Index(None, outbox.c.user_id)

# Authenticator apps (TOTP, RFC 6238).
totp_factors = sa.Table(
    "totp_factors",
    metadata,
    _id(),
    _user(),
    sa.Column("name", sa.Text, nullable=False),
    # The secret under AES-256-GCM, and the id of the key: NULL is the deployment's own (factors/vault.py).
    sa.Column("sealed", BYTEA, nullable=False),
    sa.Column("key", sa.Text, index=True),
    # Number of the 30 seconds since 1970 whose code was accepted last: none is accepted twice, nor an earlier one.
    sa.Column("last_step", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    _now("created_at"),
    # It counts once a code of it has been given; until then it is forgotten after an hour.
    sa.Column("confirmed_at", TIMESTAMP(timezone=True)),
    sa.Column("last_used_at", TIMESTAMP(timezone=True)),
    sa.CheckConstraint("octet_length(name) BETWEEN 1 AND 256", name="name_length"),
    sa.CheckConstraint("octet_length(sealed) BETWEEN 44 AND 128", name="sealed_length"),
)
sa.Index(None, totp_factors.c.user_id)
sa.Index("totp_factors_unconfirmed_idx", totp_factors.c.created_at, postgresql_where=sa.text("confirmed_at IS NULL"))

# Passkeys (WebAuthn): sign in without a name, or as a second factor.
passkeys = sa.Table(
    "passkeys",
    metadata,
    _id(),
    _user(),
    sa.Column("credential_id", BYTEA, nullable=False, unique=True),
    # As COSE has it (RFC 9052).
    sa.Column("public_key", BYTEA, nullable=False),
    # How often it has signed, if it counts: 0 otherwise. One that does not rise tells of a copy.
    sa.Column("sign_count", sa.BigInteger, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    # Whether it may be on several devices, and whether it was.
    sa.Column("synced", sa.Boolean, nullable=False),
    sa.Column("backed_up", sa.Boolean, nullable=False),
    _now("created_at"),
    sa.Column("last_used_at", TIMESTAMP(timezone=True)),
    sa.CheckConstraint("octet_length(credential_id) BETWEEN 1 AND 1023", name="credential_id_length"),
    sa.CheckConstraint("octet_length(public_key) BETWEEN 1 AND 2048", name="public_key_length"),
    sa.CheckConstraint("octet_length(name) BETWEEN 1 AND 256", name="name_length"),
)
sa.Index(None, passkeys.c.user_id)

# Challenges of passkeys that were signed: each counts once. One that is not used leaves no row (factors/passkeys.py).
used_challenges = sa.Table(
    "used_challenges",
    metadata,
    sa.Column("challenge_hash", BYTEA, primary_key=True, nullable=False),
    _now("used_at"),
    sa.CheckConstraint("octet_length(challenge_hash) = 32", name="challenge_hash_length"),
    sa.Index(None, "used_at"),
)

# For those who have lost their second factor: each is worth one proof, and gone with it.
recovery_codes = sa.Table(
    "recovery_codes",
    metadata,
    sa.Column("user_id", UUID(as_uuid=True), sa.ForeignKey(users.c.id, ondelete="CASCADE"), primary_key=True),
    # SHA-256 of the code: 80 random bits need no slow hash.
    sa.Column("code_hash", BYTEA, primary_key=True, nullable=False),
    _now("created_at"),
    sa.CheckConstraint("octet_length(code_hash) = 32", name="code_hash_length"),
)

# Logins whose password was right and whose next step is awaited.
login_tickets = sa.Table(
    "login_tickets",
    metadata,
    # SHA-256 of the ticket; the ticket itself is known to whoever signs in only.
    sa.Column("ticket_hash", BYTEA, primary_key=True, nullable=False),
    _user(),
    # It counts only while its epoch is the user's.
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("expires_at", TIMESTAMP(timezone=True), nullable=False, index=True),
    sa.CheckConstraint("octet_length(ticket_hash) = 32", name="ticket_hash_length"),
    sa.Index(None, "user_id", "expires_at"),
)
