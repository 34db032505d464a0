"""The terminal app: commands, prompts and output; no arrays. Nothing imports this package."""
