"""Users' mail addresses, the codes that are mailed to them, and the outbox."""
