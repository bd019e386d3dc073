"""Pictures of the pages for `docs/pages/`: `make screenshots`. The states are those of the gallery."""

import asyncio
import shutil
import tempfile
from pathlib import Path

from playwright.async_api import async_playwright

from tests.gatepost_process import running

FOLDER = Path(__file__).parent.parent / "docs" / "pages"
SHOWN = """
    sign-in second-factor sign-up recover new-password account emails factors new-app recovery-codes sessions activity
    data confirm forbidden overview users user events
""".split()  # noqa: SIM905 (nineteen words)
NARROW = {"sign-in", "second-factor", "sign-up", "recover", "new-password", "forbidden"}


async def take(url: str) -> None:
    """One picture of each."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name in SHOWN:
            width = 480 if name in NARROW else 960
            page = await browser.new_page(viewport={"width": width, "height": 600}, locale="en", color_scheme="light")
            await page.goto(f"{url}/gallery/{name}")
            await page.screenshot(path=FOLDER / f"{name}.png", full_page=name in NARROW or name == "overview")
            await page.close()
        await browser.close()


def main() -> None:
    """Take them of a Gatepost that is started for it."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        variables = {"GATEPOST_PAGES__GALLERY": "true", "GATEPOST_MAIL__DIRECTORY": f"{folder}/mail"}
        with running(Path(folder), **variables, GATEPOST_ACCOUNTS__REGISTRATION="open") as process:
            asyncio.run(take(process.url))


if __name__ == "__main__":
    main()
