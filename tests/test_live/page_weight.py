"""How much the page's first visit transfers, and when it takes input: `python -m tests.test_live.page_weight`."""

import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from tests.test_live.browser import browsing
from tests.test_live.page import ENGINE, Page
from tests.test_live.service import running

MAX_BYTES = 500_000
VISITS = 5
BYTES = "return performance.getEntries().reduce((sum, {encodedBodySize: size}) => sum + (size ?? 0), 0)"
READY = "return performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"  # all modules have run
PAINTED = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"


def weight(page: Page) -> int:
    """Bytes of all files and answers, also of those that the browser had already."""
    return int(page.run(BYTES))


def main() -> None:
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not chromedriver:
        raise SystemExit("needs Debian's packages chromium and chromium-driver")
    painted, ready = [], []
    with tempfile.TemporaryDirectory() as work, running(Path(work, "service"), **ENGINE) as service:
        for visit in range(VISITS):
            with browsing(chromium, chromedriver, Path(work, f"profile-{visit}")) as browser:  # nothing is cached
                page = Page(browser, service)
                page.open()
                painted.append(page.run(PAINTED))
                ready.append(page.run(READY))
                num_bytes = weight(page)
    sys.stdout.write(f"{num_bytes:,} bytes\n")
    for name, times in (("first paint", painted), ("interactive", ready)):
        sys.stdout.write(f"{name}: {statistics.median(times):.0f} ms ({min(times):.0f} to {max(times):.0f})\n")


if __name__ == "__main__":
    main()
