"""Alembic's side of `gatepost.postgres.schema`, which does the work for `gatepost migrate` and `alembic`."""

from logging.config import fileConfig

from alembic import context

from gatepost.postgres import schema

if context.config.config_file_name is not None:  # the `alembic` command: say what is done
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)

schema.run_migrations(context)
