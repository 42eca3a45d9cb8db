"""One peer's stay, and all of them: admission, sizes, delays, figures."""
