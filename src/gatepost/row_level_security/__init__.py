"""Sessions inside Postgres, for applications that share the database: the functions are migration 0010."""
