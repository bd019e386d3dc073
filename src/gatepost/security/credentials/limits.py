"""What a stored hash may be and cost at most. The table's CHECK says the same once more (tables.py)."""

MAX_ARGON2_MEMORY_KIB = 256 * 1024
MAX_ARGON2_ITERATIONS = 10
MAX_ARGON2_LANES = 16  # each is a thread
BCRYPT_ROUNDS = range(4, 15)
MAX_PBKDF2_ITERATIONS = 2_000_000
MAX_SCRYPT_LN, MAX_SCRYPT_R, MAX_SCRYPT_P = 17, 8, 4
# With a smaller N, p may be larger at half that cost: Django's own is N = 2^14, p = 5 (OWASP's cheat sheet).
SMALL_SCRYPT_LN, MAX_SMALL_SCRYPT_P = 14, 16
CRYPT_ROUNDS = range(1000, 1_000_000)
YESCRYPT_COSTS = ("j75", "j85", "j7T", "j8T", "j9T", "jAT", "jBT", "jCT", "jDT")  # libxcrypt's; to 256 MiB
PORTABLE_LOG2 = range(7, 18)
MIN_DIGEST_BYTES, MAX_DIGEST_BYTES = 16, 64
MAX_SALT_BYTES = 64
MAX_HASH = 1024  # characters of a hash that is imported


class InvalidSetting(ValueError):
    """The setting is of no kind we know, or costs too much; the message says which, without its salt."""


class InvalidHash(ValueError):
    """The text is no hash that can be imported; the message says why, without repeating it."""


def at_most(what: str, value: int, limit: int) -> None:
    """Raise InvalidSetting for a value beyond the limit."""
    if not 1 <= value <= limit:
        raise InvalidSetting(f"{what} must be 1 to {limit}")
