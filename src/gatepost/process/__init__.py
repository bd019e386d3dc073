"""The process around the service: its sockets, its console, what it does periodically."""
