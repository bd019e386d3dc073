"""What has gone wrong, in the words of a page: whole sentences, at the field that they are about."""

from collections.abc import Mapping

from gatepost.config import Config
from gatepost.errors import FieldError, Overloaded, Problem, SecondFactorRequired, TooManyAttempts, Unavailable
from gatepost.pages.languages import Words


def N_(text: str) -> str:  # noqa: N802 (the name by which gettext's tools find text that is translated later)
    """Mark a text for translation."""
    return text


_OF_A_FIELD: dict[str, str] = {
    "required": N_("Please fill this in."),
    "password_too_short": N_("Please use at least %(min)s characters."),
    "password_too_long": N_("Please use at most %(max)s characters."),
    "password_too_common": N_("This is one of the most common passwords. Please choose another one."),
    "password_is_username": N_("This is made of your username. Please choose another one."),
    "password_breached": N_("This password was published in a breach of another service. Please choose another one."),
    "invalid_password": N_("This contains a character that passwords cannot have."),
    "invalid_username": N_("Please use 1 to 64 letters, digits and characters such as . _ and -, without spaces."),
    "invalid_email": N_("This does not look like a mail address: name@example.org"),
    "invalid_name": N_("Please use only characters that can be seen."),
    "string_too_short": N_("Please fill this in."),
    "string_too_long": N_("Please use fewer characters."),
}
_OTHER_FIELD = N_("This cannot be used here.")

_OF_A_PROBLEM: dict[str, str] = {
    "invalid_body": N_("Please look at what is marked below."),
    "invalid_credentials": N_("The username or the password is wrong."),
    "wrong_password": N_("The current password is wrong."),
    "invalid_code": N_("This code is wrong, used or too old."),
    "invalid_passkey": N_("This passkey does not prove who you are. Please try again."),
    "passkey_unknown": N_("No account can be signed in to with this passkey."),
    "login_expired": N_("This sign-in has taken too long, or too many codes were wrong. Please begin again."),
    "confirmation_required": N_("Please confirm that it is still you."),
    "factor_required": N_("Your role needs a second factor. Please add one first."),
    "username_taken": N_("Somebody has this username already."),
    "registration_closed": N_("Accounts are created by the operator of this service."),
    "email_taken": N_("This address belongs to another account."),
    "too_many_emails": N_("An account has at most ten addresses. Please remove one first."),
    "too_many_passkeys": N_("An account has at most twenty passkeys. Please remove one first."),
    "too_many_factors": N_("An account has at most five authenticator apps. Please remove one first."),
    "passkey_taken": N_("This passkey belongs to an account already."),
    "last_factor": N_("Your role needs a second factor, and this is the only one. Please add another one first."),
    "last_admin": N_("This is the last administrator. Please make somebody else one first."),
    "no_address": N_("This user is disabled, or has no verified address."),
    "no_second_factor": N_("There is no second factor yet. Please add one first."),
    "foreign_origin": N_(
        "This form was not sent by a page of ours, or your browser does not say which page sent it. "
        "Please open our page and send the form from there."
    ),
    "forbidden": N_("This is not for you."),
    "not_found": N_("There is no such page."),
    "unauthorized": N_("Your session has ended. Please sign in again."),
    "body_too_large": N_("This is too long."),
}
_UNAVAILABLE = N_("We cannot answer right now. Please try again in a moment.")
_OUR_FAULT = N_("Something went wrong on our side.")
_OTHER = N_("This did not work. Please go back and try again.")
_THROTTLED = N_("Too many attempts. Please try again in %(wait)s.")
_BUSY = N_("Many people are signing in right now. Please try again in %(wait)s.")


def sentence(problem: Problem, words: Words) -> str:
    """What a page says of a problem; nothing for one that is a step on the way."""
    say = words.gettext
    if isinstance(problem, SecondFactorRequired):
        return ""  # nothing has gone wrong
    if isinstance(problem, TooManyAttempts):
        return say(_THROTTLED) % {"wait": words.duration(problem.seconds)}
    if isinstance(problem, Overloaded):
        return say(_BUSY) % {"wait": words.duration(float(problem.headers["Retry-After"]))}
    if isinstance(problem, Unavailable):
        return say(_UNAVAILABLE)
    if problem.fields:
        return say(_OF_A_PROBLEM["invalid_body"])
    if problem.status >= 500:
        return say(_OUR_FAULT)
    return say(_OF_A_PROBLEM.get(problem.code, _OTHER))


def at_fields(problem: Problem, words: Words, config: Config, about: Mapping[str, str]) -> dict[str, str]:
    """What a page says at each field; of several things wrong with one, the first.

    ``about``: which field of the page a problem as a whole is about, by its code.
    """
    if not problem.fields:
        return {about[problem.code]: sentence(problem, words)} if problem.code in about else {}
    said: dict[str, str] = {}
    for error in problem.fields:
        said.setdefault(error.field, _of_field(error, words, config))
    return said


def _of_field(error: FieldError, words: Words, config: Config) -> str:
    text = words.gettext(_OF_A_FIELD.get(error.code, _OTHER_FIELD))
    bounds = {"min": config.passwords.min_length, "max": config.passwords.max_length}
    return text % bounds if "%(" in text else text
