"""Base64 without padding, in the alphabets that hashes are written in."""

import binascii


def to_base64(data: bytes) -> str:
    """The standard one, as PHC strings have it."""
    return binascii.b2a_base64(data, newline=False).rstrip(b"=").decode()


def from_base64(text: str) -> bytes:
    """The bytes of it. Raises ValueError."""
    return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)


def to_adapted_base64(data: bytes) -> str:
    """passlib's: with ``.`` for ``+``."""
    return to_base64(data).replace("+", ".")


def from_adapted_base64(text: str) -> bytes:
    """The bytes of it. Raises ValueError."""
    return from_base64(text.replace(".", "+"))


_PLAIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_BCRYPT = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_to_bcrypt, _from_bcrypt = str.maketrans(_PLAIN, _BCRYPT), str.maketrans(_BCRYPT, _PLAIN)


def to_bcrypt_base64(data: bytes) -> str:
    """bcrypt's: an alphabet of its own."""
    return to_base64(data).translate(_to_bcrypt)


def from_bcrypt_base64(text: str) -> bytes:
    """The bytes of it; the last character's unused bits, which some systems set, are dropped."""
    return from_base64(text.translate(_from_bcrypt))


CRYPT_ALPHABET = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def to_crypt_base64(data: bytes) -> str:
    """crypt's and phpass': three bytes are four characters, the lowest bits first."""
    text = ""
    for start in range(0, len(data), 3):
        piece = data[start : start + 3]
        value = int.from_bytes(piece, "little")
        text += "".join(CRYPT_ALPHABET[value >> 6 * n & 63] for n in range(len(piece) + 1))
    return text


def from_crypt_base64(text: str) -> bytes:
    """The bytes of it; bits that fill no byte are dropped. Raises ValueError."""
    data = b""
    for start in range(0, len(text), 4):
        piece = text[start : start + 4]
        value = sum(CRYPT_ALPHABET.index(letter) << 6 * n for n, letter in enumerate(piece))
        size = len(piece) * 6 // 8
        data += (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    return data
