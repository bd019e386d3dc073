"""The only module that knows how a password is kept and checked.

What is stored is a *setting* (a PHC string without its last field: algorithm, costs, salt) and a *digest*, apart.
A login reads the setting, computes the digest here, on a thread, and SQL compares it. The plaintext stays here.
"""

from gatepost.security.credentials.checker import Checked, Credentials, MissingPepper, refuse_missing_pepper
from gatepost.security.credentials.hashing import cores, share
from gatepost.security.credentials.kinds import DIGEST_BYTES, SALT_BYTES
from gatepost.security.credentials.password import NORM, RAW, SPREAD, InvalidPassword, Setting, Stored, prepare

__all__ = [
    "DIGEST_BYTES",
    "NORM",
    "RAW",
    "SALT_BYTES",
    "SPREAD",
    "Checked",
    "Credentials",
    "InvalidPassword",
    "MissingPepper",
    "Setting",
    "Stored",
    "cores",
    "prepare",
    "refuse_missing_pepper",
    "share",
]
