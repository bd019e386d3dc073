"""The section ``throttle``: how many attempts there are, of each kind."""

from typing import Annotated

from pydantic import Field, IPvAnyNetwork

from gatepost.config.sections import Section
from gatepost.config.values import FROM_TEXT


class ThrottleConfig(Section):
    """How many attempts there are: ``burst`` at once, then one more ``every`` so many seconds."""

    account_burst: int = Field(
        20, ge=1, le=1_000_000, description="Wrong passwords for one name at once, from all unknown places together."
    )
    account_every: float = Field(
        1080,
        gt=0,
        le=86400,
        description="Seconds for one more: with the burst 100 in any day.",
    )
    place_burst: int = Field(
        10,
        ge=1,
        le=1_000_000,
        description="Wrong passwords for one name at once, from one place (IPv4 /24, IPv6 /56).",
    )
    place_every: float = Field(
        960, gt=0, le=86400, description="Seconds for one more: with the burst 100 in any day."
    )
    network_burst: int = Field(
        100,
        ge=1,
        le=1_000_000,
        description="Wrong logins from one place at once, whatever the names; many may share it.",
    )
    network_every: float = Field(
        1, gt=0, le=86400, description="Seconds for one more: the typing errors of a large office fit in."
    )
    registration_burst: int = Field(
        30, ge=1, le=1_000_000, description="Registrations from one place at once: a class signs up in its lesson."
    )
    registration_every: float = Field(120, gt=0, le=86400, description="Seconds for one more.")
    rename_burst: int = Field(
        5,
        ge=1,
        le=1_000_000,
        description="New names for an account at once, taken ones too: each brings attempts at its password.",
    )
    rename_every: float = Field(86400, gt=0, le=86400, description="Seconds for one more.")
    activity_burst: int = Field(
        1000,
        ge=1,
        le=1_000_000,
        description="What a user may do at once of all that is recorded: signing in, changing the account.",
    )
    activity_every: float = Field(10, gt=0, le=86400, description="Seconds for one more: 8,640 in any day.")
    code_burst: int = Field(
        20, ge=1, le=1_000_000, description="Wrong reset codes from one place at once; none can be guessed anyway."
    )
    code_every: float = Field(60, gt=0, le=86400, description="Seconds for one more.")
    typed_code_burst: int = Field(
        5, ge=1, le=1_000_000, description="Wrong codes at once from mail to one address, or for one name."
    )
    typed_code_every: float = Field(
        720, gt=0, le=86400, description="Seconds for one more: with the burst 10 in the hour that a code lasts."
    )
    factor_burst: int = Field(
        10, ge=1, le=1_000_000, description="Wrong codes of second factors at once, for one user."
    )
    factor_every: float = Field(
        3600,
        gt=0,
        le=86400,
        description="Seconds for one more: with the burst 34 in any day, a chance of one in 10,000 at six digits.",
    )
    mail_burst: int = Field(
        5,
        ge=1,
        le=1_000_000,
        description="Mail with codes of one kind to one address at once; asking for one name's.",
    )
    mail_every: float = Field(5760, gt=0, le=86400, description="Seconds for one more: with the burst 20 in any day.")
    recovery_burst: int = Field(
        30, ge=1, le=1_000_000, description="Asking for a way back from one place at once, whatever the names."
    )
    recovery_every: float = Field(60, gt=0, le=86400, description="Seconds for one more.")
    lookup_burst: int = Field(
        1000,
        ge=1,
        le=1_000_000,
        description="Tokens that are none, from one place at once; a valid one always passes.",
    )
    lookup_every: float = Field(
        0.1, gt=0, le=86400, description="Seconds for one more: apps that go on asking after their session has ended."
    )
    exempt: Annotated[tuple[IPvAnyNetwork, ...], *FROM_TEXT] = Field(
        (), description="Networks that are no place: own backends, which ask for all users."
    )
