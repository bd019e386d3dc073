"""Services that check sessions: their tokens, and many checks in one call."""
