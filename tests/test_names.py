"""Names and passwords as text, by what must hold for any text."""

import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from precis_i18n import get_profile

from gatepost.security.credentials import InvalidPassword, prepare
from gatepost.security.names import MAX_LENGTH, InvalidName, _why, canonical, display

thorough = settings(deadline=None, derandomize=True, max_examples=300)

# Any text, and text of characters that names are really made of, so that most examples get past the first rule.
letters = st.characters(categories=["Ll", "Lu", "Lo", "Lt", "Lm", "Nd", "Mn", "Mc"])
marks = st.sampled_from("\u0301\u0308\u0327\u0345\u093c\u3099\u200d\u200c\u00b7\u0660\u06f0\u30fb")
names = (
    st.text(letters, max_size=MAX_LENGTH + 2)
    | st.text(letters | marks | st.sampled_from("azAZ09.-_@'"), max_size=12)
    | st.text(max_size=12)
    | st.text(st.characters(min_codepoint=0xFF00, max_codepoint=0xFFEF), max_size=12)
)


def attempt(function: Callable[[str], str], name: str) -> str | None:
    """The form of a name, or None when it is refused; any other error is a failure."""
    try:
        return function(name)
    except InvalidName:
        return None


@thorough
@given(names)
@example("İ" * MAX_LENGTH)  # each becomes two characters in lower case
@example("a" * (MAX_LENGTH - 1) + "İ")
@example("\u0958" * MAX_LENGTH)  # each becomes two in NFC
def test_a_canonical_name_is_its_own_canonical_form(name: str) -> None:
    form = attempt(canonical, name)
    if form is not None:
        assert attempt(canonical, form) == form
        assert attempt(display, form) == form


@thorough
@given(names)
@example("\u0958" * MAX_LENGTH)
@example("ＡＤＡ")
@example("e\u0301")
def test_the_displayed_name_is_the_same_user_as_the_one_that_was_typed(name: str) -> None:
    shown, compared = attempt(display, name), attempt(canonical, name)
    if shown is not None:
        assert attempt(display, shown) == shown
        assert attempt(canonical, shown) == compared


@thorough
@given(names)
@example("İ" * MAX_LENGTH)
@example("\u0958" * MAX_LENGTH)
def test_what_is_accepted_has_a_bounded_length_and_no_character_that_postgres_refuses(name: str) -> None:
    for function in (canonical, display):
        form = attempt(function, name)
        if form is not None:
            assert 1 <= len(form) <= MAX_LENGTH
            assert len(form.encode("utf-8")) <= 1024  # and no surrogate
            assert not any(unicodedata.category(c) in {"Cc", "Cs", "Cn", "Zs", "Zl", "Zp"} for c in form)
            assert unicodedata.is_normalized("NFC", form)


def _has_simple_case(character: str) -> bool:
    # Not ß, İ or ς, whose upper case does not lead back: RFC 8265 keeps those apart, and so do we.
    upper = character.upper()
    return len(upper) == 1 and upper != character and upper.lower() == character and character not in "σς"


cased = st.characters(categories=["Ll"]).filter(_has_simple_case)


@thorough
@given(st.text(cased | st.sampled_from("abcxyz"), min_size=1, max_size=20), st.data())
def test_case_does_not_tell_names_apart(name: str, data: st.DataObject) -> None:
    lower = attempt(canonical, name)
    mixed = "".join(c.upper() if data.draw(st.booleans()) else c for c in name)
    upper = attempt(canonical, name.upper())
    assert attempt(canonical, mixed) == lower == upper
    assert lower is not None or not name.isascii()


@thorough
@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=MAX_LENGTH))
def test_every_printable_ascii_name_is_taken_and_its_width_does_not_matter(name: str) -> None:
    wide = "".join(chr(ord(c) + 0xFEE0) for c in name)
    assert display(name) == display(wide) == name
    assert canonical(name) == canonical(wide) == name.lower()


@thorough
@given(names)
def test_composition_does_not_tell_names_apart(name: str) -> None:
    form = attempt(canonical, name)
    decomposed = unicodedata.normalize("NFD", name)
    if form is not None and len(decomposed) <= MAX_LENGTH:
        assert attempt(canonical, decomposed) == form


REFUSED = [
    "",
    " ",
    "a b",
    "ada ",
    " ada",
    "ada\n",
    "ada\u00a0",
    "ada\u3000",
    "\0",
    "ada\0",
    "\ud800",
    "a\udfff",
    "\u202eada",
    "ada\u200b",
    "\ufeffada",
    "a\u0378",  # unassigned
    "ﬁn",
    "①",
    "ªda",
    "☕",
    "a\U0001f600",
    "\u0627a\u0627",  # breaks the bidi rule
    "l·a",  # a middle dot not between two l
    "a" * (MAX_LENGTH + 1),
    "é" * 100_000,
]


