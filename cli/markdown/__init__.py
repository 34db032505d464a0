"""Markdown, shown in a terminal as it comes."""
