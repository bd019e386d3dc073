"""What a session runs on, in words: Firefox on Linux."""

import asyncio
from collections.abc import Iterable

# One that is not known yet takes up to 5 ms to find (measured).
MAX_FOUND = 50
# Of what was found, the latest are remembered: a user agent has at most 256 characters.
REMEMBERED = 1024
_remembered: dict[str, str] = {}


async def devices(user_agents: Iterable[str | None]) -> dict[str, str]:
    """Browser and system of each user agent that can be read, found off the event loop; at most ``MAX_FOUND``."""
    wanted = list(dict.fromkeys(filter(None, user_agents)))[:MAX_FOUND]
    named = {agent: _remembered[agent] for agent in wanted if agent in _remembered}
    if len(named) < len(wanted):
        unknown = [agent for agent in wanted if agent not in named]
        found = await asyncio.to_thread(lambda: {agent: _device(agent) for agent in unknown})
        named |= found
        _remembered.update(found)
        while len(_remembered) > REMEMBERED:
            del _remembered[next(iter(_remembered))]
    return {agent: name for agent, name in named.items() if name}


def _device(user_agent: str) -> str:
    from ua_parser import parse_os, parse_user_agent  # noqa: PLC0415 (0.3 s, when the first page needs it)

    browser, system = parse_user_agent(user_agent), parse_os(user_agent)
    return " · ".join(found.family for found in (browser, system) if found)
