"""Where handlers find the vault."""

from aiohttp import web

from gatepost.factors.vault import Vault

VAULT = web.AppKey("vault", Vault)
