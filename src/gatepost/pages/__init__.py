"""Pages for people: signing in and up, ways back, one's own account."""
