"""The pages in Debian's Chromium, with scripts and without: what people do there, and whether everybody can.

The tests skip without Chromium, unless REQUIRE_BROWSER=1.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyotp
import pytest
from axe_playwright_python.async_playwright import Axe
from axe_playwright_python.base import AxeResults
from playwright.async_api import Browser, CDPSession, ConsoleMessage, Download, Page, async_playwright, expect

from gatepost.config import Config, CookiesConfig, PagesConfig, WebServerConfig
from gatepost.config.mail import LANGUAGES
from gatepost.pages.states import STATES
from gatepost.postgres.database import Dsn
from tests.conftest import PASSWORD, Client, StartServer, register, rows, with_mail
from tests.received_mail import Folder
from tests.test_browser import CHROMIUM, pytestmark  # noqa: F401 (the same condition)
from tests.test_factors import grow_stale
from tests.test_forward_auth import PROXIES, Backend, free_port, running, served

NEW_PASSWORD = "another horse battery staple"
ORIGIN = "http://localhost:4321"
"""What the browser knows the server by. Passkeys are for an origin that is configured before a port is taken."""

PHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/17.5 Mobile/15E148 Safari/604.1"
)


class Site:
    """The server, the mail that it sends, and a browser in which nothing goes wrong unseen."""

    def __init__(self, client: Client, browser: Browser, mail: Path) -> None:
        self.client = client
        self.mail = Folder(mail)
        self.wrong: list[str] = []
        self._browser = browser

    async def page(self, **options: Any) -> Page:
        """A page of a new visitor."""
        context = await self._browser.new_context(base_url=ORIGIN, **options)
        context.set_default_timeout(60_000)
        context.on("weberror", lambda error: self.wrong.append(str(error.error)))
        context.on("console", self._note)
        return await context.new_page()

    def _note(self, said: ConsoleMessage) -> None:
        # Chromium says this of every answer with such a status, also of the page that tells of a wrong password.
        if said.type in ("error", "warning") and not said.text.startswith("Failed to load resource"):
            self.wrong.append(said.text)


@pytest.fixture
async def site(config: Config, start_server: StartServer, tmp_path: Path) -> AsyncIterator[Site]:
    changed = with_mail(config, tmp_path / "mail").model_copy(
        update={"webserver": WebServerConfig(port=0, public_url=ORIGIN), "pages": PagesConfig(gallery=True)}
    )
    client = await start_server(changed)
    expect.set_options(60_000)
    async with async_playwright() as playwright:
        rule = f"--host-resolver-rules=MAP localhost:4321 127.0.0.1:{client.port}"
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", rule])
        site = Site(client, browser, tmp_path / "mail")
        yield site
        await browser.close()
    assert site.wrong == []


async def press(page: Page, name: str) -> None:
    await page.get_by_role("button", name=name, exact=True).click()


async def sign_in(page: Page, password: str = PASSWORD, path: str = "/sign-in") -> None:
    await page.goto(path)
    await page.fill("#username", "ada")
    await page.fill("#password", password)
    await press(page, "Sign in")


async def content(file: Download) -> str:
    """What a file has in it that was downloaded."""
    path = await file.path()
    return await asyncio.to_thread(path.read_text, "utf-8")


async def said(page: Page, text: str) -> None:
    await expect(page.locator("main > .notice")).to_have_text(text)


async def refused(page: Page, text: str) -> None:
    await expect(page.locator("main > .problem")).to_have_text(text)


WITH_AND_WITHOUT = pytest.mark.parametrize("scripts", [True, False], ids=["with scripts", "without scripts"])


@WITH_AND_WITHOUT
async def test_somebody_signs_up_and_verifies_an_address(site: Site, scripts: bool) -> None:
    page = await site.page(java_script_enabled=scripts)
    await page.goto("/")
    await page.get_by_role("link", name="Create an account").click()
    await page.fill("#username", "ada")
    await page.fill("#email", "ada@example.org")
    await page.fill("#password", "too short")
    await press(page, "Create an account")
    await refused(page, "Please look at what is marked below.")
    await expect(page.locator("#password-error")).to_have_text("Please use at least 15 characters.")
    await expect(page.locator("#password")).to_be_focused()
    await expect(page.locator("#username")).to_have_value("ada")
    await page.fill("#password", PASSWORD)
    await press(page, "Create an account")
    await said(page, "Your account has been created. Welcome!")

    mail = await site.mail.receive("ada@example.org", kind="Confirm your mail address")
    if scripts:
        link = re.search(rf"{ORIGIN}/me/emails/\S+", mail.text)
        assert link
        await page.goto(link[0])
        await expect(page.locator("#code")).to_be_hidden()
        assert "#" not in page.url
    else:
        await page.goto("/me/emails")
        await page.get_by_role("link", name="Verify").click()
        await page.fill("#code", mail.typed)
    await press(page, "Verify")
    await said(page, "The address is verified.")


@WITH_AND_WITHOUT
async def test_an_account_is_changed_taken_along_and_left(site: Site, scripts: bool) -> None:
    await register(site.client, "ada")
    page = await site.page(java_script_enabled=scripts)
    await sign_in(page)
    await page.fill("#name", "Ada, Gräfin <Lovelace>")
    await press(page, "Save")
    await said(page, "Saved.")
    await expect(page.locator("#name")).to_have_value("Ada, Gräfin <Lovelace>")

    await page.get_by_role("link", name="Password").click()
    await page.fill("#current", "not that one, really")
    await page.fill("#new", NEW_PASSWORD)
    await press(page, "Change the password")
    await expect(page.locator("#current-error")).to_have_text("The current password is wrong.")
    await page.fill("#current", PASSWORD)
    await page.fill("#new", NEW_PASSWORD)
    await press(page, "Change the password")
    await said(page, "Your password has been changed. Every other session has ended.")

    await page.goto("/me/activity")
    for text in ("The password was changed", "A wrong current password was given", "The account was created"):
        await expect(page.get_by_text(text)).to_be_visible()

    await page.get_by_role("link", name="My data").click()
    async with page.expect_download() as download:
        await press(page, "Download my data")
    exported = json.loads(await content(await download.value))
    assert exported["user"]["username"] == "ada"

    await page.fill("#password", NEW_PASSWORD)
    await press(page, "Delete my account")
    await said(page, "Your account has been deleted.")
    assert await page.context.cookies() == []
    await page.fill("#username", "ada")
    await page.fill("#password", NEW_PASSWORD)
    await press(page, "Sign in")
    await refused(page, "The username or the password is wrong.")


@WITH_AND_WITHOUT
async def test_a_second_factor_from_the_app_to_a_lost_phone(site: Site, scripts: bool) -> None:
    await register(site.client, "ada")
    page = await site.page(java_script_enabled=scripts)
    await sign_in(page, path="/sign-in?return_to=/me/factors")
    await page.fill("#name", "Phone")
    await press(page, "Add an authenticator app")
    await expect(page.get_by_role("img", name="QR code for the app")).to_be_visible()
    app = pyotp.TOTP((await page.locator("main code").inner_text()).replace(" ", ""))
    await page.fill("#code", "000000" if app.now() != "000000" else "111111")
    await press(page, "Continue")
    await expect(page.locator("#code-error")).to_have_text("This code is wrong, used or too old.")
    await page.fill("#code", app.now())
    await press(page, "Continue")
    codes = await page.locator(".codes code").all_inner_texts()
    assert len(codes) == 10
    async with page.expect_download() as download:
        await page.get_by_text("Save as a file").click()
    assert (await content(await download.value)).split() == codes
    await page.get_by_role("link", name="I have kept them").click()
    await expect(page.get_by_text("You have 10 recovery codes left.")).to_be_visible()

    await page.get_by_role("link", name="Sign out").click()
    await press(page, "Sign out")
    await said(page, "You have signed out.")
    await sign_in(page, path="/sign-in?return_to=/me/sessions%3Fa%3D1")
    await expect(page.get_by_role("heading", name="One more step")).to_be_visible()
    await expect(page.locator(".problem")).to_have_count(0)
    await page.fill("#totp", "12")
    await press(page, "Continue")
    await expect(page.locator("#totp-error")).to_have_text("This code is wrong, used or too old.")
    await page.get_by_text("Use a recovery code").click()
    await page.fill("#recovery_code", codes[0])
    await page.locator("details button").click()
    await expect(page).to_have_url(f"{ORIGIN}/me/sessions?a=1")

    await page.get_by_role("link", name="Second factors").click()
    await expect(page.get_by_text("You have 9 recovery codes left.")).to_be_visible()
    await press(page, "Remove Phone")
    await said(page, "The second factor has been removed.")


@WITH_AND_WITHOUT
async def test_what_needs_a_confirmation_asks_for_it_and_goes_on(site: Site, dsn: Dsn, scripts: bool) -> None:
    await register(site.client, "ada")
    page = await site.page(java_script_enabled=scripts)
    await sign_in(page)
    grow_stale(dsn)
    await page.goto("/me")
    await page.fill("#username", "countess")
    await press(page, "Change the username")
    await refused(page, "Please confirm that it is still you.")
    await page.fill("#confirm_password", "not that one, really")
    await press(page, "Continue")
    await expect(page.locator("#confirm_password-error")).to_have_text("The current password is wrong.")
    await page.fill("#confirm_password", PASSWORD)
    await press(page, "Continue")
    await said(page, "Your username has been changed.")
    await expect(page.locator("dd").first).to_have_text("countess")


async def test_a_password_is_asked_for_again_where_a_second_factor_confirms(site: Site, dsn: Dsn) -> None:
    await register(site.client, "ada")
    page = await site.page()
    await sign_in(page, path="/sign-in?return_to=/me/factors")
    await press(page, "Add an authenticator app")
    app = pyotp.TOTP((await page.locator("main code").inner_text()).replace(" ", ""))
    await page.fill("#code", app.now())
    await press(page, "Continue")
    codes = await page.locator(".codes code").all_inner_texts()
    grow_stale(dsn)
    await page.goto("/me/password")
    await page.fill("#current", PASSWORD)
    await page.fill("#new", NEW_PASSWORD)
    await press(page, "Change the password")
    await refused(page, "Please confirm that it is still you.")
    await page.get_by_text("Use a recovery code").click()
    await page.fill("#confirm_recovery_code", codes[0])
    await page.fill("#recovery-current", PASSWORD)
    await page.fill("#recovery-new", NEW_PASSWORD)
    await page.locator("details button").click()
    await said(page, "Your password has been changed. Every other session has ended.")


@WITH_AND_WITHOUT
async def test_a_forgotten_password_is_replaced_with_the_code_of_a_mail(site: Site, dsn: Dsn, scripts: bool) -> None:
    await register(site.client, "ada")
    rows(
        dsn,
        "INSERT INTO gatepost.emails (user_id, address, canonical, is_primary, verified_at) "
        "SELECT id, 'ada@example.org', 'ada@example.org', true, now() FROM gatepost.users RETURNING 1",
    )
    page = await site.page(java_script_enabled=scripts)
    await page.goto("/sign-in")
    await page.get_by_role("link", name="Forgotten your password?").click()
    await page.fill("#identifier", "ada@example.org")
    await press(page, "Send me a code")
    await said(page, "If there is an account with a verified address, a code is on its way to it.")
    mail = await site.mail.receive("ada@example.org", kind="Choose a new password")
    if scripts:
        link = re.search(rf"{ORIGIN}/recover/code#\S+", mail.text)
        assert link
        await page.goto(link[0])
        await expect(page.locator("#identifier")).to_be_hidden()
        await expect(page.locator("#new")).to_be_focused()
    else:
        await page.fill("#code", mail.typed)
    await page.fill("#new", NEW_PASSWORD)
    await press(page, "Change the password")
    await said(page, "Your password has been changed. Every other session has ended.")
    await sign_in(page, NEW_PASSWORD)
    await expect(page.get_by_role("heading", name="My account")).to_be_visible()
    changed = await site.mail.receive("ada@example.org", kind="was chosen")
    assert "ada" in changed.text


async def test_the_code_of_a_mail_survives_signing_in_first(site: Site) -> None:
    await register(site.client, "ada")
    page = await site.page()
    await sign_in(page, path="/sign-in?return_to=/me/emails")
    await page.fill("#email", "ada@example.org")
    await page.fill("#password", PASSWORD)
    await press(page, "Add the address")
    await said(page, "A code is on its way to the address.")
    mail = await site.mail.receive("ada@example.org", kind="Confirm your mail address")
    link = re.search(rf"{ORIGIN}/me/emails/\S+", mail.text)
    assert link
    other = await site.page()
    await sign_in(other, path=link[0])
    await expect(other.get_by_role("heading", name="Verify a mail address")).to_be_visible()
    await press(other, "Verify")
    await said(other, "The address is verified.")


@WITH_AND_WITHOUT
async def test_a_session_elsewhere_is_seen_and_ended(site: Site, scripts: bool) -> None:
    await register(site.client, "ada")
    here = await site.page(java_script_enabled=scripts)
    there = await site.page(user_agent=PHONE)
    await sign_in(there)
    await sign_in(here, path="/sign-in?return_to=/me/sessions")
    items = here.locator(".items > li")
    await expect(items).to_have_count(2)
    await expect(items.nth(0)).to_contain_text("This one.")
    await expect(items.nth(1)).to_contain_text("Mobile Safari · iOS")
    await press(here, "End Mobile Safari · iOS 127.0.0.1")
    await said(here, "The session has ended.")
    await there.reload()
    await expect(there.get_by_role("heading", name="Sign in")).to_be_visible()


async def new_device(page: Page) -> tuple[CDPSession, str]:
    """A device of the browser that makes and uses passkeys, and always finds the right finger."""
    devtools = await page.context.new_cdp_session(page)
    await devtools.send("WebAuthn.enable")
    device = {
        "protocol": "ctap2",
        "transport": "internal",
        "hasResidentKey": True,
        "hasUserVerification": True,
        "isUserVerified": True,
        "automaticPresenceSimulation": True,
    }
    added = await devtools.send("WebAuthn.addVirtualAuthenticator", {"options": device})
    return devtools, added["authenticatorId"]


async def test_a_passkey_signs_in_confirms_and_goes(site: Site, dsn: Dsn) -> None:
    await register(site.client, "ada")
    page = await site.page()
    # The device would take the offer that comes with the field of the name at once: here it is the button's turn.
    await page.add_init_script("PublicKeyCredential.isConditionalMediationAvailable = async () => false")
    devtools, device = await new_device(page)
    await sign_in(page, path="/sign-in?return_to=/me/factors")
    await page.fill("#passkey-name", "Laptop")
    await press(page, "Add a passkey")
    await expect(page.locator(".codes code")).to_have_count(10)
    await page.goto("/sign-out")
    await press(page, "Sign out")
    await page.goto("/sign-in?return_to=/me/factors")
    await press(page, "Sign in with a passkey")
    await expect(page.get_by_role("heading", name="Second factors")).to_be_visible()

    # A browser on another device with the same passkey takes it from the field of the name.
    other = await site.page()
    others_devtools, others_device = await new_device(other)
    held = await devtools.send("WebAuthn.getCredentials", {"authenticatorId": device})
    passkey = {"authenticatorId": others_device, "credential": held["credentials"][0]}
    await others_devtools.send("WebAuthn.addCredential", passkey)
    await other.goto("/sign-in?return_to=/me/factors", wait_until="commit")
    await expect(other.get_by_role("heading", name="Second factors")).to_be_visible()

    grow_stale(dsn)
    await press(other, "Remove Laptop")
    await refused(other, "Please confirm that it is still you.")
    await press(other, "Use a passkey")
    await said(other, "The second factor has been removed.")


HINTS = {
    "short": "",
    "aaaaaaaaaaaaaaaaaaaa": "Repeated characters and words are easy to guess.",
    "secretsecretsecret": "Repeated characters and words are easy to guess.",
    "abcdefgh12345678": "Rows like abcd, 1234 or qwerty are easy to guess.",
    "poiuytrewq-lkjhgf": "Rows like abcd, 1234 or qwerty are easy to guess.",
    "19.04.1987 1.1.2000": "Years and dates are easy to guess.",
    "ada lovelace": "Another word or two would make it much harder to guess.",
    "correct horse battery staple": "This is hard to guess.",
}


async def test_a_hint_helps_to_choose_a_password(site: Site) -> None:
    page = await site.page()
    await page.goto("/sign-up")
    for password, hint in HINTS.items():
        await page.fill("#password", password)
        await expect(page.locator("[data-strength]")).to_have_text(hint)


async def test_an_operator_follows_events_and_takes_them_along(site: Site, dsn: Dsn) -> None:
    await register(site.client, "ada")
    rows(dsn, "UPDATE gatepost.users SET roles = '{admin}' RETURNING 1")
    page = await site.page()
    await sign_in(page, path="/sign-in?return_to=/operator")
    await expect(page.get_by_role("img", name="Sign-ins: 1 succeeded, 0 failed")).to_have_count(3)
    await page.get_by_role("link", name="Events").click()
    await page.fill("#kind", "authn_login_fail")
    await press(page, "Search")
    await expect(page.locator("#events > li")).to_have_count(0)
    await press(page, "Follow")
    other = await site.page()
    await sign_in(other, "not that one, really")
    await expect(page.locator("#events > li")).to_have_count(1)
    async with page.expect_download() as download:
        await page.get_by_role("link", name="Download as JSON Lines").click()
    assert json.loads(await content(await download.value))["kind"] == "authn_login_fail"
    await page.locator("#events").get_by_role("link", name="User").click()
    await page.fill("#roles", "admin staff")
    await press(page, "Change the roles")
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()  # one's own sessions have ended too


async def test_whoever_is_throttled_sees_how_long(config: Config, site: Site) -> None:
    await register(site.client, "ada")
    page = await site.page()
    for _ in range(config.throttle.place_burst + 1):
        await sign_in(page, "not that one, really")
    await expect(page.locator("main > .problem")).to_have_text(
        re.compile(r"Too many attempts\. Please try again in \d+ (second|minute|hour)s?\.")
    )
    await expect(page.locator("main > .problem")).to_be_focused()


async def test_everything_on_the_way_in_works_with_the_keyboard_alone(site: Site) -> None:
    await register(site.client, "ada")
    page = await site.page()
    await page.goto("/sign-in")
    await expect(page.locator("#username")).to_be_focused()
    keyboard = page.keyboard
    await keyboard.type("ada")
    await keyboard.press("Tab")
    await keyboard.type("not that one, really")
    await keyboard.press("Enter")
    await expect(page.locator("main > .problem")).to_be_focused()
    await keyboard.press("Tab")
    await expect(page.locator("#username")).to_be_focused()
    await keyboard.press("Tab")
    await keyboard.type(PASSWORD)
    await keyboard.press("Tab")
    await expect(page.get_by_role("button", name="Sign in", exact=True)).to_be_focused()
    await keyboard.press("Space")
    await expect(page.get_by_role("heading", name="My account")).to_be_visible()
    await keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()


SIGN_IN_TREE = """
- link "Skip to the content":
  - /url: "#main"
