"""The feed: who is told at once when a session ends."""
