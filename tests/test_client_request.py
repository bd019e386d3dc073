"""The client finds a session's token where Gatepost itself would."""

from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict

from gatepost.config import Config
from gatepost.errors import ForeignOrigin, Unauthorized
from gatepost.http import app, tokens
from gatepost_client.request import session_token

ONE, TWO = "0a0a0a0a-0a0a-4a0a-8a0a-0a0a0a0a0a0a", "0b0b0b0b-0b0b-4b0b-8b0b-0b0b0b0b0b0b"
HOSTS = ["notes.example", "Notes.example", "127.0.0.1:8001", "localhost", "localhost.example", "[::1]:80", ""]

values = st.sampled_from([ONE, TWO, ONE.upper(), f'"{ONE}"', f"{ONE} ", "", "x"])
pairs = st.builds(
    "{}{}{}".format,
    st.sampled_from(["__Host-session", "session", "theme", " session"]),
    st.sampled_from(["=", ""]),
    values,
)
headers = st.fixed_dictionaries(
    {"Host": st.sampled_from(HOSTS)},
    optional={
        "Authorization": st.sampled_from([ONE, f"Bearer {TWO}", "Basic YTpi", "", f"Bearer {ONE}, Bearer {TWO}"]),
        "Cookie": st.lists(pairs, max_size=4).map("; ".join) | st.just(f"a={'b' * 16384}; session={ONE}"),
        "Origin": st.sampled_from([f"http://{host}" for host in HOSTS] + ["null", "https://notes.example"]),
        "Sec-Fetch-Site": st.sampled_from(["same-origin", "same-site", "cross-site", "none"]),
    },
)


@pytest.fixture(scope="module")
def as_gatepost() -> Any:
    """What Gatepost takes for the token."""
    config = Config()

    def token(method: str, headers: dict[str, str]) -> str | None:
        request = make_mocked_request(method, "/", headers=CIMultiDict(headers), app={app.CONFIG: config})
        try:
            return tokens.session_token(request)
        except (Unauthorized, ForeignOrigin):
            return None

    return token


@given(st.sampled_from(["GET", "HEAD", "POST", "DELETE"]), headers)
@example("POST", {"Host": "notes.example", "Cookie": f"__Host-session={ONE}", "Origin": "https://notes.example"})
@example("GET", {"Host": "notes.example", "Cookie": f"__Host-session={ONE}"})
@example("GET", {"Host": "notes.example", "Cookie": f"__Host-session={ONE}; __Host-session={TWO}"})
def test_client_and_gatepost_take_the_same_token(as_gatepost: Any, method: str, headers: dict[str, str]) -> None:
    found = CIMultiDict(headers)
    assert session_token(method, found.get) == as_gatepost(method, headers)


@pytest.mark.parametrize(
    ("method", "more", "counts"),
    [
        ("GET", {}, True),
        ("POST", {}, False),
        ("POST", {"Sec-Fetch-Site": "same-origin"}, True),
        ("POST", {"Sec-Fetch-Site": "same-site", "Origin": "https://notes.example"}, False),
        ("POST", {"Origin": "https://notes.example"}, True),
        ("POST", {"Origin": "https://evil.example"}, False),
        ("GET", {"Upgrade": "websocket", "Origin": "https://evil.example"}, False),
        ("GET", {"Upgrade": "websocket", "Origin": "https://notes.example"}, True),
        ("", {"Origin": "https://evil.example"}, False),
    ],
)
def test_a_cookie_counts_only_for_pages_of_the_same_origin(
    method: str, more: dict[str, str], *, counts: bool
) -> None:
    found = CIMultiDict({"Host": "notes.example", "Cookie": f"__Host-session={ONE}", **more})
    assert session_token(method, found.get) == (ONE if counts else None)


def test_a_header_counts_whoever_sent_it() -> None:
    found = CIMultiDict({"Host": "notes.example", "Authorization": ONE, "Origin": "https://evil.example"})
    assert session_token("POST", found.get) == ONE
