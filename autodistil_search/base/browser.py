"""Pages in the user's browser."""

from __future__ import annotations

import os
import webbrowser
from pathlib import Path


def open_in_browser(page: Path) -> bool:
    """Open a page in a browser with windows, and return True if there is one.

    A browser in text mode would take the terminal; it is used only if `BROWSER` names it.
    """
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return False
    in_text_mode = isinstance(browser, webbrowser.GenericBrowser) and not isinstance(
        browser, webbrowser.BackgroundBrowser
    )
    if in_text_mode and "BROWSER" not in os.environ:
        return False
    return browser.open(page.resolve().as_uri())
