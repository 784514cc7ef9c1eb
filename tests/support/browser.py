"""Debian's Chromium, driven by Playwright; a page that logs an error or asks a foreign host fails the test."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Page, async_playwright

CHROMIUM = shutil.which("chromium")
_QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")


@asynccontextmanager
async def browser_page() -> AsyncIterator[tuple[Page, list[str]]]:
    """A page, and what went wrong on it. Skips where there is no Chromium, unless CI promised one."""
    if CHROMIUM is None:
        assert "TANDEM_CI_RUN" not in os.environ, "CI installs chromium"
        pytest.skip("needs Debian's chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*_QUIET, "--disable-component-update", "--disable-sync"]
        )
        try:
            page = await browser.new_page(viewport={"width": 1280, "height": 800})
            wrong: list[str] = []
            page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: wrong.append(str(error)))
            yield page, wrong
        finally:
            await browser.close()
