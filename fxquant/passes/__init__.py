"""Graph passes: each a frozen dataclass with a name and `apply`; `Pipeline` runs them in order."""