- banner:
  - paragraph: Gatepost
- main:
  - heading "Sign in" [level=1]
  - alert: The username or the password is wrong.
  - text: Username or mail address
  - textbox "Username or mail address": ada
  - text: Password
  - textbox "Password"
  - button "Sign in"
  - button "Sign in with a passkey"
  - list:
    - listitem:
      - link "Forgotten your password?":
        - /url: /recover
    - listitem:
      - link "Create an account":
        - /url: /sign-up
"""


async def test_what_a_screen_reader_says_on_the_sign_in_page(site: Site) -> None:
    page = await site.page()
    await sign_in(page, "not that one, really")
    await expect(page).to_have_title("Error: Sign in – Gatepost")
    await expect(page.locator("body")).to_match_aria_snapshot(SIGN_IN_TREE)


@pytest.mark.parametrize("language", LANGUAGES)
async def test_every_page_can_be_used_by_everybody(site: Site, language: str) -> None:
    """axe-core finds nothing, in light and dark; and nothing is cut off at 320 pixels, or at 200 % of 640."""
    page = await site.page(locale=language, viewport={"width": 320, "height": 640}, reduced_motion="reduce")
    colours = {"runOnly": ["color-contrast", "link-in-text-block"]}
    for name in STATES:
        await page.emulate_media(color_scheme="light")
        await page.goto(f"/gallery/{name}")
        found = await Axe().run(page)
        assert found.violations_count == 0, (name, found.generate_report())
        width = await page.evaluate("document.scrollingElement.scrollWidth")
        assert width <= 320, (name, width)
        await page.emulate_media(color_scheme="dark")
        found = AxeResults(await page.evaluate("rules => axe.run(rules)", colours))
        assert len(found.response["passes"]) > 0, name  # it has judged something
        assert found.violations_count == 0, (name, "dark", found.generate_report())


# ------------------------------------------------------------------------------ one domain, many applications

APP = "http://app.localhost"
AUTH = "http://auth.app.localhost"


@pytest.mark.parametrize("name", PROXIES)
async def test_a_person_gets_through_a_proxy_and_back_to_the_very_address(
    config: Config, start_server: StartServer, dsn: Dsn, tmp_path: Path, name: str
) -> None:
    """The files that ship, for `app.localhost`: Chromium takes cookies that are `Secure` from there without TLS."""
    changes = {
        "webserver": WebServerConfig(port=0, public_url=AUTH, trusted_proxies=["127.0.0.1"]),
        "cookies": CookiesConfig(domain="app.localhost"),
        "pages": PagesConfig(return_to=[APP]),
    }
    client = await start_server(config.model_copy(update=changes))
    await register(client, "ada")
    await register(client, "bob")
    rows(dsn, "UPDATE gatepost.users SET roles = '{staff}', epoch = epoch + 1 WHERE username = 'bob' RETURNING 1")
    backend = Backend()
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(free_port())
        async with served(backend.handle) as backend.port:
            assert client.port is not None
            command = PROXIES[name](tmp_path, port, client.port, backend.port, app="app.localhost")
            stack.enter_context(running(command, tmp_path, port))
            rules = f"MAP app.localhost:80 127.0.0.1:{port}, MAP auth.app.localhost:80 127.0.0.1:{port}"
            async with async_playwright() as playwright:
                expect.set_options(60_000)
                args = ["--no-sandbox", f"--host-resolver-rules={rules}"]
                browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=args)
                page = await browser.new_page()
                await go_through(page, backend)
                await browser.close()


async def test_a_foreign_site_has_no_cookie_of_ours(config: Config, start_server: StartServer) -> None:
    """What docs/frontends.md says of another site, even one whose scripts may read our answers."""
    shop = "http://shop.example"
    webserver = WebServerConfig(port=0, public_url=ORIGIN, cors_origins=[shop])
    client = await start_server(config.model_copy(update={"webserver": webserver}))
    await register(client, "ada")
    expect.set_options(60_000)
    async with async_playwright() as playwright:
        rule = f"--host-resolver-rules=MAP localhost:4321 127.0.0.1:{client.port}"
        # A page that a test has made counts as one from elsewhere, which may not ask this machine.
        args = ["--no-sandbox", rule, "--disable-features=LocalNetworkAccessChecks"]
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=args)
        page = await (await browser.new_context(base_url=ORIGIN)).new_page()
        await sign_in(page)
        await expect(page.get_by_role("heading", name="My account")).to_be_visible()
        asked = "path => fetch(path, {credentials: 'include'}).then(answer => answer.status)"
        assert await page.evaluate(asked, f"{ORIGIN}/user") == 200
        foreign = await page.context.new_page()
        await foreign.route(
            f"{shop}/", lambda route: route.fulfill(body="<title>shop</title>", content_type="text/html")
        )
        await foreign.goto(f"{shop}/")
        assert await foreign.evaluate(asked, f"{ORIGIN}/user") == 401
        form = "{method: 'POST', credentials: 'include', mode: 'no-cors', body: new URLSearchParams()}"
        await foreign.evaluate(f"path => fetch(path, {form})", f"{ORIGIN}/sign-out")
        assert await page.evaluate(asked, f"{ORIGIN}/user") == 200
        await browser.close()


async def go_through(page: Page, backend: Backend) -> None:
    await page.goto(f"{APP}/staff/list?a=b&c=%C3%A4&d=1+2")
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert page.url.startswith(f"{AUTH}/sign-in?")
    assert backend.seen == []
    await page.fill("#username", "ada")
    await page.fill("#password", PASSWORD)
    await press(page, "Sign in")
    await expect(page.get_by_role("heading", name="This is not for you")).to_be_visible()
    await expect(page.get_by_text("What you asked for is for those with the role “staff”.")).to_be_visible()
    assert backend.seen == []
    await page.get_by_role("link", name="Sign in as somebody else").click()
    await page.fill("#username", "bob")
    await page.fill("#password", PASSWORD)
    await press(page, "Sign in")
    await expect(page.locator("body")).to_have_text("from the backend")
    assert page.url == f"{APP}/staff/list?a=b&c=%C3%A4&d=1+2"
    assert backend.seen[0].target == "/staff/list?a=b&c=%C3%A4&d=1+2"
    assert backend.seen[0].of_gatepost()["remote-user"] == "bob"
    (cookie,) = await page.context.cookies()
    assert (cookie["name"], cookie["domain"], cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == (
        "__Secure-session",
        ".app.localhost",
        True,
        True,
        "Lax",
    )
    # A script of the application is not sent to a page that it could not read.
    assert await page.evaluate("fetch('/staff/x', {credentials: 'omit'}).then(answer => answer.status)") == 401
    await page.goto(f"{AUTH}/sign-out")
    await press(page, "Sign out")
    await page.goto(f"{APP}/staff/list")
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    for path in ("/admin/users", "/operator", "/metrics", "/health/live", "/authz/forward"):
        assert await page.evaluate("path => fetch(path).then(answer => answer.status)", path) == 404
