"""The section ``factors``: second factors, and who must have one."""

from typing import Annotated, Self

from pydantic import Field, SecretStr, StringConstraints, field_validator, model_validator

from gatepost.config.sections import Section
from gatepost.config.values import FROM_TEXT, HostName, Origin, PepperId

# Characters at least: as a key of AES-256 has bytes.
_KEY_LENGTH = 32

Role = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}$")]


class FactorsConfig(Section):
    """Second factors."""

    issuer: str = Field(
        "Gatepost", min_length=1, max_length=64, description="What authenticator apps call this service."
    )
    required_for: Annotated[tuple[Role, ...], *FROM_TEXT] = Field(
        (), description="Roles whose users must have a second factor; until then they can do nothing but add one."
    )
    relying_party: HostName | None = Field(
        None,
        description="Domain that passkeys are for, once and for all. Default: that of `webserver.public_url`; one "
        "above it will do.",
    )
    origins: Annotated[tuple[Origin, ...], *FROM_TEXT] = Field(
        (), description="Further origins whose pages may use passkeys, beside `webserver.public_url`."
    )
    key: str | None = Field(
        None,
        description="Id of the key that encrypts new TOTP secrets. Default: the only one there is, or else a key in "
        "the database.",
    )
    keys: Annotated[dict[PepperId, SecretStr], *FROM_TEXT] = Field(
        default_factory=dict,
        description="Keys by id, each at least 32 characters. Keep an old one here until nobody needs it.",
    )

    @field_validator("issuer")
    @classmethod
    def _label(cls, issuer: str) -> str:
        if ":" in issuer or not issuer.isprintable():
            raise ValueError("must be printable, without a colon")  # it ends there in an otpauth URI
        return issuer

    @field_validator("keys")
    @classmethod
    def _long_enough(cls, keys: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, secret in keys.items():
            if len(secret.get_secret_value()) < _KEY_LENGTH:
                raise ValueError(f"key {name!r} has fewer than {_KEY_LENGTH} characters")
        return keys

    @model_validator(mode="after")
    def _key_is_known(self) -> Self:
        if self.key is not None and self.key not in self.keys:
            raise ValueError(f"key names {self.key!r}, which is not among keys")
        if self.key is None and len(self.keys) > 1:
            raise ValueError("there are several keys, so key must say which one encrypts new secrets")
        return self

    @property
    def current_key(self) -> str | None:
        """The id of the key that encrypts new secrets; None for the deployment's own."""
        return self.key or next(iter(self.keys), None)
