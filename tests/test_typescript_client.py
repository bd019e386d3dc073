"""The client for TypeScript, by node's own test runner against a real Gatepost, and as others install it.

`make npm` installs what it is built with. The tests skip without that, unless REQUIRE_API_TOOLS=1.
"""

import asyncio
import os
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from gatepost.config import Config, MailConfig
from gatepost.routes import api_document
from tests.conftest import UNLIMITED, StartServer

SOURCE = Path(__file__).parent.parent / "clients" / "typescript"
MODULES = SOURCE / "node_modules"

pytestmark = pytest.mark.skipif(
    not (MODULES / ".bin" / "tsc").exists() and os.environ.get("REQUIRE_API_TOOLS") != "1",
    reason="`make npm` was not run here",
)


def ran(*command: Path | str, folder: Path, given: bytes = b"", **environment: str) -> str:
    """What it prints, on both streams. Fails if it fails."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        input=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
        check=False,
    )
    said = done.stdout.decode()
    assert done.returncode == 0, said
    return said


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the client's source, with the types of this Gatepost's API."""
    copy = tmp_path / "client"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("node_modules", "dist", "build", "openapi.ts"))
    (copy / "node_modules").symlink_to(MODULES)
    ran("node", "scripts/generate.mjs", folder=copy, given=api_document())
    return copy


async def test_everything_works_against_a_real_gatepost(
    source: Path, config: Config, start_server: StartServer, tmp_path: Path
) -> None:
    mail = MailConfig(directory=tmp_path / "mail")
    client = await start_server(config.model_copy(update={"throttle": UNLIMITED, "mail": mail}))
    url, folder = str(client.make_url("")), str(mail.directory)
    test = partial(ran, "npm", "test", folder=source, GATEPOST_URL=url, GATEPOST_MAIL=folder)
    await asyncio.to_thread(test)


EXPORTED = "Gatepost,GatepostError,NotKnown,SecondFactorRequired"


def test_the_packed_client_is_found_by_node_and_by_each_way_of_resolving_types(source: Path, tmp_path: Path) -> None:
    ran(MODULES / ".bin" / "tsc", folder=source)
    (packed,) = re.findall(r"\S+\.tgz", ran("npm", "--silent", "pack", folder=source))
    project = tmp_path / "project"
    project.mkdir()
    (project / "package.json").write_text('{"type": "module"}')
    ran("npm", "install", "--silent", "--offline", "--no-package-lock", str(source / packed), folder=project)
    installed = project / "node_modules"
    assert sorted(path.name for path in installed.iterdir() if path.name[0] != ".") == ["@gatepost"]
    examples = re.findall(r"```ts\n(.*?)```", (SOURCE / "README.md").read_text("utf-8"), re.DOTALL)
    assert examples
    (project / "page.ts").write_text("\n".join(examples) + "\nvoid signIn;\n")
    for module, resolution in [("NodeNext", "NodeNext"), ("ESNext", "Bundler")]:
        options = ["--noEmit", "--strict", "--module", module, "--moduleResolution", resolution, "--target", "ES2022"]
        ran(MODULES / ".bin" / "tsc", *options, "--lib", "ES2022,DOM", "page.ts", folder=project)
    use = "import * as client from '@gatepost/client'; console.log(Object.keys(client).join())"
    assert ran("node", "--input-type=module", "-e", use, folder=project).strip() == EXPORTED


def test_a_code_that_does_not_exist_does_not_compile(source: Path) -> None:
    (source / "src" / "wrong.ts").write_text(
        "import { GatepostError } from './errors.js';\n"
        "export const f = (error: GatepostError): boolean => error.is('no_such_code');\n"
    )
    with pytest.raises(AssertionError, match=r"no_such_code.*not assignable"):
        ran(MODULES / ".bin" / "tsc", folder=source)
