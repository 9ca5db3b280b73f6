"""The server of the page: Streamlit, asked by this machine's own names only. `kit demo` starts it as a module.

A page of elsewhere can have its own name point at this machine, and its scripts then ask this server as if it were theirs
(DNS rebinding). Their requests still carry that name as their Host, so every other Host than the allowed ones is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import secrets
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import streamlit.config
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit.starlette import App

from apps.demo import places, sessions
from apps.demo.settings import THIS_MACHINE, Settings
from apps.demo.spare import spare
from apps.demo.visitor import MAX_UPLOAD_MB, first_runtimes
from kit.errors import KitError

PAGE = Path(__file__).with_name("page.py")
_OF_PAGE = ("apps.demo.try_it", "apps.demo.accuracy_tab", "apps.demo.latency_tab", "apps.demo.artifact_tab")
KEPT_SECONDS = 60
"""How long a visitor who lost the connection is waited for."""

_SWEEP_SECONDS = 10


def options(settings: Settings) -> dict[str, Any]:
    """Return Streamlit's options by name: those of this page, and of the others all that opens a server wider."""
    return {
        "server.address": "localhost",
        "server.port": settings.port,
        "server.headless": True,  # the browser is opened here
        "server.maxUploadSize": MAX_UPLOAD_MB,
        "server.fileWatcherType": "none",
        "server.disconnectedSessionTTL": KEPT_SECONDS,
        "server.allowedHosts": [*(name.strip("[]") for name in THIS_MACHINE), *settings.allowed_hosts],
        "server.enableCORS": True,
        "server.corsAllowedOrigins": [],
        "server.enableXsrfProtection": True,
        "server.enableStaticServing": False,
        "server.enableAgentApi": False,
        "server.scriptHealthCheckEnabled": False,
        "server.trustedUserHeaders": {},
        "server.baseUrlPath": "",
        "server.customComponentBaseUrlPath": "",
        "server.sslCertFile": "",
        "server.sslKeyFile": "",
        "browser.serverAddress": "localhost",
        "browser.serverPort": settings.port,
        "browser.gatherUsageStats": False,
        "client.allowedOrigins": [],
        "client.showErrorDetails": "type",
        "client.showErrorLinks": "false",
        "client.toolbarMode": "viewer",
        "global.developmentMode": False,
        "logger.hideWelcomeMessage": False,
        "runner.fastReruns": False,  # quick clicks become one run after the present one, not a thread each
        "runner.magicEnabled": False,
        "secrets.files": [],
        "theme.light.primaryColor": "#1f5fc4",
        "theme.dark.primaryColor": "#6ea0f0",
    }


def serve(settings: Settings) -> None:
    """Serve the page until the process is told to end."""
    # The files it would read lie in the current folder and may be anyone's; some options, such as fonts of elsewhere, have no
    # value that undoes them.
    setattr(streamlit.config, "get_config_files", lambda _name: [])  # noqa: B010 - a function of the library, for its type

    @contextlib.asynccontextmanager
    async def running(_app: App) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(_sweep())
        threading.Thread(target=_prepare, args=(settings.bundle,), daemon=True).start()
        if settings.open_browser:
            await asyncio.to_thread(webbrowser.open, f"http://localhost:{settings.port}")
        yield
        sweeping.cancel()

    hosts = [*THIS_MACHINE, *settings.allowed_hosts]
    guard = Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    App(PAGE, middleware=[guard, Middleware(_Naming)], lifespan=running).run(config=options(settings))


def _prepare(bundle: str) -> None:
    """Do what the first visitor would have to wait for: open the bundle, import what draws the page."""
    with contextlib.suppress(KitError):  # the page says what is wrong with it
        spare.prepare(str(places.find(bundle)), first_runtimes())
    for module in _OF_PAGE:
        importlib.import_module(module)


class _Naming:
    """Gives each browser a name, once, with the page itself; scripts cannot read it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/" or sessions.COOKIE in Request(scope).cookies:
            await self._app(scope, receive, send)
            return

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                cookie = f"{sessions.COOKIE}={secrets.token_urlsafe(24)}; Path=/; HttpOnly; SameSite=Lax"
                MutableHeaders(scope=message).append("set-cookie", cookie)
            await send(message)

        await self._app(scope, receive, named)


async def _sweep() -> None:
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        for visitor in sessions.gone(KEPT_SECONDS // _SWEEP_SECONDS):
            await asyncio.to_thread(visitor.leave)


if __name__ == "__main__":
    serve(Settings.parse(sys.argv[1:]))
