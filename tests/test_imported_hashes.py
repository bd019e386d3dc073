"""Hashes from elsewhere: each kind is read, checked, bounded, and replaced by ours at the first good login."""

import base64
import contextlib
import json
import logging
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gatepost.postgres import schema, tables
from gatepost.postgres.database import Dsn
from gatepost.security.credentials import Credentials, Setting, foreign, hashing, kinds, ldap, legacy_kinds
from gatepost.security.credentials.alphabets import to_adapted_base64, to_base64
from gatepost.security.credentials.foreign import Firebase
from gatepost.security.credentials.kinds import parse
from gatepost.security.credentials.limits import YESCRYPT_COSTS, InvalidHash, InvalidSetting
from gatepost.security.credentials.password import RAW, Stored
from tests.conftest import CHEAP, PASSWORD, Client, log_in, rows

TYPED = "correct horse bättery"


def _b64(text: str) -> str:
    return base64.b64encode(bytes.fromhex(text)).rstrip(b"=").decode()


# Made by passlib 1.7.4, werkzeug 3.1.9 and Django 5.2.19 of TYPED.
MADE = {
    "passlib pbkdf2_sha1": "$pbkdf2$1000$XCsl5BwjpLTWOgfAOGeMMQ$wLGlqzIbdtleoPcwfVIoL4iTJJ0",
    "passlib pbkdf2_sha256": "$pbkdf2-sha256$1000$KGWstXaO8X7PmRMCoPR.zw$fkp93WoIn.OBuAaJcjhksQlEpWvsCTDmPFliiMFGfb4",
    "passlib pbkdf2_sha512": "$pbkdf2-sha512$1000$xhjjnFOqNUbIWQsBQIiRcg$Dv64bBgTIvcFmQu5Zp7VGgIOirDZcr2DtWxPWw6jAQ"
    ".1CrCOuDVfyaRw535X6he8oPPBt6AsgQBKC5znuvaq9Q",
    "passlib scrypt": "$scrypt$ln=10,r=8,p=1$ZQxByBkDQEjJGUNo7R3DeA$EH/9zvzXldKx/WBSzMeHux6wad2v6WuSGbo0bt4l4fA",
    "bcrypt 2b": "$2b$04$X8c2tl5RM6wb9JFIqNFIfOqmUJIBkafdJPipifXm2DkHZiZPh6W4G",
    "bcrypt 2a": "$2a$04$radSe2uCIAXhKeBZDPZE4uVffvcNpBSW5cDBFqOkyVwpul1.E0iWG",
    "bcrypt 2y": "$2y$04$1Eh8KI7qTDYIud126WYBNuvtB5kid56Uc1.K.hfBDjtQoc.JJC3hC",
    "passlib bcrypt_sha256 v2": "$bcrypt-sha256$v=2,t=2b,r=4$bpwk29fyWJYQw/.9XSBw9O$iFtKUEbH1cqODk047lQaAMgAgwl4FCq",
    "passlib bcrypt_sha256 v1": "$bcrypt-sha256$2b,4$fp7HbyxxKo6fK/gcKwHO3e$mx23bD42XaJbOwcZrvV5HrgaPGg0.k6",
    "PHC argon2id, 24 bytes": "$argon2id$v=19$m=64,t=1,p=2$y9l7b83Zu/d+z1mLEYKQ0g$uFj8nx+92+0M9yYMBLJRW0PKjeJw4+ti",
    "PHC argon2i": "$argon2i$v=19$m=64,t=1,p=4$YIzRes85R8g5Z8w5p7TW+g$ZC8R897ufB1CqhoRS+fylWFEndAscMdxXsc1oyzGlQ0",
    "werkzeug pbkdf2": "pbkdf2:sha256:1000$2DaSQGm9y0dbanCD$"
    "3e652eb36c43373ecb364d31aeed87952bee63e4b7c72a0569df4ffc45dd8e8f",
    "werkzeug pbkdf2 sha1": "pbkdf2:sha1:1000$8nhK6bpSoLACIL6Q$e74c43ef02f03085c89d7b0e19e22b0b71dcd12a",
    "werkzeug pbkdf2 sha512": "pbkdf2:sha512:1000$QHXsg37lunYJ2JVB$e8ff21d265dad36bfcbfdcc80e0ef68d3dda18dfd68251"
    "626577d9a014e37bf0a266dd2be14fbc11ff853378197340da0b77cf6f27515e96f4608adf38125e9e",
    "werkzeug scrypt": "scrypt:1024:8:1$Mdn90RDxqzyHTb86$03a83f35b77b20fd606a0127f55d92e50b33ee2acedf63a3c30e4634b"
    "bcd360bb51cbdb62c4b8bbdd17a4288ce7e2cde338777dedbb2a17655631e8985f77647",
    "Django pbkdf2_sha256": "pbkdf2_sha256$1000$D1qCznwgI4xRbufElRZQXg$9LvBh2rZfkyAEelglVn1zgjZKoyqGTiWvOnU3U56DgU=",
    "Django pbkdf2_sha1": "pbkdf2_sha1$1000$eBKIUSPvtMzMKjnB54PQGK$A42uffL28WirSi8uKGYolhNbMlg=",
    "Django argon2": "argon2$argon2id$v=19$m=64,t=1,p=1$WXdCckMzQUgxdWlPeDMxS01FZUFxaQ$"
    "/TT530mCU+PJUiLuLytbMY0T83zeI6/wmzejiDnYv8M",
    "Django bcrypt_sha256": "bcrypt_sha256$$2b$04$7cb7aM/cATEcH5J6IUG99ObwuMQ1yBm0iTbdYQz3/agPTmeljooaK",
    "Django bcrypt": "bcrypt$$2b$04$v1MC2KoAowo7jHSt9wYfoerNAJFtPXi6PnHV6FL2yQ3lt3hpfHPh2",
    "Django scrypt": "scrypt$1024$6ZLgWTuzM3oCEi4Szq91lg$8$1$jJg6pk2OoodSyOY0C+eAp8lxPsmsX9/vFNzf23KjmVFZMw/LoHSbVRod"
    "tNGhf+QMhcjl3DYuu5bicNdHCabwBw==",
    # In that form by hashlib, with the costs of Django 5.1 and later.
    "Django's own scrypt": "scrypt$16384$6ZLgWTuzM3oCEi4Szq91lg$8$5$"
    "v9EZQ1xhXaTyu0fz3R6jm152DsAPQCVubcbTt/4u40DljMPLpp3vZwf+K0xzHumhc2VcBcfV7hnb5bbxgRhB/A==",
}

