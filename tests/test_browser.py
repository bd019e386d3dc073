"""Our pages in a real browser: Debian's Chromium, driven by Playwright.

The tests skip without Chromium, unless REQUIRE_BROWSER=1.
"""

import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import BrowserContext, ConsoleMessage, Page, Route, async_playwright, expect

from gatepost.config import Config, WebServerConfig
from gatepost.postgres.database import Dsn
from gatepost.services.token import new_token
from gatepost.sessions.session import hash_token
from tests.conftest import PASSWORD, Client, StartServer, register, rows
from tests.test_examples import free_port, running, status
from tests.test_openapi import OPERATIONS, codes
from tests.test_typescript_client import SOURCE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and os.environ.get("REQUIRE_BROWSER") != "1", reason="there is no Chromium here"
)


@pytest.fixture
async def browser() -> AsyncIterator[BrowserContext]:
    """A browser in which nothing goes wrong unseen: no script fails, no rule of a page is broken."""
    async with async_playwright() as playwright:
        # A page that a test has changed on its way counts as one from elsewhere, which may not ask this machine.
        args = ["--no-sandbox", "--disable-features=LocalNetworkAccessChecks"]
        launched = await playwright.chromium.launch(executable_path=CHROMIUM, args=args)
        context = await launched.new_context()
        context.set_default_timeout(60_000)
        expect.set_options(60_000)
        wrong: list[str] = []
        context.on("weberror", lambda error: wrong.append(str(error.error)))

        def note(said: ConsoleMessage) -> None:
            if said.text.startswith("Refused to"):
                wrong.append(said.text)

        context.on("console", note)
        yield context
        await launched.close()
        assert wrong == []


async def test_the_page_of_the_api_shows_every_operation(client: Client, browser: BrowserContext) -> None:
    page = await browser.new_page()
    await page.goto(str(client.make_url("/docs")))
    await expect(page.locator("main details")).to_have_count(len(OPERATIONS))
    shown = await page.locator("main").evaluate("main => main.innerHTML")
    assert set(re.findall('<details id="([a-z_]+)"', shown)) == {one["operationId"] for one in OPERATIONS.values()}
    assert "undefined" not in shown
    for code in set().union(*map(codes, OPERATIONS.values())):
        assert f"<code>{code}</code>" in shown
    log_in, users = (page.locator(f"#{name}") for name in ("sessions_log_in", "admin_list_users"))
    await expect(log_in.locator(".who")).to_have_text("")
    await expect(users.locator(".who")).to_have_text("signed in, admin")
    assert "SESSION_ID" not in (await log_in.locator("pre").first.text_content() or "")
    assert "SESSION_ID" in (await users.locator("pre").first.text_content() or "")


@pytest.mark.skipif(
    not (SOURCE / "dist").exists() and os.environ.get("REQUIRE_API_TOOLS") != "1",
    reason="`make npm` was not run here",
)
async def test_a_tab_of_the_example_says_at_once_that_the_other_has_signed_out(
    config: Config, start_server: StartServer, dsn: Dsn, browser: BrowserContext, tmp_path: Path
) -> None:
    port = free_port()
    webserver = WebServerConfig(port=0, cors_origins=[f"http://127.0.0.1:{port}"])
    client = await start_server(config.model_copy(update={"webserver": webserver}))
    await register(client, "ada")
    service = new_token()
    rows(dsn, "INSERT INTO gatepost.services (name, token_hash) VALUES ('examples', %s)", hash_token(service))
    url = str(client.make_url(""))
    variables = {"GATEPOST_URL": url, "GATEPOST_SERVICE_TOKEN": service}

    async def of_this_test(route: Route) -> None:
        answer = await route.fetch()
        page = (await answer.text()).replace("http://127.0.0.1:8000", url)
        await route.fulfill(response=answer, body=page.replace("http://127.0.0.1:8001", f"http://127.0.0.1:{port}"))

    async def tab() -> Page:
        page = await browser.new_page()
        await page.route(f"http://127.0.0.1:{port}/", of_this_test)
        await page.goto(f"http://127.0.0.1:{port}/")
        return page

    async with running("aiohttp", tmp_path, variables, port) as backend:
        assert await status(client.session, backend, "nobody's") == (401, None)
        one = await tab()
        await one.fill("[name=username]", "ada")
        await one.fill("[name=password]", "wrong")
        await one.get_by_role("button", name="Sign in", exact=True).click()
        await expect(one.get_by_role("status")).to_have_text("The username or the password is wrong.")
        await one.fill("[name=password]", PASSWORD)
        await one.get_by_role("button", name="Sign in", exact=True).click()
        await expect(one.get_by_role("status")).to_have_text("Signed in as ada.")
        two = await tab()
        await expect(two.get_by_role("status")).to_have_text("Signed in as ada.")
        await two.get_by_role("button", name="Ask the three backends").click()
        await expect(two.locator("#answers")).to_contain_text('"notes_of":"ada"')
        await two.get_by_role("button", name="Sign out").click()
        for page in (one, two):
            await expect(page.get_by_role("status")).to_have_text("You were signed out.")


