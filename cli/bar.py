"""A bar of characters, and the time left, for lines that tell how far something is.

The bar is rich's; whoever shows the line decides where. Knows nothing of what is measured.
"""

__all__ = ["bar_text", "left_text"]


def bar_text(done: float, total: float | None, columns: int) -> str:
    """Return a bar of so many columns."""
    # Imported here: most work is done before a bar is due.
    from rich.console import Console
    from rich.progress_bar import ProgressBar

    # the stream for its encoding alone
    console = Console(stderr=True, width=columns, color_system=None)
    with console.capture() as captured:
        console.print(ProgressBar(total, done, columns), end="")
    return captured.get().ljust(columns)


def left_text(seconds: float) -> str:
    """Return "4:05 left", with hours where there are any."""
    minutes, whole_s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole_s:02} left" if hours else f"{minutes}:{whole_s:02} left"
