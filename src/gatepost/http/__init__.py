"""HTTP, as every feature has it: a request taken apart, an answer put together, connections and their limits."""
