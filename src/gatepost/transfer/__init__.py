"""Bringing users along from elsewhere, and taking them away."""
