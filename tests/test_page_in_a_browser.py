"""The page in a real browser, over a scripted model. Needs playwright and a Chromium."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from anabranch.serve.keys import Key, Keyring, new_key
from tests.serving import Running, serving

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

MARKUP = "<img src=x onerror=document.title='taken'><b>4</b>"
LINES = {
    f"First {MARKUP}.\nThe answer is 4.": 0.6,
    "2 + 2 is \u202e5.\nThe answer is 5.": 0.4,
}
LONG = "Let us see. " * 80 + "\nThe answer is 4."


def slow(prompt: str, reply: str) -> Mapping[str, float]:
    """Never comes to an end where that is asked for, else `LINES`."""
    if "endless" in prompt:
        return {"a": 0.5, "b": 0.5}
    if "long" in prompt:
        return {text[len(reply) :]: 1.0} if (text := LONG).startswith(reply) else {"": 1.0}
    going = {text[len(reply) :]: p for text, p in LINES.items() if text.startswith(reply)}
    return going or {"": 1.0}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(slow) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    with playwright.sync_playwright() as driver:
        try:
            # No sandbox: it has none as root in a container, and sees our own page only.
            opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no browser: {error.message.splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture
def page(server: Running, browser: Any) -> Iterator[Any]:
    """The page, ready. It may complain of nothing, and ask nobody else for anything."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, reduced_motion="reduce")
    opened = context.new_page()
    opened.set_default_timeout(10_000)
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("console", lambda told: faults.append(told.text) if _wrong(told) else None)
    opened.on(
        "request",
        lambda asked: None if asked.url.startswith(server.url) else faults.append(asked.url),
    )
    opened.goto(server.url)
    expect(opened.locator("#first select").first).to_have_value("vote")
    yield opened
    context.close()
    assert not faults


def _wrong(told: Any) -> bool:
    # Refusals by the server are the page's own to tell.
    return told.type == "error" and "status of 400" not in told.text


def ask(page: Any, strategy: str, problem: str = "What is 2 + 2?", **values: object) -> None:
    """Fill the form and press Enter."""
    page.select_option("#first select >> nth=0", strategy)
    for name, value in values.items():
        page.get_by_label(name.replace("_", " "), exact=True).first.fill(str(value))
    page.fill("#seed", "1")
    page.fill("#problem", problem)
    page.press("#problem", "Enter")


def labels(page: Any) -> list[str]:
    """What is said of each branch in the tree."""
    told = page.locator("[role=treeitem]").evaluate_all("all => all.map((each) => each.ariaLabel)")
    return sorted(told)


def done(page: Any) -> None:
    expect(page.locator(".state").first).to_contain_text("Done")


def test_ask_and_see_the_tree(server: Running, page: Any) -> None:
    ask(page, "vote", n=6)
    done(page)
    expect(page.locator(".said")).to_have_text("4")
    expect(page.locator("[role=treeitem]")).to_have_count(7)
    kept = page.locator(".branch.kept:not(.root)")
    assert kept.count() >= 2
    assert kept.first.locator(".label").text_content() == "4"
    assert page.locator(".line").first.get_attribute("stroke-width")
    table = page.locator(".candidates tbody tr")
    expect(table).to_have_count(2)
    assert "Sampled" in page.locator(".usage").inner_text()
    assert page.locator(".gauges").inner_text().count("\n") > 5


def test_what_the_model_writes_stays_text(page: Any) -> None:
    ask(page, "beam", width=2, fanout=4)
    done(page)
    page.locator(".scroll").focus()
    page.keyboard.press("End")
    expect(page.locator("#inspector .text").first).to_contain_text("<img src=x onerror")
    expect(page.locator("#inspector")).to_contain_text("likelihood")
    assert page.locator("main img, main b >> text=4").count() == 0
    assert page.title() == "Anabranch"
    for row in range(page.locator("[role=treeitem]").count()):  # no override of direction is shown
        page.keyboard.press("Home" if row == 0 else "ArrowDown")
        assert "\u202e" not in page.locator("#inspector").inner_text()


