"""Whose request it is: proxies are believed only if they are ours."""

import ipaddress
import logging

import pytest

from gatepost.config import Config
from gatepost.postgres.database import Dsn
from gatepost.security import addresses
from tests.conftest import Client, StartServer, log_in, register, rows

CLIENT = "203.0.113.5"


def ip(text: str) -> addresses.Address:
    return ipaddress.ip_address(text)


TRUSTED = [ipaddress.ip_network(text) for text in ("10.0.0.0/8", "192.0.2.7/32", "2001:db8:1::/48")]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("203.0.113.5", "203.0.113.5"),
        (" 203.0.113.5\t", "203.0.113.5"),
        ("203.0.113.5:4711", "203.0.113.5"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("::ffff:203.0.113.5", "203.0.113.5"),
        ("[::ffff:203.0.113.5]:80", "203.0.113.5"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        *((text, None) for text in ("", " ", "unknown", "_hidden", "example.org", "203.0.113", "203.0.113.256")),
        *((text, None) for text in ("203.0.113.5:", "203.0.113.5:x", "203.0.113.5:1234567", "203.0.113.5:٨٠")),
        *((text, None) for text in ("[2001:db8::1", "2001:db8::1]", "[2001:db8::1]x", "[203.0.113.5]", "[]:80")),
        *(
            (text, None)
            for text in ("fe80::1%eth0", "fe80::1%<script>", "0203.0.113.5", "203.0.113.5\n", '"203.0.113.5"')
        ),
    ],
)
def test_an_address_is_read_with_port_and_brackets_and_other_text_is_refused(written: str, meant: str | None) -> None:
    assert addresses.parse(written) == (ip(meant) if meant else None)


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        # A peer that is none of ours: whatever it says, it is the client.
        (CLIENT, [], CLIENT),
        (CLIENT, ["198.51.100.1"], CLIENT),
        (CLIENT, ["10.0.0.1"], CLIENT),
        # A proxy of ours: the last entry is what it saw, and the client's own words stand left of that.
        ("10.0.0.1", [CLIENT], CLIENT),
        ("10.0.0.1", [f"198.51.100.1, {CLIENT}"], CLIENT),
        ("10.0.0.1", [f"10.0.0.9, {CLIENT}"], CLIENT),
        ("10.0.0.1", ["198.51.100.1", CLIENT], CLIENT),
        ("2001:db8:1::5", ["2001:db8:2::1"], "2001:db8:2::1"),
        # Several of ours, one behind the other.
        ("10.0.0.1", [f"{CLIENT}, 192.0.2.7, 10.3.0.1"], CLIENT),
        ("10.0.0.1", [f"198.51.100.1, {CLIENT}, 192.0.2.7", "10.3.0.1:555"], CLIENT),
        # All of ours: the first of them asks for itself.
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", [], "10.0.0.1"),
        # What is no address ends the walk at the last that was one.
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", [f"{CLIENT}, unknown"], "10.0.0.1"),
        ("10.0.0.1", [f"{CLIENT}, garbage, 192.0.2.7"], "192.0.2.7"),
        ("10.0.0.1", [f"{CLIENT},"], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
    ],
)
def test_the_first_untrusted_address_from_the_right_is_the_client(
    peer: str, forwarded: list[str], client: str
) -> None:
    assert addresses.client(ip(peer), forwarded, TRUSTED) == ip(client)


def test_without_trusted_proxies_nothing_is_believed() -> None:
    assert addresses.client(ip("127.0.0.1"), [CLIENT], []) == ip("127.0.0.1")


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("203.0.113.5", "203.0.113.0/24"),
        ("203.0.113.255", "203.0.113.0/24"),
        ("2001:db8:1:2ff:ffff::1", "2001:db8:1:200::/56"),
        ("2001:db8:1:2ff::", "2001:db8:1:200::/56"),
        ("2001:db8:1:300::", "2001:db8:1:300::/56"),
    ],
)
def test_a_place_is_a_24_of_ipv4_and_a_56_of_ipv6(address: str, place: str) -> None:
    assert addresses.place(ip(address)) == place


@pytest.mark.parametrize(
    ("address", "trusted", "many"),
    [
        ("127.0.0.1", [], True),
        ("172.17.0.1", [], True),
        ("fd00::5", [], True),
        ("93.184.216.34", [], False),
        ("2606:2800:220:1::1", [], False),
        # Who has named the proxies has clients everywhere else, also in the own house.
        ("10.0.0.1", TRUSTED, True),
        ("2001:db8:1::5", TRUSTED, True),
        ("127.0.0.1", TRUSTED, False),
        ("172.17.0.1", TRUSTED, False),
        ("93.184.216.34", TRUSTED, False),
    ],
)
def test_a_trusted_proxys_own_address_and_an_unnamed_private_one_have_no_share_of_the_queue(
    address: str, trusted: list[addresses.Network], many: bool
) -> None:
    assert addresses.may_be_many(ip(address), trusted) is many


def trusting(config: Config, *networks: str) -> Config:
    webserver = config.webserver.model_validate({"port": 0, "trusted_proxies": networks})
    return config.model_copy(update={"webserver": webserver})


async def test_events_and_sessions_have_the_clients_address_behind_a_trusted_proxy(
    config: Config, start_server: StartServer
) -> None:
    client = await start_server(trusting(config, "127.0.0.1", "::1"))
    await register(client, "ada")
    headers = {"X-Forwarded-For": f"198.51.100.9, {CLIENT}:4711"}
    credentials = {"username": "ada", "password": "correct horse battery"}
    token = (await (await client.post("/user", json=credentials, headers=headers)).json())["session_id"]
    answer = await client.get("/user", headers={"Authorization": token})
    assert (await answer.json())["session"]["ip"] == CLIENT


async def test_a_client_cannot_give_itself_another_address(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    await register(client, "ada")
    for _ in range(3):
        answer = await client.post(
            "/user",
            json={"username": "ada", "password": "correct horse battery"},
            headers={"X-Forwarded-For": CLIENT, "X-Real-IP": CLIENT, "Forwarded": f"for={CLIENT}"},
        )
        token = (await answer.json())["session_id"]
    shown = await (await client.get("/user", headers={"Authorization": token})).json()
    assert shown["session"]["ip"] == "127.0.0.1"
    # And the operator is told once, since it may be a proxy that everybody comes through.
    warnings = [str(record.msg) for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "webserver.trusted_proxies" in warnings[0]


@pytest.mark.parametrize("forged", ["'; DROP TABLE users --", "\u00ff", "1" * 4000, "fe80::1%a", ",,,,"])
async def test_a_trusted_proxy_that_passes_nonsense_on_breaks_nothing(
    config: Config, start_server: StartServer, dsn: Dsn, forged: str
) -> None:
    client = await start_server(trusting(config, "127.0.0.0/8"))
    await register(client, "ada")
    async with client.post(
        "/user",
        json={"username": "ada", "password": "correct horse battery"},
        headers={"X-Forwarded-For": forged},
    ) as answer:
        assert answer.status == 200
    assert await log_in(client)
    ips = rows(dsn, "SELECT DISTINCT host(ip) FROM gatepost.sessions")
    assert ips == [("127.0.0.1",)]
