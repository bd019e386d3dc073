"""The most logins that could be: threads that do nothing but the service's Argon2id, in a process of their own."""

import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from argon2.low_level import Type, hash_secret_raw
from nacl.bindings import crypto_pwhash_alg, crypto_pwhash_ALG_ARGON2ID13

from gatepost.config import PasswordsConfig
from gatepost.credentials import DIGEST_BYTES, SALT_BYTES, cores

_CONFIG = PasswordsConfig()


def _libsodium() -> bytes:
    """As the service computes it."""
    memory, salt = _CONFIG.memory_kib * 1024, secrets.token_bytes(SALT_BYTES)
    return crypto_pwhash_alg(DIGEST_BYTES, _SECRET, salt, _CONFIG.iterations, memory, crypto_pwhash_ALG_ARGON2ID13)


def _argon2_cffi() -> bytes:
    """The same digest by the library that most services use."""
    return hash_secret_raw(
        secret=_SECRET,
        salt=secrets.token_bytes(SALT_BYTES),
        time_cost=_CONFIG.iterations,
        memory_cost=_CONFIG.memory_kib,
        parallelism=_CONFIG.parallelism,
        hash_len=DIGEST_BYTES,
        type=Type.ID,
        version=19,
    )


_SECRET = b"correct horse battery"
_LIBRARIES: dict[str, Callable[[], bytes]] = {"libsodium": _libsodium, "argon2-cffi": _argon2_cffi}


def hashes_per_second(seconds: int, library: str = "libsodium") -> float:
    """Measure for so long. ``library``: which one computes them."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.hashing", str(seconds), library],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=seconds + 15,
        check=True,
    )
    return float(done.stdout)


def _hash_until(end: float, derive: Callable[[], bytes], counts: list[int]) -> None:
    if sys.platform == "linux":  # as the service's own threads
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    count = 0
    while time.perf_counter() < end:
        derive()
        count += 1
    counts.append(count)


def _main() -> None:
    began = time.perf_counter()
    end, derive = began + int(sys.argv[1]), _LIBRARIES[sys.argv[2]]
    counts: list[int] = []
    threads = [threading.Thread(target=_hash_until, args=(end, derive, counts)) for _ in range(cores())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(sum(counts) / (time.perf_counter() - began))


if __name__ == "__main__":
    _main()
