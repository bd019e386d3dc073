"""Forward authentication: a proxy asks before it lets a request through to another service."""