def test_keys_move_in_the_tree(page: Any) -> None:
    ask(page, "vote", n=3)
    done(page)
    tree = page.locator(".scroll")
    tree.focus()
    page.keyboard.press("Home")
    seen = []
    for key in ("ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown", "End"):
        page.keyboard.press(key)
        seen.append(tree.get_attribute("aria-activedescendant"))
        assert page.locator(f"#{seen[-1]}.selected").count() == 1
    assert seen[1].endswith("-0")
    assert len(set(seen)) >= 3
    width = page.locator(".scroll svg").bounding_box()["width"]
    page.keyboard.press("+")
    assert page.locator(".scroll svg").bounding_box()["width"] > 1.4 * width
    page.keyboard.press("0")
    assert page.locator(".scroll svg").bounding_box()["width"] == width


def test_a_large_tree_fits_and_its_labels_do_not_overlap(page: Any) -> None:
    ask(page, "vote", n=60)
    done(page)
    expect(page.locator("[role=treeitem]")).to_have_count(61)
    page.click("[aria-label^=Fit]")
    room = page.locator(".scroll").evaluate(
        "box => [box.scrollHeight - box.clientHeight, box.scrollWidth - box.clientWidth]"
    )
    assert room == [0, 0]
    overlaps = page.locator(".label").evaluate_all("""all => {
        const shown = all.filter((one) => one.textContent);
        const boxes = shown.map((one) => one.getBoundingClientRect());
        const meet = (a, b) => a.left < b.right && b.left < a.right
            && a.top + 3 < b.bottom && b.top + 3 < a.bottom;
        const over = boxes.filter((a, i) => boxes.slice(i + 1).some((b) => meet(a, b)));
        return [boxes.length, over.length];
    }""")
    assert overlaps[0] > 5
    assert overlaps[1] == 0


def test_a_chosen_branch_shows_its_own_text_first(page: Any) -> None:
    """What stands above it on its path may be long, its name too."""
    ask(page, "beam", "long", width=1, fanout=2, step_tokens=60)
    done(page)
    page.locator(".scroll").focus()
    page.keyboard.press("End")
    told = page.locator("#inspector .text").first.evaluate("""box => {
        const [own, all] = [box.querySelector(".own"), box.getBoundingClientRect()];
        const place = own.getBoundingClientRect();
        const seen = place.top >= all.top && place.bottom <= all.bottom;
        const tokens = [...own.querySelectorAll(".token")];
        const whole = tokens.map((token) => token.textContent).join("") === own.textContent;
        const told = tokens.every((token) => /^[\\d.]+ %, −?[\\d.]+ nats$/.test(token.title));
        return [own.textContent, box.scrollTop > 0, seen, tokens.length > 3, whole, told];
    }""")
    assert told == ["The answer is 4.", True, True, True, True, True]
    assert re.search(r"Least likely\s+\".+ %", page.locator("#inspector dl").inner_text())
    name = page.locator("#inspector h2 code")
    assert "…" in name.inner_text()
    selected = page.locator(".branch.selected")
    assert name.get_attribute("title") == selected.get_attribute("data-id")


def test_it_grows_and_escape_stops_it_and_frees_its_branches(server: Running, page: Any) -> None:
    ask(page, "vote", "endless", n=5, max_tokens=100000)
    expect(page.locator(".branch.growing")).to_have_count(5)

    def tokens() -> int:
        told = page.locator(".state").inner_text().split(" · ")[1]
        return int(told.split()[0].replace(",", ""))

    expect(page.locator(".state")).to_contain_text("5 growing")
    before = tokens()
    page.wait_for_function(
        "before => Number(document.querySelector('.state').textContent.split(' · ')[1]"
        ".split(' ')[0].replace(',', '')) > before + 50",
        arg=before,
    )
    page.keyboard.press("Escape")
    expect(page.locator(".state")).to_contain_text("Stopped")
    server.until_idle()
    expect(page.locator(".branch.growing")).to_have_count(0)
    page.locator("[data-id='0.2'] .hit").click(force=True)
    expect(page.locator("#inspector .text .own")).to_contain_text("a")
    # What was written until then is kept.
    page.reload()
    page.locator(".past").first.click()
    expect(page.locator(".state")).to_contain_text("Stopped")
    expect(page.locator("[role=treeitem]")).to_have_count(6)


