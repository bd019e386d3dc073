"""How fast, how small: `make bench` starts the real service and prints ratios measured in one run."""