def test_ascii_is_judged_as_the_profiles_do_and_refused_in_the_same_words() -> None:
    for profile, ours in (("UsernameCaseMapped", canonical), ("UsernameCasePreserved", display)):
        theirs = get_profile(profile)
        for character in map(chr, range(128)):
            for text in (character, f"a{character}b", f"{character}A\x01"):
                assert outcome(ours, text) == outcome(theirs.enforce, text)


def outcome(function: Callable[[str], str], text: str) -> str:
    try:
        return function(text)
    except UnicodeEncodeError as error:
        return f"refused: {_why(error)}"
    except InvalidName as error:
        return f"refused: {error}"


@pytest.mark.parametrize("name", REFUSED, ids=lambda name: ascii(name[:12]))
def test_what_cannot_be_a_name_is_refused_with_a_reason(name: str) -> None:
    for function in (canonical, display):
        with pytest.raises(InvalidName) as refused:
            function(name)
        assert 0 < len(str(refused.value)) < 200
        str(refused.value).encode()


ONE_USER = [
    ["ada", "ADA", "Ada", "ａｄａ", "ＡＤＡ"],
    ["zoë", "ZOË", "zoe\u0308", "ZOE\u0308"],
    ["straße", "STRAßE", "STRA\u1e9eE"],
    ["\u212bngstrom", "\u00c5ngstrom", "a\u030angstrom"],
    ["\u212a", "k", "K"],  # the Kelvin sign
    ["παρα", "ΠΑΡΑ"],
    ["한글", "\u1112\u1161\u11ab\u1100\u1173\u11af"],
    ["ｶﾞ", "ガ"],
]


@pytest.mark.parametrize("spellings", ONE_USER, ids=lambda spellings: spellings[0])
def test_the_spellings_of_one_name_are_one_user(spellings: list[str]) -> None:
    assert len({canonical(name) for name in spellings}) == 1


def test_different_names_are_different_users() -> None:
    ascii_ = ["ada", "aada", "ad", "ada.", "ada1", "strasse", "i", "zoe", "0"]
    different = [*ascii_, "ad\u0430", "\u0430da", "straße", "ß", "ı", "zoë"]  # two of them with a Cyrillic a
    assert len({canonical(name) for name in different}) == len(different)


# ---------------------------------------------------------------------------------------------- passwords

passwords = st.text(max_size=40) | st.text(letters | marks | st.sampled_from(" \u00a0\u3000aé"), max_size=40)


def prepared(password: str) -> bytes | None:
    try:
        return prepare(password)
    except InvalidPassword:
        return None


@thorough
@given(passwords)
@example("")
@example("\0")
@example("\ud800")
@example("\u0958" * 1024)
def test_a_password_becomes_bytes_that_are_their_own_preparation_or_is_refused(password: str) -> None:
    secret = prepared(password)
    if secret is not None:
        text = secret.decode()  # UTF-8, so no surrogate
        assert text
        assert "\0" not in text
        assert prepared(text) == secret
        assert unicodedata.is_normalized("NFC", text)
        assert not any(unicodedata.category(c) in {"Cc", "Cs", "Cn"} for c in text)


@thorough
@given(passwords)
def test_a_password_is_the_same_however_it_is_composed_and_spaced(password: str) -> None:
    secret = prepared(password)
    assert prepared(unicodedata.normalize("NFC", password)) == secret
    assert prepared(unicodedata.normalize("NFD", password)) == secret
    assert prepared(password.replace(" ", "\u00a0")) == secret


@thorough
@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1))
def test_an_ascii_password_is_taken_as_it_is(password: str) -> None:
    assert prepare(password) == password.encode()


@thorough
@given(st.text(letters, min_size=1, max_size=20), st.text(letters, min_size=1, max_size=20))
def test_different_passwords_stay_different(one: str, other: str) -> None:
    first, second = prepared(one), prepared(other)
    if unicodedata.normalize("NFC", one) != unicodedata.normalize("NFC", other) and first and second:
        assert first != second
    # Case and width tell passwords apart, unlike names.
    assert prepare("Correct horse") != prepare("correct horse")
    assert prepare("ａｂｃ") != prepare("abc")


@pytest.mark.parametrize(
    "password", ["", "\0", "tab\there", "line\nfeed", "\x7f", "\ud800", "\u0378", "\ufdd0", "\ufeff"]
)
def test_what_cannot_be_a_password_is_refused_with_a_reason(password: str) -> None:
    with pytest.raises(InvalidPassword):
        prepare(password)
