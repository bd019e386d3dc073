"""Second factors: authenticator apps and recovery codes, the further step of a login, and confirming who one is."""
