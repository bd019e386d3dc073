"""The most logins that could be: threads that do nothing but the service's Argon2id, in a process of their own."""

import os
import secrets
import subprocess
import sys
import threading
import time
from pathlib import Path

from argon2.low_level import Type, hash_secret_raw

from gatepost.config import PasswordsConfig
from gatepost.security.credentials import DIGEST_BYTES, SALT_BYTES, cores


def hashes_per_second(seconds: int) -> float:
    """Measure for so long."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.hashing", str(seconds)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=seconds + 15,
        check=True,
    )
    return float(done.stdout)


def _hash_until(end: float, counts: list[int]) -> None:
    if sys.platform == "linux":  # as the service's own threads
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    config, count = PasswordsConfig(), 0
    while time.perf_counter() < end:
        hash_secret_raw(
            secret=b"correct horse battery",
            salt=secrets.token_bytes(SALT_BYTES),
            time_cost=config.iterations,
            memory_cost=config.memory_kib,
            parallelism=config.parallelism,
            hash_len=DIGEST_BYTES,
            type=Type.ID,
            version=19,
        )
        count += 1
    counts.append(count)


def _main() -> None:
    began = time.perf_counter()
    end = began + int(sys.argv[1])
    counts: list[int] = []
    threads = [threading.Thread(target=_hash_until, args=(end, counts)) for _ in range(cores())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(sum(counts) / (time.perf_counter() - began))


if __name__ == "__main__":
    _main()