def test_history_survives_a_reload_and_has_bounds(page: Any) -> None:
    ask(page, "vote", n=4, temperature=0.9)
    done(page)
    expect(page.locator("[role=treeitem]")).to_have_count(5)
    drawn = labels(page)
    page.reload()
    page.locator(".past").first.click()
    done(page)
    expect(page.locator("[role=treeitem]")).to_have_count(5)
    assert labels(page) == drawn
    expect(page.locator(".said")).to_have_text("4")
    expect(page.get_by_label("temperature", exact=True).first).to_have_value("0.9")
    expect(page.locator("#problem")).to_have_value("What is 2 + 2?")
    sizes = page.evaluate("""async () => {
        const { keep, runs, load } = await import("/page/history.js");
        const record = (fill) => ({ asked: { problem: "p" }, strategy: { text: "s" }, when: 1,
            content: "", state: "done", events: ["x".repeat(fill)] });
        const large = load(keep(record(2_000_000)));
        for (let i = 0; i < 60; i++) keep(record(200_000));
        return [runs().length, Object.values(localStorage).join("").length, large.events,
            runs().every((entry) => load(entry.id))];
    }""")
    assert sizes[0] <= 40
    assert sizes[1] < 3_100_000
    assert sizes[2] is None
    assert sizes[3]
    page.evaluate("localStorage.setItem('anabranch.runs', '[{]')")
    page.reload()
    expect(page.locator("#first select").first).to_be_visible()
    assert page.locator(".past").count() == 0


def test_a_tree_from_events(page: Any) -> None:
    """Forks inside a step, judges' branches, strangers, and what comes too late."""
    told = page.evaluate("""async () => {
        const { Tree, layOut, scoreOf } = await import("/page/tree.js");
        const tree = new Tree();
        const extend = (branch, start, end, logp) => tree.add({ event: "extend", branch, start,
            end, text: "x".repeat(end - start), logp, entropy: 1, stop: "until" });
        tree.add({ event: "open", branch: "0", position: 10, text: "p" });
        const grown = { branch: "0", text: "ab", tokens: 2, logp: -1, entropy: 2 };
        tree.add({ event: "grow", steps: [grown] });
        const live = [tree.sampled, tree.branches.get("0").growing, tree.branches.get("0").end];
        extend("0", 10, 20, -5);
        for (const [id, at] of [["0.0", 15], ["0.1", 20], ["0.2", 20]]) {
            tree.add({ event: "fork", branch: id, parent: "0", position: at });
        }
        extend("0.0", 15, 18, -3);
        extend("0.1", 20, 30, null);  // minus infinity
        tree.add({ event: "rate", branch: "0.0", judge: "j", rating: 0.25 });
        tree.add({ event: "drop", branch: "0.1", reason: "not selected" });
        tree.add({ event: "extend", branch: "9", start: 0, end: 1, text: "" });
        tree.add({ event: "evidence", quotes: ["q"] });
        tree.add({ event: "answer", kept: ["0.0", "8"] });
        tree.add({ event: "drop", branch: "0.0", reason: "" });
        const size = layOut(tree, false);
        const of = (id) => tree.branches.get(id);
        return { live, size, sampled: tree.sampled, remarks: tree.remarks,
            all: layOut(tree, true).lanes,
            kept: [...tree.branches.values()].filter((b) => b.kept).map((b) => b.id),
            open: ["0", "0.0", "0.1", "0.2"].map((id) => of(id).open), flow: of("0").flow,
            scores: ["0", "0.0", "0.1"].map((id) => scoreOf(of(id).steps[0])) };
    }""")
    assert told["live"] == [2, True, 12]
    assert told["sampled"] == told["flow"] == 23
    assert told["size"] == {"lanes": 2, "tokens": 20, "forks": 1}
    assert told["all"] == 3
    assert told["kept"] == ["0", "0.0"]
    assert told["open"] == [True, True, False, True]
    assert told["scores"] == [pytest.approx(0.6065, abs=1e-4), 0.25, 0]
    assert len(told["remarks"]) == 2


def test_two_strategies_beside_each_other(page: Any) -> None:
    page.check("#compare")
    page.select_option("#second select >> nth=0", "beam")
    ask(page, "vote", n=4)
    expect(page.locator(".state")).to_contain_text(["Done", "Done"])
    trees = page.locator("[role=tree]")
    expect(trees).to_have_count(2)
    assert trees.nth(1).locator("[role=treeitem]").count() > 4
    expect(page.locator(".usage")).to_have_count(2)
    expect(page.locator(".said")).to_have_text(["4", "4"])
    assert page.locator(".state").nth(1).inner_text().endswith("seed 1")


