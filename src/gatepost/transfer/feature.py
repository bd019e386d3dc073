"""Users brought along from elsewhere, and taken along."""

from gatepost.http.feature import Feature
from gatepost.transfer import commands

FEATURE = Feature(
    user_commands=commands.register, events={"user_imported": "`import`: the same for all of one import"}
)
