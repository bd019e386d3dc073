"""A software authenticator: makes and uses passkeys as a device with a finger or a PIN does (WebAuthn, CTAP)."""

import base64
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

PRESENT, VERIFIED, MAY_BE_SYNCED, SYNCED, ATTESTED = 0x01, 0x04, 0x08, 0x10, 0x40


def encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Authenticator:
    """One passkey, and what the browser says around it. Each attribute can be set to what an attacker would send."""

    def __init__(self, origin: str = "https://auth.example", *, flags: int = PRESENT | VERIFIED) -> None:
        self.origin = origin
        self.flags = flags
        self.counter = 0
        self.counts = True
        self.algorithm = -7
        self.rp_id: str | None = None
        self.key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = ec.generate_private_key(ec.SECP256R1())
        self.statement: tuple[str, dict[str, Any]] = ("none", {})
        self.credential_id = os.urandom(32)
        self.user_handle = b""

    def make(self, options: dict[str, Any]) -> dict[str, Any]:
        """What `navigator.credentials.create` gives, as JSON."""
        self.rp_id = self.rp_id or options["rp"]["id"]
        self.user_handle = decoded(options["user"]["id"])
        public = self.public_key()
        attested = bytes(16) + len(self.credential_id).to_bytes(2, "big") + self.credential_id + cbor2.dumps(public)
        data = self._data(ATTESTED) + attested
        kind, statement = self.statement
        response = {
            "clientDataJSON": encoded(self._client_data("webauthn.create", options["challenge"])),
            "attestationObject": encoded(cbor2.dumps({"fmt": kind, "attStmt": statement, "authData": data})),
            "transports": ["internal"],
        }
        return self._credential(response)

    def public_key(self) -> dict[int, Any]:
        """As COSE has it (RFC 9052, RFC 8230)."""
        numbers = self.key.public_key().public_numbers()
        if isinstance(numbers, rsa.RSAPublicNumbers):
            return {1: 3, 3: -257, -1: numbers.n.to_bytes(-(-numbers.n.bit_length() // 8), "big"), -2: b"\1\0\1"}
        x, y = numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big")
        return {1: 2, 3: self.algorithm, -1: 1, -2: x, -3: y}

    def sign(self, options: dict[str, Any]) -> dict[str, Any]:
        """What `navigator.credentials.get` gives, as JSON."""
        assert self.rp_id
        if self.counts:
            self.counter += 1
        client_data, data = self._client_data("webauthn.get", options["challenge"]), self._data()
        signed = data + hashlib.sha256(client_data).digest()
        if isinstance(self.key, rsa.RSAPrivateKey):
            signature = self.key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
        else:
            signature = self.key.sign(signed, ec.ECDSA(hashes.SHA256()))
        response = {
            "clientDataJSON": encoded(client_data),
            "authenticatorData": encoded(data),
            "signature": encoded(signature),
            "userHandle": encoded(self.user_handle),
        }
        return self._credential(response)

    def _client_data(self, kind: str, challenge: str) -> bytes:
        return json.dumps({"type": kind, "challenge": challenge, "origin": self.origin}).encode()

    def _data(self, more: int = 0) -> bytes:
        assert self.rp_id
        flags = bytes([self.flags | more])
        return hashlib.sha256(self.rp_id.encode()).digest() + flags + self.counter.to_bytes(4, "big")

    def _credential(self, response: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": encoded(self.credential_id),
            "rawId": encoded(self.credential_id),
            "type": "public-key",
            "response": response,
            "clientExtensionResults": {},
            "authenticatorAttachment": "platform",
        }


def main(what: str, kept_in: str, origin: str, answer: str) -> None:
    """For docs/transcript.md: ``make`` a passkey, or ``sign`` with the one that was made. ``answer``: Gatepost's."""
    options = json.loads(answer)["publicKey"]
    if what == "make":
        device = Authenticator(origin)
        said = device.make(options)
    else:
        kept = json.loads(Path(kept_in).read_text())
        device = Authenticator(origin)
        device.key = ec.derive_private_key(int(kept["key"], 16), ec.SECP256R1())
        device.credential_id, device.user_handle = decoded(kept["id"]), decoded(kept["user"])
        device.rp_id, device.counter = options["rpId"], kept["counter"]
        said = device.sign(options)
    assert isinstance(device.key, ec.EllipticCurvePrivateKey)
    key = f"{device.key.private_numbers().private_value:x}"
    kept = {"key": key, "id": encoded(device.credential_id), "user": encoded(device.user_handle)}
    Path(kept_in).write_text(json.dumps(kept | {"counter": device.counter}))
    print(json.dumps(said))  # noqa: T201 (a command's answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