def test_faults_are_said(page: Any) -> None:
    ask(page, "vote", n=0)
    assert page.locator(".state").inner_text() == ""  # the browser itself says why
    ask(page, "beam", judge="likelyhood")
    expect(page.locator("#fault")).to_contain_text("did you mean likelihood")
    expect(page.locator(".state")).to_contain_text("Failed")
    ask(page, "beam", judge="likelihood")
    done(page)
    expect(page.locator("#fault")).to_be_hidden()


@pytest.fixture
def locked(browser: Any, tmp_path: Path) -> Iterator[tuple[Running, str, Any]]:
    """A server with keys, one of them, and a page that was opened with it in the browser's own
    dialog: any name, the key as password."""
    key = new_key(tmp_path / "keys.toml", "alice")
    with serving(slow, keys=tmp_path / "keys.toml") as running:
        context = browser.new_context(http_credentials={"username": "any", "password": key})
        opened = context.new_page()
        opened.set_default_timeout(10_000)
        opened.goto(running.url)
        expect(opened.locator("#first select").first).to_have_value("vote")
        yield running, key, opened
        context.close()


def test_with_the_browsers_own_dialog_all_of_the_page_works(
    locked: tuple[Running, str, Any],
) -> None:
    server, _, page = locked
    ask(page, "vote", n=3)
    done(page)
    expect(page.locator(".said")).to_have_text("4")
    expect(page.locator(".gauges")).not_to_have_class("gauges lost")
    page.reload()
    page.locator(".past").first.click()
    done(page)
    ask(page, "vote", "endless", n=2, max_tokens=100000)
    expect(page.locator(".branch.growing")).to_have_count(2)
    page.keyboard.press("Escape")
    server.until_idle()
    assert not page.locator("#locked, #unlock").filter(visible=True).count()


def test_who_has_no_key_sees_nothing(locked: tuple[Running, str, Any], browser: Any) -> None:
    server, _, _ = locked
    context = browser.new_context(http_credentials={"username": "any", "password": "walrus"})
    page = context.new_page()
    assert page.goto(server.url).status == 401
    assert "the key as its password" in page.inner_text("body")
    context.close()


def test_an_open_page_asks_for_a_key_by_itself(locked: tuple[Running, str, Any]) -> None:
    """As when the server has come back with other keys: the browser's are of no use then."""
    server, key, page = locked
    keys = server.app.state.keys
    old = dict(keys.__dict__)
    other = f"{key}-another"
    hashed = Key(name="bob", hash=f"sha256:{hashlib.sha256(other.encode()).hexdigest()}")
    keys.__dict__.update(Keyring([hashed]).__dict__)
    dialog, refused = page.locator("#locked"), page.locator("#refused")
    expect(dialog).to_be_visible()  # the gauges found out
    expect(refused).to_be_hidden()
    page.fill("#key", "walrus")
    page.press("#key", "Enter")
    expect(refused).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    ask(page, "vote", n=3)
    expect(page.locator("#fault")).to_contain_text("a key is needed")
    expect(dialog).to_be_hidden()  # it is not asked for again and again
    page.click("#unlock")
    page.fill("#key", other)
    page.press("#key", "Enter")
    expect(page.locator("#unlock")).to_be_hidden()
    ask(page, "vote", n=3)
    done(page)
    assert page.evaluate("sessionStorage.getItem('anabranch.key')") == other
    keys.__dict__.update(old)


def test_themes_and_narrow_windows(page: Any) -> None:
    dark = "getComputedStyle(document.body).backgroundColor"
    colours = []
    for name in ("light", "dark"):
        page.click("#theme")
        assert page.locator("#theme").inner_text() == f"Theme: {name}"
        colours.append(page.evaluate(dark))
    assert colours[0] != colours[1]
    page.reload()
    assert page.locator("#theme").inner_text() == "Theme: dark"
    ask(page, "vote", n=3)
    done(page)
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    run, history = page.locator("#runs").bounding_box(), page.locator("#history").bounding_box()
    assert history["y"] > run["y"]
    assert run["width"] > 300
