"""What keeps accounts safe whatever the feature: hashes, throttles, names, keys. Nothing here knows HTTP."""
