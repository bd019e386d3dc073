"""A way back for those who have lost their password."""
