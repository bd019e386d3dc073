"""Passwords that were published in breaches of other services: none of them may become a password here."""
