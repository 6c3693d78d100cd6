"""The page in Chromium: every action on it, in both ways to run it. One browser and one server serve all tests.

foley, whose sounds take little time to render, plays where it does not matter which instrument does.
"""

import functools
import http.server
import io
import json
import os
import re
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foleybox.audio import read_wave
from foleybox.cli import main
from foleybox.studio.extend import finished
from foleybox.studio.latents import vary
from foleybox.studio.recipe import read_recipe
from foleybox.studio.remake import rerender
from foleybox.studio.shape import Shape
from foleybox.studio.synth import Synth

pytest.importorskip("fastapi", reason="of the serve extra")
playwright = pytest.importorskip("playwright.sync_api", reason="of the dev extra")
axe = pytest.importorskip("axe_playwright_python", reason="of the dev extra")

from helpers_web import Running  # noqa: E402
from playwright.sync_api import Browser, BrowserContext, Download, Page, expect  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)", allow_module_level=True)

STEPS = 26.6  # 16-bit steps: the largest difference of foley between versions, results/determinism.md
SENTENCE = re.compile(r"^[A-Z].{20,200}[.]$")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    flags = [
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        "--autoplay-policy=no-user-gesture-required",
    ]
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=[*flags, *root])
        yield found
        found.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with Running([Synth.load("foley"), Synth.load("foley-small")]) as running:
        yield running


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of the folder that `foleybox page` wrote, on a server that knows nothing of foleybox."""
    folder = tmp_path_factory.mktemp("site") / "page"
    assert main(["page", "-o", str(folder), "--instrument", "foley", "foley-small"]) == 0

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    host = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=host.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{host.server_port}/"
    host.shutdown()


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    found = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    found.set_default_timeout(30_000)
    yield found
    found.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """Return an empty page; the test fails if the page reports an error that it does not expect."""
    errors: list[str] = []
    found = context.new_page()
    found.on("pageerror", lambda error: errors.append(str(error)))
    yield found
    found.close()
    assert errors == []


def opened(page: Page, url: str, link: str = "", ready: bool = True) -> Page:
    """Open the page with nothing stored, and wait for its twelve sounds."""
    page.goto(f"{url}icon.svg")
    page.evaluate("() => localStorage.clear()")
    page.goto(f"{url}{link}")
    return waited(page) if ready else page


def waited(page: Page) -> Page:
    expect(page.locator(".tile").first).to_be_visible()
    expect(page.locator(".tile.waiting")).to_have_count(0, timeout=60_000)
    return page


def names(page: Page) -> list[str]:
    return page.locator(".tile .seed").all_text_contents()


def downloaded(page: Page, action: Callable[[], None]) -> bytes:
    with page.expect_download() as waiting:
        action()
    found: Download = waiting.value
    return Path(found.path()).read_bytes()


def slide(page: Page, name: str, keys: str, times: int = 1) -> None:
    for _ in range(times):
        page.locator(f"input[name={name}]").press(keys)


# --- the wall -----------------------------------------------------------------------------------------------------


def test_a_click_plays_and_keys_choose_stop_and_loop(page: Page, server: Running) -> None:
    opened(page, server.url)
    play = page.locator(".player .play")
    page.locator(".sound").nth(2).click()
    expect(play).to_have_text("Stop")
    assert "seed 2" in page.locator(".now .name").inner_text()
    page.keyboard.press("l")
    expect(page.get_by_role("button", name="Loop")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press(" ")
    expect(play).to_have_text("Play")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    expect(play).to_have_text("Stop")
    expect(page.locator(".sound").nth(7)).to_be_focused()
    expect(page.locator(".sound").nth(7)).to_have_accessible_name(
        re.compile(r"^Dog bark, seed 7, 4\.0 s, −\d+\.\d LUFS$")
    )
    page.keyboard.press("Escape")
    expect(play).to_have_text("Play")


def test_labels_pages_shuffle_and_seed_lead_to_other_sounds_and_undo_leads_back(page: Page, server: Running) -> None:
    opened(page, server.url)
    page.keyboard.press("6")
    expect(page.locator(".labels button").nth(5)).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("n")
    assert names(page)[0] == "seed 12"
    page.get_by_role("button", name="Previous 12").click()
    assert names(page)[0] == "seed 0"
    page.locator(".controls input[name=seed]").fill("1234")
    page.locator(".controls input[name=seed]").press("Enter")
    assert names(page)[0] == "seed 1234"
    page.get_by_role("button", name="Shuffle").click()
    assert names(page)[0] != "seed 1234"
    page.get_by_role("button", name="Undo").click()
    assert names(page)[0] == "seed 1234"
    page.keyboard.press("Control+z")
    page.keyboard.press("u")
    page.keyboard.press("u")
    page.keyboard.press("u")
    expect(page.locator(".labels button").first).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()


def test_temperature_length_and_loudness_change_the_sounds(page: Page, server: Running, tmp_path: Path) -> None:
    opened(page, server.url, "#foley/gunshot/3")
    slide(page, "seconds", "ArrowRight", 5)
    slide(page, "lufs", "End")
    slide(page, "lufs", "ArrowLeft", 14)
    slide(page, "temperature", "ArrowLeft", 4)
    waited(page)
    assert "1.5 s" in page.locator(".tile .facts").first.inner_text()
    (tmp_path / "a.wav").write_bytes(downloaded(page, lambda: page.keyboard.press("d")))
    recipe = read_recipe(tmp_path / "a.wav")
    assert recipe is not None
    assert recipe.asked == {"seconds": 1.5, "lufs": -24.0}
    assert recipe.make["temperature"] == 0.8


def test_more_like_this_and_between_two_are_vary_and_morph(page: Page, server: Running, tmp_path: Path) -> None:
    opened(page, server.url)
    page.locator(".sound").nth(3).click()
    page.keyboard.press("v")
    waited(page)
    assert names(page)[:3] == ["seed 3", "variation 0", "variation 1"]
    page.locator(".sound").nth(2).click()
    (tmp_path / "a.wav").write_bytes(downloaded(page, lambda: page.get_by_role("button", name="WAV").click()))
    synth = server.synths[0]
    clip = next(vary(synth, synth.render("dog_bark", 3).recipe.make, 0.3, 1, batch=1))
    finished(synth, clip, Shape()).save(tmp_path / "b.wav")
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    page.keyboard.press("b")
    page.locator(".sound").nth(5).click()
    waited(page)
    assert (len(names(page)), names(page)[0], names(page)[-1]) == (12, "0 %", "100 %")
    page.get_by_role("button", name="All Dog bark").click()
    assert names(page)[0] == "seed 3"


def test_starred_sounds_are_kept_and_come_as_a_zip_with_recipes_and_licence(page: Page, server: Running) -> None:
    opened(page, server.url)
    page.locator(".sound").nth(1).click()
    page.keyboard.press("s")
    page.locator(".tile .star").nth(4).click()
    expect(page.locator(".stars li")).to_have_count(2)
    page.reload()
    expect(page.locator(".stars li")).to_have_count(2)
    archive = zipfile.ZipFile(
        io.BytesIO(downloaded(page, lambda: page.get_by_role("button", name="Download zip").click()))
    )
    assert archive.testzip() is None
    assert set(archive.namelist()) == {
        "dog_bark_s1.wav", "recipes/dog_bark_s1.json", "dog_bark_s4.wav", "recipes/dog_bark_s4.json", "LICENSE-foley.txt",
    }  # fmt: skip
    assert json.loads(archive.read("recipes/dog_bark_s4.json"))["make"]["seed"] == 4
    page.get_by_role("button", name="Unstar: Dog bark 4").click()
    expect(page.locator(".stars li")).to_have_count(1)
    page.keyboard.press("u")
    expect(page.locator(".stars li")).to_have_count(2)


def test_a_link_opens_to_the_same_sound(page: Page, server: Running) -> None:
    opened(page, server.url, "#foley/rain/77?lufs=-30")
    assert names(page)[0] == "seed 77"
    assert "Rain, seed 77" in page.locator(".now .name").inner_text()
    page.get_by_role("button", name="More like this").click()
    waited(page)
    page.keyboard.press("ArrowRight")
    first = downloaded(page, lambda: page.keyboard.press("d"))
    link = page.evaluate("() => location.hash")
    assert "via" in link
    opened(page, server.url, link)
    assert downloaded(page, lambda: page.keyboard.press("d")) == first


def test_a_tile_can_be_dragged_out_as_a_file(page: Page, server: Running) -> None:
    opened(page, server.url)
    script = """(element) => {
        const data = new DataTransfer();
        element.dispatchEvent(new DragEvent("dragstart", { dataTransfer: data, bubbles: true }));
        return data.getData("DownloadURL");
    }"""
    dragged = page.locator(".sound").nth(2).evaluate(script)
    kind, name, url = dragged.split(":", 2)
    assert (kind, name) == ("audio/wav", "dog_bark_s2.wav")
    assert page.request.get(url).body()[:4] == b"RIFF"


def test_a_pack_is_made_and_downloaded(page: Page, server: Running) -> None:
    opened(page, server.url, "#foley/gunshot/0")
    page.get_by_role("button", name="Make a pack").click()
    page.locator("dialog input[name=count]").fill("2")
    page.locator("dialog select").select_option("godot")
    archive = zipfile.ZipFile(
        io.BytesIO(downloaded(page, lambda: page.get_by_role("button", name="Make", exact=True).click()))
    )
    assert "GunShot/GunShot.tres" in archive.namelist()


def test_instrument_theme_help_and_licence(page: Page, server: Running) -> None:
    opened(page, server.url)
    page.keyboard.press("?")
    expect(page.locator("dialog")).to_contain_text("more like this")
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
    page.get_by_role("button", name="Licence of the sounds").click()
    expect(page.locator("dialog pre")).to_contain_text("Whom to credit")
    page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Dark or light").click()
    assert page.evaluate("() => document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(20, 19, 23)"
    page.get_by_label("Instrument").select_option("foley-small")
    assert page.evaluate("() => location.hash").startswith("#foley-small/dog_bark/0")


@pytest.mark.parametrize(
    ("link", "sentence"),
    [
        ("#foley/cat/5", "The address names cat, which foley does not play"),
        ("#nobody/rain/5", "The address names the instrument nobody"),
        ("#rubbish", "The address rubbish does not name a sound"),
        ("#foley/rain/5?temperature=99", "does not name a sound"),
        ("#foley/rain/5?via=[", "does not name a sound"),
    ],
)
def test_a_link_to_nothing_is_a_sentence_and_a_wall(page: Page, server: Running, link: str, sentence: str) -> None:
    opened(page, server.url, link, ready=False)
    expect(page.get_by_role("alert")).to_contain_text(sentence)
    expect(page.locator(".tile")).to_have_count(12)


def test_a_stopped_server_is_a_sentence_and_stars_are_kept(page: Page) -> None:
    with Running([Synth.load("foley")]) as server:
        opened(page, server.url)
        page.keyboard.press("s")
    page.keyboard.press("n")
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    expect(page.locator(".tile.failed").first).to_have_text(re.compile("Try again"))
    expect(page.locator(".stars li")).to_have_count(1)
    assert len(json.loads(page.evaluate("() => localStorage['foleybox.stars']"))) == 1


# --- the performer ------------------------------------------------------------------------------------------------


def test_taps_become_events_that_can_be_edited_and_a_scene_that_can_be_heard(page: Page, server: Running) -> None:
    opened(page, server.url, ready=False)
    page.get_by_role("tab", name="Performer").click()
    page.keyboard.press("r")
    for key in "223":
        page.wait_for_timeout(150)
        page.keyboard.press(key)
    page.keyboard.press("r")
    events = page.locator(".event")
    expect(events).to_have_count(3)
    events.first.click()
    time = page.locator(".inspector input").first
    before = float(time.input_value())
    page.keyboard.press("Shift+ArrowRight")
    assert float(time.input_value()) == pytest.approx(before + 0.1)
    page.keyboard.press("ArrowDown")
    expect(events.first).to_have_accessible_name(re.compile(r"^Footstep at \d\.\d\d s, strength 0\.9$"))
    page.keyboard.press("c")
    assert page.locator(".inspector input").nth(2).input_value() == "0"
    page.locator(".inspector select").select_option("dog_bark")
    expect(page.locator(".lane").first.locator(".event")).to_have_count(1)
    page.locator(".lane").nth(2).locator(".event").click()
    page.keyboard.press("Delete")
    expect(events).to_have_count(2)
    page.keyboard.press("u")
    expect(events).to_have_count(3)
    page.locator("input[name=rain]").press("End")
    page.get_by_role("button", name="Render").click()
    expect(page.get_by_role("status")).to_contain_text("3 events in", timeout=60_000)
    page.get_by_role("button", name="Play mix").click()
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_visible()
    mix = downloaded(page, lambda: page.get_by_role("button", name="Download mix", exact=True).click())
    stems = downloaded(page, lambda: page.get_by_role("button", name="Download mix and stems").click())
    archive = zipfile.ZipFile(io.BytesIO(stems))
    assert archive.read("mix.wav") == mix
    assert {"stems/DogBark.wav", "stems/Footstep.wav", "stems/GunShot.wav", "stems/Rain_surface.wav"} <= set(
        archive.namelist()
    )


def test_files_and_the_microphone_become_events(page: Page, server: Running, tmp_path: Path) -> None:
    opened(page, server.url, ready=False)
    page.get_by_role("tab", name="Performer").click()
    chooser = page.locator("input[type=file]")
    chooser.set_input_files({"name": "a.csv", "mimeType": "text/csv", "buffer": b"time,label\n0.5,rain\n1.25,\n"})
    expect(page.locator(".event")).to_have_count(2)
    expect(page.locator(".lane").nth(5).locator(".event")).to_have_count(1)
    chooser.set_input_files({"name": "b.wav", "mimeType": "audio/wav", "buffer": b"RIFF no sound"})
    expect(page.get_by_role("alert")).to_contain_text("b.wav could not be read")
    chooser.set_input_files({"name": "c.mid", "mimeType": "audio/midi", "buffer": b"MThd"})
    expect(page.get_by_role("alert")).to_contain_text("c.mid is not a MIDI file")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".event")).to_have_count(0)
    page.get_by_role("button", name="Microphone").click()  # Chromium's false device beeps once a second
    page.wait_for_timeout(2_300)
    page.get_by_role("button", name="Stop microphone").click()
    expect(page.locator(".event").first).to_be_visible()


FILM = """async () => {
    const canvas = document.createElement("canvas");
    const recorder = new MediaRecorder(canvas.captureStream(20), { mimeType: "video/webm" });
    const parts = [];
    recorder.ondataavailable = ({ data }) => parts.push(data);
    recorder.start();
    for (let n = 0; n < 16; n++) {
        canvas.getContext("2d").fillRect(n, n, 20, 20);
        await new Promise((resolve) => setTimeout(resolve, 50));
    }
    await new Promise((resolve) => { recorder.onstop = resolve; recorder.stop(); });
    const files = new DataTransfer();
    files.items.add(new File(parts, "film.webm", { type: "video/webm" }));
    const input = document.querySelector("input[type=file]");
    input.files = files.files;
    input.dispatchEvent(new Event("change"));
}"""


def test_a_video_can_be_stepped_through_and_tapped_along_to(page: Page, server: Running) -> None:
    opened(page, server.url, ready=False)
    page.get_by_role("tab", name="Performer").click()
    page.evaluate(FILM)
    expect(page.locator("video")).to_be_visible()
    for _ in range(3):
        page.get_by_role("button", name="Frame forward").click()
    page.get_by_role("button", name="Frame back").click()
    page.wait_for_timeout(200)
    page.get_by_role("button", name="Add event here").click()
    expect(page.locator(".event").first).to_have_accessible_name(re.compile(r"at 0\.08 s"))
    page.keyboard.press("r")
    page.keyboard.press("3")
    page.keyboard.press("r")
    expect(page.locator(".lane").nth(2).locator(".event")).to_have_count(1)


# --- without a server ---------------------------------------------------------------------------------------------


RENDER = """async (cases) => {
    const { WorkerEngine } = await import("./engine.js");
    const { parseAddress } = await import("./sounds.js");
    const engine = new WorkerEngine(await (await fetch("config.json")).json());
    const files = [];
    for (const each of cases) {
        const { sound, settings } = parseAddress(each);
        files.push(Array.from((await engine.render(sound, settings)).bytes));
    }
    engine.worker.terminate();
    return files;
}"""


def test_the_browser_makes_the_sounds_of_python(page: Page, site: str, server: Running, tmp_path: Path) -> None:
    """The default instrument, processed, and a variation; benchmarks/web.py compares 7 labels x 20 seeds of each instrument."""
    cases = ["rain/5?seconds=1.5&lufs=-30", "footstep/2", "dog_bark/5?via=" + json.dumps([["vary", 0.3, 2]])]
    page.goto(f"{site}icon.svg")
    for case, content in zip(cases, page.evaluate(RENDER, [f"foley/{case}" for case in cases])):
        (tmp_path / "a.wav").write_bytes(bytes(content))
        recipe = read_recipe(tmp_path / "a.wav")
        assert recipe is not None
        wave, _ = rerender(recipe, server.synths[0])
        assert np.abs(wave - read_wave(tmp_path / "a.wav")[0]).max() * 32768 <= STEPS, case


def test_a_page_without_a_server_stars_and_varies_and_says_what_it_cannot_do(page: Page, site: str) -> None:
    opened(page, site)
    expect(page.get_by_role("status")).to_have_text("12 sounds, rendered in this browser")
    page.keyboard.press("s")
    page.keyboard.press("v")
    waited(page)
    assert names(page)[1] == "variation 0"
    archive = zipfile.ZipFile(
        io.BytesIO(downloaded(page, lambda: page.get_by_role("button", name="Download zip").click()))
    )
    assert "recipes/dog_bark_s0.json" in archive.namelist()
    for name in ("Between", "Make a pack"):
        expect(page.get_by_role("button", name=name)).to_be_disabled()
    page.get_by_role("tab", name="Performer").click()
    expect(page.get_by_role("button", name="Render")).to_be_disabled()
    expect(page.locator(".scene .hint")).to_contain_text("foleybox serve")


def test_the_page_of_a_server_can_render_in_the_browser_too(page: Page, server: Running) -> None:
    opened(page, server.url, "?render=browser", ready=False)
    expect(page.locator(".tile").first).not_to_have_class(re.compile("waiting"), timeout=60_000)
    expect(page.get_by_role("button", name="Between")).to_be_disabled()


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ("**/*.wasm", "The file that renders here could not be loaded"),
        ("**/decoder.onnx", "The file decoder.onnx of the instrument could not be loaded"),
        ("**/config.json", "The page found no config.json"),
        ("damaged", "The file decoder.onnx of the instrument is damaged"),
        ("simd", "This browser has no WebAssembly SIMD"),
    ],
)
def test_what_is_missing_or_damaged_is_a_sentence(page: Page, site: str, broken: str, sentence: str) -> None:
    if broken == "damaged":
        page.route("**/decoder.onnx", lambda route: route.fulfill(body=b"x" * 2_743_095))
    elif broken == "simd":
        worker = page.request.get(f"{site}worker.js").text().replace("const SIMD = [0,", "const SIMD = [1,")
        page.route("**/worker.js", lambda route: route.fulfill(body=worker, content_type="text/javascript"))
    else:
        page.route(broken, lambda route: route.abort())
    opened(page, site, ready=False)
    expect(page.get_by_role("alert").first).to_contain_text(sentence)
    assert SENTENCE.match(page.locator(".messages p, .loading").first.inner_text())


# --- for people ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("size", [(1280, 800), (390, 844)], ids=["desktop", "phone"])
def test_axe_finds_nothing_serious(browser: Browser, server: Running, scheme: Any, size: tuple[int, int]) -> None:
    source = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    page = browser.new_page(color_scheme=scheme, viewport={"width": size[0], "height": size[1]})
    opened(page, server.url)
    page.keyboard.press("s")
    page.evaluate(source)
    for view in ("Wall", "Performer"):
        page.get_by_role("tab", name=view).click()
        found = page.evaluate("async () => (await axe.run()).violations")
        serious = [
            (each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")
        ]
        assert serious == []
        assert page.evaluate("() => document.documentElement.scrollWidth") <= size[0]
    page.close()


def test_the_addresses_for_programs_are_a_page(page: Page, server: Running) -> None:
    page.goto(f"{server.url}api.html")
    expect(page.locator("h2")).to_contain_text(["GET /v1/sounds/{instrument}/{label}/{file}", "POST /v1/perform"])
    expect(page.locator("body")).to_contain_text("true-peak ceiling")


def test_every_text_of_the_page_is_used() -> None:
    folder = Path(__file__).parents[1] / "src" / "foleybox" / "web" / "page"
    strings = (folder / "strings.js").read_text(encoding="utf-8")
    code = "\n".join(path.read_text(encoding="utf-8") for path in folder.glob("*.js") if path.name != "strings.js")
    keys = re.findall(r"^  (\w+):", strings[strings.index("const STRINGS") :], re.MULTILINE)
    assert [key for key in keys if f'"{key}"' not in code and f"{key}:" not in code] == []
