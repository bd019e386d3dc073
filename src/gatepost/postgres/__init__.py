"""The database: connections, statements, the schema and an embedded server. The only package with a driver."""