# With the client in a page of Gatepost's own origin, as a frontend has it.
PASSKEYS = """async () => {
    const { Gatepost, SecondFactorRequired } = await import("/client/index.js");
    const gatepost = new Gatepost();
    await gatepost.logIn("ada", "PASSWORD");
    const said = [];
    const { passkey, recoveryCodes } = await gatepost.addPasskey("Laptop");
    said.push(passkey.name, recoveryCodes.length);
    await gatepost.logOut();
    said.push((await gatepost.logInWithPasskey()).username, (await gatepost.whoAmI()).session.amr.join(" "));
    await gatepost.confirm({ passkey: "ask" });
    await gatepost.logOut();
    try {
        await gatepost.logIn("ada", "PASSWORD");
    } catch (error) {
        said.push(error instanceof SecondFactorRequired, error.methods.join(" "));
        await gatepost.finishLogIn(error.ticket, { passkey: "ask" });
    }
    said.push((await gatepost.whoAmI()).session.amr.join(" "));
    try {
        await gatepost.addPasskey("the same device again");
    } catch (error) {
        said.push(error.name);
    }
    await gatepost.removePasskey(passkey.id);
    said.push((await gatepost.passkeys()).length);
    return said;
}"""


@pytest.mark.skipif(
    not (SOURCE / "dist").exists() and os.environ.get("REQUIRE_API_TOOLS") != "1",
    reason="`make npm` was not run here",
)
async def test_a_browser_makes_and_uses_passkeys(
    config: Config, start_server: StartServer, browser: BrowserContext
) -> None:
    origin = f"http://localhost:{free_port()}"  # where the browser believes that it is
    client = await start_server(config.model_copy(update={"webserver": WebServerConfig(port=0, public_url=origin)}))
    await register(client, "ada")

    async def answer(route: Route) -> None:
        path = route.request.url.removeprefix(origin)
        if path == "/":
            await route.fulfill(body="<!doctype html><title>page</title>", content_type="text/html")
        elif path.startswith("/client/"):
            script = (SOURCE / "dist" / path.removeprefix("/client/")).read_text("utf-8")
            await route.fulfill(body=script, content_type="text/javascript")
        else:
            await route.fulfill(response=await route.fetch(url=str(client.make_url(path))))

    page = await browser.new_page()
    await page.route(f"{origin}/**", answer)
    await page.goto(origin + "/")
    devtools = await browser.new_cdp_session(page)
    await devtools.send("WebAuthn.enable")
    device = {
        "protocol": "ctap2",
        "transport": "internal",
        "hasResidentKey": True,
        "hasUserVerification": True,
        "isUserVerified": True,
        "automaticPresenceSimulation": True,
    }
    await devtools.send("WebAuthn.addVirtualAuthenticator", {"options": device})
    said = await page.evaluate(PASSKEYS.replace("PASSWORD", PASSWORD))
    assert said == [
        "Laptop",
        10,
        "ada",
        "hwk mfa user",
        True,
        "passkey recovery_code",
        "hwk mfa pwd user",
        "InvalidStateError",
        0,
    ]