# Published: who, the password, the hash.
PUBLISHED = {
    "RFC 7914 scrypt": (
        "pleaseletmein",
        f"$scrypt$ln=14,r=8,p=1${base64.b64encode(b'SodiumChloride').rstrip(b'=').decode()}$"
        + _b64(
            "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"
            "d5432955613f0fcf62d49705242a9af9e61e85dc0d651e40dfcf017b45575887"
        ),
    ),
    "RFC 6070 PBKDF2-SHA1": ("password", "$pbkdf2$4096$c2FsdA$" + _b64("4b007901b765489abead49d926f721d065a429c1")),
    "PBKDF2-SHA256": (
        "password",
        "pbkdf2:sha256:4096$salt$c5e478d59288c841aa530db6845c4c8d962893a001ce4e11a4963873aa98134a",
    ),
    "crypt_blowfish": ("U*U", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"),
    "argon2's reference, argon2i version 16, by omission": (
        "password",
        "$argon2i$m=65536,t=2,p=1$c29tZXNhbHQ$"
        + _b64("f6c4db4a54e2a370627aff3db6176b94a2a209a62c8e36152711802f7b30c694"),
    ),
    "argon2's reference, argon2id": (
        "password",
        "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$"
        + _b64("09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7"),
    ),
}
# hashcat's examples, whose password is its name (hashcat.net/wiki, example hashes).
PUBLISHED |= {
    name: ("hashcat", text)
    for name, text in {
        "phpass": "$P$984478476IagS59wHZvyQMArzfx58u.",
        "phpass of phpBB": "$H$984478476IagS59wHZvyQMArzfx58u.",
        "Drupal 7": "$S$C33783772bRXEx1aCsvY.dqgaaSu76XmVlKrW9Qu8IQlvxHlmzLf",
        "sha256-crypt": "$5$rounds=5000$GX7BopJZJxPc/KEK$le16UF8I2Anb.rOrn22AUPWvzUETDGefUmAV8AZkGcD",
        "sha512-crypt": "$6$52450745$k5ka2p8bFuSmoVT1tzOyyuaREkkKBcCNqoDKzYiJL9RaE8yMnPgh2XzzF0NDrUhgrcLwg78xs1w5pJ"
        "iypEdFX/",
    }.items()
}
# Made by mkpasswd 5.5, by PHP 8.2's functions as WordPress 6.8 calls them, and by hashlib and argon2-cffi by
# Keycloak's rules.
PUBLISHED |= {
    "libxcrypt yescrypt": ("hashcat", "$y$j9T$QRiXtN3ywnaB/B4r8bGyY1$1wrfcIHM2Dn7NWQyUNdNbS.0fFY/.2WuErFh0giBoQ."),
    "LDAP's {BCRYPT}": (TYPED, "{BCRYPT}" + MADE["bcrypt 2y"]),
    "LDAP's {CRYPT}": ("hashcat", "{CRYPT}" + PUBLISHED["sha512-crypt"][1]),
}
_KEYCLOAK = {
    "pbkdf2": (
        1000,
        "djNf0gBaf8KbM65JOovWM6DjmDoE1hxoic6trsaKQuCAe0AI11wiGVmVmiuvPRnw5vl+S02hMk0fG+SMWqG8Mg==",
        {},
    ),
    "pbkdf2-sha256": (
        1000,
        "nw21jjCi0toqxMwZ0OxAy2+mg3YStWTO2vXd4ERGCGLr0zLOOGwfRLgaufpmGkS4Wx5HuzRVf1NpaBKlsyvc/g==",
        {},
    ),
    "pbkdf2-sha512": (
        1000,
        "ArfXgBEX46q47Q30DG0OkYLbI9MTrIcxrNV8OcQT7dP55KDx5gr6iR+DVSv5Mttq/j3k5pzshMw3p0a0NtLXhg==",
        {},
    ),
    "argon2": (
        5,
        "euHdXh279t2PM1UgFZewo5KW2+rm5oEIiPezodKJkZM=",
        {"hashLength": ["32"], "memory": ["7168"], "type": ["id"], "version": ["1.3"], "parallelism": ["1"]},
    ),
}


def keycloak(algorithm: str) -> dict[str, Any]:
    """A credential as a realm's export has it."""
    iterations, value, more = _KEYCLOAK[algorithm]
    secret = {"value": value, "salt": "MDEyMzQ1Njc4OWFiY2RlZg==", "additionalParameters": {}}
    data = {"hashIterations": iterations, "algorithm": algorithm, "additionalParameters": more}
    return {"type": "password", "secretData": json.dumps(secret), "credentialData": json.dumps(data)}


PUBLISHED |= {f"Keycloak {name}": (TYPED, json.dumps(keycloak(name))) for name in _KEYCLOAK}
PUBLISHED |= {
    "mkpasswd yescrypt": (TYPED, "$y$j9T$IN6yX5Wq7tWxP5MbC/80V.$c7KyThNmF9cD1olJ/X7Zm0QAZChJtoNY4dRV751q9LA"),
    "WordPress 6.8": (TYPED, "$wp$2y$04$nWIBaHyly5JfPJqW5iUbDOK/krxfLH52bYb796ZRi8NJmXdZDdNkW"),
}
ALL = {name: (TYPED, text) for name, text in MADE.items()} | PUBLISHED

# The sample in firebase/scrypt's README.
FIREBASE = Firebase(
    base64.b64decode("jxspr8Ki0RYycVU8zykbdLGjFQ3McFUH0uiiTvC8pVMXAn210wjLNmdZJzxUECKbm0QsEmYUSDzZvpjeJ9WmXA=="),
    base64.b64decode("Bw=="),
    rounds=8,
    mem_cost=14,
)
FIREBASE_USER = (
    "lSrfV15cpx95/sZS2W9c9Kp6i/LVgQNDNC/qzrCnh1SAyZvqmZqAjTdn3aoItz+VHjoZilo78198JAdRuid5lQ==",
    "42xEC+ixf3L2lw==",
)


@pytest.fixture
def credentials() -> Iterator[Credentials]:
    it = Credentials(CHEAP, b"k" * 32)
    yield it
    it.close()


@pytest.mark.parametrize("name", ALL)
async def test_a_hash_from_elsewhere_knows_its_password_and_no_other(name: str, credentials: Credentials) -> None:
    password, text = ALL[name]
    stored = foreign.read(text)
    assert await credentials.digest(stored.setting, password) == stored.digest
    spaced = password + (" ." if name == "WordPress 6.8" else " ")  # WordPress takes spaces at the end away
    for wrong in (spaced, password.lower()[::-1], "", "\0", password + "\0", "x" * 5000):
        assert await credentials.digest(stored.setting, wrong) != stored.digest
    assert credentials.is_weaker(stored.setting)


@pytest.mark.parametrize("name", ALL)
def test_what_is_stored_is_written_and_read_again_without_loss(name: str) -> None:
    stored = foreign.read(ALL[name][1])
    assert foreign.read(foreign.write(stored)) == stored
    assert stored.setting.phc.startswith(parse(stored.setting.phc).scheme + "$")


async def test_firebases_own_sample_is_checked_without_its_signer_key(credentials: Credentials) -> None:
    stored = FIREBASE.read(*FIREBASE_USER)
    assert await credentials.digest(stored.setting, "user1password") == stored.digest
    assert await credentials.digest(stored.setting, "user1passwore") != stored.digest
    assert foreign.read(foreign.write(stored)) == stored
    assert FIREBASE.signer_key not in stored.digest
    assert repr(FIREBASE.signer_key) not in repr(FIREBASE)


async def test_bcrypt_is_cut_at_72_bytes_as_its_origin_did_and_prehashed_kinds_are_not(
    credentials: Credentials,
) -> None:
    # passlib's, of 80 x and an é
    stored = foreign.read("$2b$04$cEixpLTCIxy2GZZpalnS3OknhyZm0lWVLTe0GVqTMdjFpmd0kJrym")
    for same in ("x" * 80 + "é", "x" * 72, "x" * 71 + "xé", "x" * 1000):
        assert await credentials.digest(stored.setting, same) == stored.digest
    assert await credentials.digest(stored.setting, "x" * 71 + "é") != stored.digest  # cut within a character
    assert await credentials.digest(stored.setting, "x" * 71) != stored.digest
    for name in ("Django bcrypt_sha256", "passlib bcrypt_sha256 v2"):
        setting = foreign.read(MADE[name]).setting
        assert await credentials.digest(setting, "x" * 72) != await credentials.digest(setting, "x" * 73)


def test_what_only_imported_hashes_need_is_loaded_with_the_first_of_them() -> None:
    script = f"""
import sys, gatepost.cli
from gatepost.security.credentials.kinds import parse
print([module for module in ("bcrypt", "cryptography") if module in sys.modules])
parse("$2b$04${SALT22}").derive(b"-")
print("bcrypt" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "[]\nTrue\n"


async def test_imported_passwords_are_compared_as_typed(credentials: Credentials) -> None:
    stored = foreign.read(MADE["Django pbkdf2_sha256"])
    assert stored.norm == RAW
    assert await credentials.digest(stored.setting, "correct horse ba\u0308ttery") != stored.digest


SALT22 = "A" * 22
HOSTILE = {
    "argon2 memory": f"$argon2id$v=19$m=262145,t=1,p=1${SALT22}",
    "argon2 iterations": f"$argon2id$v=19$m=64,t=11,p=1${SALT22}",
    "argon2 lanes": f"$argon2id$v=19$m=1024,t=1,p=17${SALT22}",
    "argon2 digest": f"$argon2id$v=19$m=64,t=1,p=1,l=99${SALT22}",
    "bcrypt rounds": f"$2b$15${SALT22}",
    "bcrypt-sha256 rounds": f"$bcrypt-sha256$v=2,t=2b,r=15${SALT22}",
    "django bcrypt rounds": f"$django-bcrypt-sha256$t=2b,r=31${SALT22}",
    "pbkdf2 iterations": f"$pbkdf2-sha256$2000001${SALT22}",
    "pbkdf2 none": f"$pbkdf2-sha256$0${SALT22}",
    "scrypt N": f"$scrypt$ln=18,r=8,p=1${SALT22}",
    "scrypt r": f"$scrypt$ln=14,r=9,p=1${SALT22}",
    "scrypt p": f"$scrypt$ln=15,r=8,p=5${SALT22}",
    "scrypt p with a small N": f"$scrypt$ln=14,r=8,p=17${SALT22}",
    "firebase N": f"$firebase-scrypt$ln=18,r=8,p=1${SALT22}",
    "another kind": f"$6$rounds=5000${SALT22}",
    "a long salt": "$pbkdf2-sha256$1000$" + "A" * 200,
}
DEAREST = [
    f"$argon2id$v=19$m=262144,t=10,p=16${SALT22}",
    f"$argon2i$v=16$m=262143,t=1,p=9${SALT22}",
    f"$argon2id$v=19$m=199999,t=9,p=10,l=64${SALT22}",
    f"$2b$14${SALT22}",
    f"$2b$04${SALT22}",
    f"$bcrypt-sha256$v=2,t=2b,r=14${SALT22}",
    f"$django-bcrypt-sha256$t=2b,r=9${SALT22}",
    f"$pbkdf2$2000000${SALT22}",
    f"$pbkdf2-sha512$1999999${SALT22}",
    f"$scrypt$ln=17,r=8,p=4${SALT22}",
    f"$scrypt$ln=14,r=8,p=16${SALT22}",
    f"$firebase-scrypt$ln=17,r=8,p=1${SALT22}",
]
_STORE = (
    "WITH u AS (INSERT INTO gatepost.users (username, canonical) VALUES (%s, %s) RETURNING id) "
    "INSERT INTO gatepost.passwords (user_id, setting, digest, norm) SELECT id, %s, %s, 'raw' FROM u"
)


def put(dsn: Dsn, name: str, stored: Stored) -> None:
    rows(dsn, _STORE, name, name, stored.setting.phc, stored.digest)


@pytest.mark.parametrize("name", HOSTILE)
def test_what_costs_too_much_is_refused_by_the_reader_and_by_the_table(name: str, dsn: Dsn) -> None:
    with pytest.raises(InvalidSetting) as refused:
        parse(HOSTILE[name])
    assert SALT22 not in str(refused.value)
    with pytest.raises(psycopg2.errors.CheckViolation):
        put(dsn, "ada", Stored(Setting(HOSTILE[name], None), bytes(32)))


def test_the_dearest_that_is_admitted_is_admitted_by_the_reader_and_by_the_table(dsn: Dsn) -> None:
    for number, setting in enumerate(DEAREST):
        assert kinds.setting_of(parse(setting)).rpartition("$")[0] == setting.rpartition("$")[0]
        put(dsn, f"user{number}", Stored(Setting(setting, None), bytes(32)))


lengths = st.integers(16, 64)
salts = st.binary(max_size=64).map(to_base64)
adapted_salts = st.binary(max_size=64).map(to_adapted_base64)
settings_at_all = st.one_of(
    st.builds(
        "$scrypt$ln={},r={},p={},l={}${}".format, st.integers(1, 17), st.just(1), st.integers(1, 4), lengths, salts
    ),
    st.builds(
        "$firebase-scrypt$ln={},r={},p=1,l={}${}".format, st.integers(1, 12), st.integers(1, 8), lengths, salts
    ),
    st.builds(
        "${}$v={}$m={},t={},p={},l={}${}".format,
        st.sampled_from(["argon2id", "argon2i"]),
        st.sampled_from([16, 19]),
        st.integers(1, 300),
        st.integers(1, 3),
        st.integers(1, 16),
        lengths,
        salts,
    ),
    st.builds(
        "$pbkdf2{}${}${}".format, st.sampled_from(["", "-sha256", "-sha512"]), st.integers(1, 50), adapted_salts
    ),
    st.builds("$sha{}-crypt$rounds={}${}".format, st.sampled_from([256, 512]), st.integers(900, 1100), salts),
    st.builds("$yescrypt${}${}".format, st.sampled_from(["j75", "j85", "j9T", "jFT", "x75"]), salts),
    st.builds("${}$n={}${}".format, st.sampled_from(["phpass", "drupal"]), st.integers(6, 9), salts),
    st.builds(
        "$ldap-argon2id$h={},m={},t=1,p=1${}".format, st.sampled_from(["md5", "sha512"]), st.integers(1, 64), salts
    ),
)


@settings(deadline=None)
@example(f"$scrypt$ln=16,r=1,p=1${SALT22}")
@given(settings_at_all)
def test_whatever_the_reader_admits_can_be_computed(setting: str) -> None:
    with contextlib.suppress(InvalidSetting):
        kind = parse(setting)
        assert len(kind.derive(b"x")) == kind.length


def test_the_migration_has_the_limits_of_the_tables() -> None:
    found = schema.migrations_folder() / "versions" / "0012_legacy_hashes.py"
    assert runpy.run_path(str(found))["SETTING"] == tables.SETTING


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a kind of hash"),
        ("correct horse battery", "not a kind of hash"),
        ("5f4dcc3b5aa765d61d8327deb882cf99", "not a kind of hash"),
        ("$1$abc$def", "not a kind of hash"),
        ("$2x$04$X8c2tl5RM6wb9JFIqNFIfOqmUJIBkafdJPipifXm2DkHZiZPh6W4G", "not a kind"),
        ("$2b$31$X8c2tl5RM6wb9JFIqNFIfOqmUJIBkafdJPipifXm2DkHZiZPh6W4G", "rounds must be 4 to 14"),
        ("$2b$04$X8c2tl5RM6wb9JFIqNFIfOqmUJIBkafdJPipifXm2Dk", "not a bcrypt hash"),
        ("pbkdf2_sha256$999999999$abc$" + "A" * 43 + "=", "1 to 2000000"),
        ("pbkdf2_sha256$-5$abc$" + "A" * 43 + "=", "damaged"),
        ("pbkdf2_sha256$1000$abc$AAAA", "3 bytes instead of 32"),
        ("pbkdf2:md5:1000$abc$aa", "another hash"),
        ("scrypt:1000:8:1$abc$aa", "power of 2"),
        ("scrypt:1048576:8:1$abc$" + "aa" * 32, "at most 2^17"),
        ("scrypt:1024:800:1$abc$" + "aa" * 32, "r must be"),
        ("scrypt:65536:1:1$abc$" + "aa" * 32, "N must be less than 2"),
        ("scrypt$1024$abc$8$1$" + "!" * 8, "damaged"),
        ("$argon2id$v=19$m=4194304,t=1,p=1$c29tZXNhbHQ$" + "A" * 43, "m must be 1 to 262144"),
        ("$argon2id$v=19$m=8,t=1,p=2$c29tZXNhbHQ$" + "A" * 43, "at least 8 times"),
        ("$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ$" + "A" * 8, "16 to 64 bytes"),
        ("$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ$" + "A" * 400, "no length"),
        ("$argon2d$v=19$m=64,t=1,p=1$c29tZXNhbHQ$" + "A" * 43, "not a kind"),
        ("$pbkdf2-sha256$1000$abc", "damaged"),
        ("$" * 2000, "more than 1024"),
    ],
)
def test_what_is_no_hash_is_refused_with_the_reason_and_without_the_hash(text: str, why: str) -> None:
    with pytest.raises(InvalidHash, match=why.replace("^", r"\^")) as refused:
        foreign.read(text)
    assert text == "" or text not in str(refused.value)


@pytest.mark.parametrize("name", [*MADE, "Firebase"])
async def test_the_first_good_login_replaces_the_hash_by_ours(name: str, client: Client, dsn: Dsn) -> None:
    firebase = name == "Firebase"
    password, stored = (
        ("user1password", FIREBASE.read(*FIREBASE_USER)) if firebase else (TYPED, foreign.read(MADE[name]))
    )
    put(dsn, "ada", stored)
    wrong = await client.post("/user", json={"username": "ada", "password": password + "!"})
    assert wrong.status == 401
    assert rows(dsn, "SELECT setting FROM gatepost.passwords") == [(stored.setting.phc,)]
    await log_in(client, "ada", password)
    ours = rows(dsn, "SELECT setting, norm FROM gatepost.passwords")
    assert ours[0][0].startswith("$argon2id$v=19$m=8192,t=1,p=1$")
    assert ours[0][1] == "opaque"
    await log_in(client, "ada", password)
    assert rows(dsn, "SELECT setting, norm FROM gatepost.passwords") == ours


async def test_a_password_that_ours_could_not_be_goes_on_as_it_is(client: Client, dsn: Dsn) -> None:
    import hashlib

    digest = hashlib.pbkdf2_hmac("sha256", b"a\ttab in it", b"salt", 1000)
    put(dsn, "ada", foreign.read(f"pbkdf2:sha256:1000$salt${digest.hex()}"))
    for _ in range(2):
        await log_in(client, "ada", "a\ttab in it")
    assert rows(dsn, "SELECT norm FROM gatepost.passwords") == [("raw",)]


async def test_a_hostile_setting_that_came_past_everything_is_a_wrong_password_and_is_never_computed(
    client: Client, dsn: Dsn, ada: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []
    honest = hashing.derive

    def derive(kind: kinds.Kind, secret: Callable[[], bytes]) -> hashing.Derived:
        computed.append(kind.scheme)
        return honest(kind, secret)

    monkeypatch.setattr(hashing, "derive", derive)
    rows(dsn, "ALTER TABLE gatepost.passwords DROP CONSTRAINT passwords_setting_known_check")
    known = await client.post("/user", json={"username": "ada", "password": "not the password"})
    for name, setting in HOSTILE.items():
        caplog.clear()
        rows(dsn, "DELETE FROM gatepost.throttles; UPDATE gatepost.passwords SET setting = %s", setting)
        computed.clear()
        with caplog.at_level(logging.WARNING):
            answer = await client.post("/user", json={"username": "ada", "password": PASSWORD})
        assert (answer.status, await answer.text()) == (401, await known.text()), name
        assert computed == ["$argon2id$v=19$m=8192,t=1,p=1"]
        assert "setting that is refused" in caplog.text
        assert SALT22 not in caplog.text
    detail = rows(dsn, "SELECT DISTINCT detail FROM gatepost.events WHERE kind = 'authn_login_fail'")
    assert detail == [({"reason": "wrong_password"},)]


async def test_a_user_without_a_password_looks_like_any_other_and_the_event_says_so(
    client: Client, dsn: Dsn, ada: dict[str, Any]
) -> None:
    rows(dsn, "DELETE FROM gatepost.passwords")
    answers = set()
    for name in ("ada", "nobody"):
        answer = await client.post("/user", json={"username": name, "password": PASSWORD})
        answers.add((answer.status, await answer.text()))
    assert len(answers) == 1
    events = rows(dsn, "SELECT user_id::text, detail FROM gatepost.events WHERE kind LIKE 'authn%%' ORDER BY id")
    assert events == [(ada["id"], {"reason": "no_password"}), (None, {"reason": "unknown_user"})]


# -------------------------------------------------------------------------------------------------- LDAP

# hashcat's examples, and slappasswd's of TYPED.
FAST = {
    "{SHA}": ("hashcat", "{SHA}uJ6qx+YUFzQbcQtyd2gpTQ5qJ3s="),
    "{SSHA}": ("hashcat", "{SSHA}AZKja92fbuuB9SpRlHqaoXxbTc43Mzc2MDM1Ng=="),
    "{SSHA512}": (
        "hashcat",
        "{SSHA512}ALtwKGBdRgD+U0fPAy31C28RyKYx7+a8kmfksccsOeLknLHv2DBXYI7TDnTolQMBuPkWDISgZr2cHfnNPFjGZTEyNDU4OTkw",
    ),
}


@pytest.mark.parametrize("name", FAST)
async def test_a_hash_that_is_fast_to_guess_is_kept_within_argon2id(name: str, credentials: Credentials) -> None:
    password, text = FAST[name]
    fast = ldap.read(text)
    assert fast is not None
    stored = fast.wrap(8192, 1, 1)
    assert fast.digest not in stored.digest
    assert parse(stored.setting.phc).memory_kib == 8192
    assert await credentials.digest(stored.setting, password) == stored.digest
    assert await credentials.digest(stored.setting, password + "!") != stored.digest
    assert credentials.is_weaker(stored.setting)
    assert foreign.read(foreign.write(stored)) == stored
    assert fast.wrap(8192, 1, 1).setting != stored.setting  # a salt of its own each time
    with pytest.raises(InvalidHash):
        foreign.read(text)  # as it is, it is not stored


@pytest.mark.parametrize(
    "name", ["ldap_salted_sha1", "ldap_salted_sha256", "ldap_salted_sha512", "ldap_md5", "ldap_salted_md5"]
)
def test_passlibs_ldap_hashes_are_read(name: str) -> None:
    import passlib.hash

    fast = ldap.read(getattr(passlib.hash, name).hash(TYPED))
    assert fast is not None
    stored = fast.wrap(8192, 1, 1)
    assert parse(stored.setting.phc).derive(TYPED.encode()) == stored.digest


@pytest.mark.parametrize("name", ["phpass", "sha256_crypt", "sha512_crypt"])
def test_what_passlib_writes_is_read_and_what_is_written_passlib_reads(name: str) -> None:
    import passlib.hash

    handler = getattr(passlib.hash, name).using(rounds=13 if name == "phpass" else 1000)
    stored = foreign.read(handler.hash(TYPED))
    assert parse(stored.setting.phc).derive(TYPED.encode()) == stored.digest
    assert handler.verify(TYPED, foreign.write(stored))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{SSHA}", "has not the length"),
        ("{SSHA}AAAA", "has not the length"),
        ("{SHA}AZKja92fbuuB9SpRlHqaoXxbTc43Mzc2MDM1Ng==", "has not the length"),
        ("{SSHA}uJ6qx+YUFzQbcQtyd2gpTQ5qJ3s=", "has not the length"),
        ("{SSHA}****", "not base64"),
        ("{UNIX}root", "not a kind of hash"),
        ("{CRYPT}{CRYPT}{CRYPT}x", "not a kind of hash"),
        ("$6$rounds=99$salt$" + "a" * 86, "rounds must be"),
        ("$6$rounds=1000000$salt$" + "a" * 86, "rounds must be"),
        ("$6$sa:lt$" + "a" * 86, "not a crypt hash"),
        ("$5$salt$" + "a" * 86, "bytes instead of"),
        ("$y$jFT$abcdefgh$" + "a" * 43, "costs must be one of"),
        ("$y$j9T$$" + "a" * 43, "not a yescrypt"),
        ("$P$/84478476IagS59wHZvyQMArzfx58u.", "rounds must be"),
        ("$P$984478476", "not a hash of phpass"),
        ("$S$z33783772bRXEx1aCsvY.dqgaaSu76XmVlKrW9Qu8IQlvxHlmzLf", "rounds must be"),
        ("$1$salt$abcdefghijklmnopqrstuv", "not a kind of hash"),
        ('{"secretData": 1, "credentialData": 2}', "is damaged"),
        ('{"secretData": "{}", "credentialData": "{}"}', "is damaged"),
        ('{"secretData": "' + "[" * 900, "is damaged"),
        ("{" * 1000, "not a kind of hash"),
    ],
)
def test_what_is_damaged_or_too_costly_of_the_old_kinds_is_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidHash, match=said):
        _ = ldap.read(text) or foreign.read(text)


def test_without_a_c_library_that_knows_it_a_crypt_hash_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legacy_kinds, "_libcrypt", lambda: None)
    with pytest.raises(InvalidHash, match="this system's C library does not know yescrypt"):
        foreign.read(PUBLISHED["libxcrypt yescrypt"][1])


def test_the_c_librarys_crypt_takes_the_settings_that_it_makes() -> None:
    """What is used of libxcrypt, and its costs: see `YESCRYPT_COSTS`."""
    library = legacy_kinds._libcrypt()
    if library is None:
        pytest.skip("this system has no libxcrypt")
    for costs in YESCRYPT_COSTS[:5]:
        kind = parse(f"$yescrypt${costs}$" + "A" * 22)
        assert kind.derive(b"hashcat") not in (bytes(32), kind.derive(b"another"))
