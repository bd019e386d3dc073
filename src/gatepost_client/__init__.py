"""Whose session is this? A client of Gatepost for Python services.

`Verifier` checks session tokens; `GatepostClient` logs people in and out. Frameworks have modules of their own:
`gatepost_client.fastapi`, `.django`, `.flask`, `.aiohttp`. Nothing here imports the server.
"""

from gatepost_client.client import GatepostClient, GatepostError, NewSession, SecondFactorRequired
from gatepost_client.identity import NotKnown, SignedIn, bearer
from gatepost_client.request import session_token
from gatepost_client.sync import SyncVerifier
from gatepost_client.verifier import Verifier

__all__ = [
    "GatepostClient",
    "GatepostError",
    "NewSession",
    "NotKnown",
    "SecondFactorRequired",
    "SignedIn",
    "SyncVerifier",
    "Verifier",
    "bearer",
    "session_token",
]
