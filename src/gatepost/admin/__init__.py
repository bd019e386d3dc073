"""Administration: the operator's view of users, sessions and events, over HTTP and from a shell."""
