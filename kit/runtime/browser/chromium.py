"""A page of headless Chromium, driven from a thread of its own. The only room that imports playwright."""

from __future__ import annotations

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kit.errors import Unavailable
from kit.system import packages

BROWSER = "KIT_BROWSER"
"""Environment variable: path of the Chromium, Chrome or Edge to use."""

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge", "chrome")
_MILLISECONDS = 60_000
_LONGEST_MILLISECONDS = 600_000
"""Of one call: a page that waits for what never comes would keep its caller for ever."""
_LATE = "kit has waited long enough"


class Tab:
    """A page that is open, and what its scripts answer; it sets `data-ready` on its root once it is ready.

    Raises:
        PackageMissing: Playwright is not installed.
        Unavailable: There is no Chromium, or it does not start.
    """

    def __init__(self, address: str) -> None:
        packages.needed("playwright", distribution="playwright", purpose="a browser", extra="web")
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kit-browser")
        self._stops: list[Any] = []
        try:
            self._thread.submit(self._open, address).result()
        except BaseException:
            self.close()
            raise

    def call(self, script: str, argument: Any = None) -> Any:
        """Return what a function of the page answers, such as `([id]) => window.kit.run(id)`.

        Raises:
            Unavailable: The browser has gone, or has not answered within ten minutes.
            RuntimeError: The function raised; the message is its own.
        """
        return self._thread.submit(self._evaluate, script, argument).result()

    def close(self) -> None:
        """End the browser."""
        self._thread.submit(self._close).result()
        self._thread.shutdown()

    def _open(self, address: str) -> None:
        from playwright.sync_api import Error, sync_playwright

        driver = sync_playwright().start()
        self._stops.append(driver.stop)
        try:
            browser = driver.chromium.launch(
                executable_path=_executable(driver.chromium.executable_path), args=_arguments()
            )
        except Error as error:
            told = error.message.splitlines()[0]
            raise Unavailable(
                f"Chromium does not start: {told}", hint=f"say which one to use: {BROWSER}=PATH"
            ) from error
        self._stops.append(browser.close)
        self._page = browser.new_page()
        try:
            self._page.goto(address)
            self._page.wait_for_selector("[data-ready]", state="attached", timeout=_MILLISECONDS)
        except Error as error:
            raise Unavailable(f"the page does not come up in Chromium: {error.message.splitlines()[0]}") from error

    def _evaluate(self, script: str, argument: Any) -> Any:
        from playwright.sync_api import Error

        race = f"""(all) => Promise.race([
            ({script})(all[0]),
            new Promise((_, late) => setTimeout(() => late(new Error("{_LATE}")), all[1])),
        ])"""
        try:
            return self._page.evaluate(race, [argument, _LONGEST_MILLISECONDS])
        except Error as error:
            if self._page.is_closed():
                raise Unavailable("the browser has gone") from error
            if _LATE in error.message:
                minutes = _LONGEST_MILLISECONDS // 60_000
                raise Unavailable(f"the page in Chromium has not answered within {minutes} minutes") from error
            raise RuntimeError(error.message.removeprefix("Page.evaluate: ")) from error

    def _close(self) -> None:
        while self._stops:
            self._stops.pop()()


def _executable(own: str) -> str:
    named = os.environ.get(BROWSER)
    found = named or (own if os.path.exists(own) else None) or next(filter(None, map(shutil.which, _NAMES)), None)  # noqa: PTH110 - it is a string
    if found is None:
        raise Unavailable(
            "there is no Chromium on this machine",
            hint=f"playwright install chromium; or install Chromium or Chrome; or {BROWSER}=PATH",
        )
    return found


def _arguments() -> list[str]:
    # Chromium's sandbox does not work for root on Linux
    is_root = sys.platform == "linux" and os.geteuid() == 0
    return ["--no-sandbox"] if is_root else []
