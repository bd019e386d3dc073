"""What a session runs on, in words: Firefox on Linux."""

import asyncio
from collections.abc import Iterable
from functools import lru_cache

# One that is not known yet takes up to 5 ms to find (measured).
MAX_FOUND = 50


async def devices(user_agents: Iterable[str | None]) -> dict[str, str]:
    """Browser and system of each user agent that can be read, off the event loop; at most ``MAX_FOUND``."""
    wanted = list(dict.fromkeys(filter(None, user_agents)))[:MAX_FOUND]
    return await asyncio.to_thread(lambda: {agent: found for agent in wanted if (found := _device(agent))})


@lru_cache(1024)
def _device(user_agent: str) -> str:
    from ua_parser import parse_os, parse_user_agent  # noqa: PLC0415 (0.3 s, when the first page needs it)

    browser, system = parse_user_agent(user_agent), parse_os(user_agent)
    return " · ".join(found.family for found in (browser, system) if found)
