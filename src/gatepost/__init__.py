"""Gatepost: a self-hosted sign-in service."""
