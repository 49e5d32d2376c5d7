"""How fast the report is in headless Chromium, from small to large; made data, no network.

    python -m tests.benchmarks.report

Prints a row of `tasks/outputs/README.md` for each size, with the longest of what was measured of each kind.
"""

import tempfile
from pathlib import Path
from typing import Any

from tests.helpers.browser import chromium
from tests.helpers.made import made_page

SIZES = ((24, 8, 7, 3), (200, 64, 8, 4))
"""Questions, rollouts, teachers, losses."""
FRAME = "await new Promise(r => requestAnimationFrame(() => setTimeout(r)))"
VIEW = f"""async (address) => {{
    const before = Number(document.body.dataset.ready), began = performance.now()
    location.hash = address
    while (Number(document.body.dataset.ready) === before) await new Promise(r => setTimeout(r, 1))
    {FRAME}
    return performance.now() - began
}}"""
MANY = """async ([selector, action]) => {
    const element = document.querySelector(selector), taken = []
    const act = {
        scroll: (i) => { element.scrollTop += 3000 },
        slide: (i) => { element.value = String(i / 20); element.dispatchEvent(new Event('input')) },
        choose: (i) => { element.selectedIndex = i % 12; element.dispatchEvent(new Event('change')) },
        click: (i) => element.click(),
    }[action]
    for (let i = 0; i < 15; i++) {
        const began = performance.now()
        act(i)
        FRAME
        taken.push(performance.now() - began)
    }
    return Math.max(...taken)
}""".replace("FRAME", FRAME)


def measure(path: Path) -> dict[str, float]:
    """The most milliseconds of each kind of step."""
    with chromium() as browser:
        page = browser.new_context(offline=True, viewport={"width": 1500, "height": 950}).new_page()
        page.goto(f"file://{path}")
        page.wait_for_selector("body[data-ready]")
        first = float(page.evaluate("performance.now()"))
        page.wait_for_timeout(1000)

        def most(addresses: list[str]) -> float:
            return max(float(page.evaluate(VIEW, address)) for address in addresses)

        def many(selector: str, action: str) -> float:
            return float(page.evaluate(MANY, [selector, action]))

        views = most(["where", "tokens", "decision", "where", "tokens"])
        rollouts = most([f"question-{q:03}/{r}/" for q in (3, 7, 11, 15, 19) for r in (0, 1)])
        steps: list[tuple[str, str]] = [(".list", "scroll"), ("#threshold", "slide"), ("#signal-a", "choose")]
        small = max(many(*step) for step in steps)
        most(["decision"])
        small = max(small, many("[aria-label='Alignment by signal'] thead button", "click"))
        return {"first": first, "views": views, "rollouts": rollouts, "steps": small}


def main() -> None:
    """Make a page of each size, and print a row for it."""
    for questions, rollouts, teachers, losses in SIZES:
        size: dict[str, Any] = {"rollouts": rollouts, "tokens": 400, "nodes": 64, "branches": 5}
        made = made_page(questions, teachers, losses, **size)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "report.html"
            path.write_text(made.html)
            found = measure(path)
        print(
            f"| {questions} x {rollouts} x {teachers} x {losses} | {len(made.html) / 1e6:.1f} MB | "
            f"{found['first'] / 1000:.2f} s | {found['views']:.0f} ms | {found['rollouts']:.0f} ms | "
            f"{found['steps']:.0f} ms |",
            flush=True,
        )


if __name__ == "__main__":
    main()
