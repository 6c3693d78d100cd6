"""Write results/web.md: the page and the server, measured on this machine.

python benchmarks/web.py results                       all, about 12 minutes on two idle cores
python benchmarks/web.py results --parts page server   some of: agree, page, server, hostile

agree     sounds of the browser against Python: 7 labels x 20 seeds of each instrument
page      from opening the page to the first sound, a further one, the wall
server    64 clients for 60 s against `foleybox jobs` of the same sounds, before and after
hostile   10,000 requests that should be refused

All requests go to this machine. Chromium (Debian's) and the extras serve and dev are needed.
"""

import base64
import concurrent.futures
import contextlib
import functools
import http.client
import http.server
import os
import platform
import random
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from playwright.sync_api import BrowserContext, Playwright, sync_playwright

from foleybox.audio import read_wave
from foleybox.files import write_text
from foleybox.lab.evaluation.tables import table
from foleybox.studio.extend import finished
from foleybox.studio.shape import Shape
from foleybox.studio.synth import Synth, cores
from foleybox.version import commit

Part = Literal["agree", "page", "server", "hostile"]
RESIDUAL = {"foley": 26.5, "foley-small": 8.32}  # 16-bit steps, results/determinism.md
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# When the first tile, and all of them, were drawn: milliseconds from opening the page.
OBSERVE = """
new MutationObserver(() => {
    const tiles = document.querySelectorAll(".tile").length, waiting = document.querySelectorAll(".tile.waiting").length;
    if (tiles && waiting < tiles) window.firstTile ??= performance.now();
    if (tiles && !waiting) window.lastTile ??= performance.now();
}).observe(document, { subtree: true, childList: true, attributes: true });
"""
DRAWN = ".grid:has(.tile):not(:has(.waiting))"
RENDER = """async (cases) => {
    const { WorkerEngine } = await import("./engine.js");
    const { parseAddress } = await import("./sounds.js");
    window.engine ??= new WorkerEngine(await (await fetch("config.json")).json());
    const found = [];
    for (const each of cases) {
        const { sound, settings } = parseAddress(each);
        const start = performance.now();
        const { bytes } = await window.engine.render(sound, settings);
        found.push([performance.now() - start, btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""))]);
    }
    return found;
}"""

# Waves as the graphs give them (float32), and as the page writes them to files (16 bits, true-peak ceiling).
WAVES = """async ([name, label, seeds]) => {
    const ort = await import("./vendor/ort.wasm.bundle.min.mjs");
    const { Synth } = await import("./synth.js");
    const { shaped } = await import("./shape.js");
    const { readWav, writePlainWav } = await import("./wave.js");
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmPaths = { wasm: new URL("vendor/ort-wasm-simd-threaded.wasm", document.baseURI).href };
    const config = await (await fetch("config.json")).json();
    const about = config.instruments.find((each) => each.name === name);
    const read = async ({ file }) => new Uint8Array(await (await fetch(`instruments/${name}/${file}`)).arrayBuffer());
    const graphs = {};
    for (const [graph, about_graph] of Object.entries(about.graphs)) graphs[graph] = await read(about_graph);
    const synth = (window.synth ??= await Synth.load(ort, about, graphs));
    const text = (wave) => btoa(Array.from(new Uint8Array(wave.buffer), (byte) => String.fromCharCode(byte)).join(""));
    const found = [];
    for (let seed = 0; seed < seeds; seed++) {
        const { wave } = await synth.sound(label, seed, [], 1);
        const written = shaped(wave, about.rate, { seconds: null, lufs: null }, config.kernel).wave;
        found.push([text(wave), text(readWav(writePlainWav(written, about.rate)).wave)]);
    }
    return found;
}"""


@dataclass(frozen=True)
class Config:
    """Measure, and write web.md into the folder."""

    out: Annotated[Path, tyro.conf.Positional]
    parts: tuple[Part, ...] = ("agree", "page", "server", "hostile")
    "what is measured"
    seeds: int = 20
    "seeds of each label, for agree"
    clients: int = 64
    "concurrent clients"
    seconds: float = 60.0
    "of the load"
    requests: int = 10_000
    "hostile ones"


# --- the page -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def static_site(folder: Path) -> Iterator[str]:
    """Write the page and serve the folder; yield its address."""
    subprocess.run([sys.executable, "-m", "foleybox", "page", "-o", folder], check=True, stdout=subprocess.DEVNULL)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    host = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=host.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{host.server_port}/"
    host.shutdown()


def chromium(play: Playwright, profile: Path) -> BrowserContext:
    """Start Chromium with a profile, which keeps its caches."""
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    return play.chromium.launch_persistent_context(profile, executable_path=CHROMIUM, args=root)


def measure_agreement(config: Config, site: str, folder: Path) -> list[tuple[str, str, str]]:
    """Compare sounds of the browser with those of Python: as rendered, and as they are written to files."""
    rows = []
    with sync_playwright() as play:
        browser = chromium(play, folder / "profile-agree")
        page = browser.new_page()
        for name, allowed in RESIDUAL.items():
            synth = Synth.load(name)
            rendered, written = [], []
            page.goto(f"{site}icon.svg")
            for label in synth.labels:
                found = page.evaluate(WAVES, [name, label, config.seeds])
                pairs = ((label, seed) for seed in range(config.seeds))
                for texts, clip in zip(found, synth.render_many(pairs)):
                    waves = [np.frombuffer(base64.b64decode(text), np.float32) for text in texts]
                    finished(synth, clip, Shape()).save(folder / "python.wav")
                    for of, ours, theirs in (
                        (rendered, clip.wave, waves[0]),
                        (written, read_wave(folder / "python.wav")[0], waves[1]),
                    ):
                        of.append(32768 * float(np.abs(ours - theirs).max()))
            sounds = f"7 labels x {config.seeds} seeds"
            for what, of, target in (("as rendered", rendered, f"{allowed} steps"), ("as 16-bit files", written, "")):
                over = sum(each > 1.001 for each in of)
                text = f"{max(of):.2f} steps at most, median {statistics.median(of):.2f}, {over} of {len(of)} over one"
                rows.append((f"browser against Python, {name}, {sounds}, {what}", text, target))
        browser.close()
    return rows


def measure_page(site: str, folder: Path) -> list[tuple[str, str, str]]:
    """Measure a first visit (nothing cached, a new Chromium), further ones, and single sounds in the tab."""
    cold, warm, walls, singles = [], [], [], []
    tile = 0.0
    with sync_playwright() as play:
        for visit in range(3):
            browser = chromium(play, folder / f"profile-{visit}")
            for times in (cold, None, warm, warm):  # the second visit stores compiled code, the third has it
                page = browser.new_page()
                page.add_init_script(OBSERVE)
                page.goto(f"{site}#foley/dog_bark/0")
                page.wait_for_selector(DRAWN, timeout=120_000)
                first, last = page.evaluate("() => [window.firstTile, window.lastTile]")
                if times is not None:
                    times.append(first / 1000)
                if times is warm:
                    walls.append((last - first) / 11 / 1000)
                page.close()
            if visit == 0:
                page = browser.new_page()
                page.goto(f"{site}icon.svg")
                page.evaluate(RENDER, [f"foley/dog_bark/{seed}" for seed in range(4)])
                found = page.evaluate(
                    RENDER, [f"foley/{label}/9" for label in ("dog_bark", "rain", "keyboard", "gunshot")]
                )
                singles += [each / 1000 for each, _ in found]
                page.goto(f"{site}#foley/footstep/0")
                page.wait_for_selector(DRAWN, timeout=120_000)
                page.add_init_script(OBSERVE)
                start = time.perf_counter()
                page.locator(".labels button").nth(5).click()
                page.wait_for_selector(".tile:not(.waiting)", timeout=60_000)
                tile = time.perf_counter() - start
            browser.close()
    return [
        ("open to first sound, nothing cached, new browser", f"{statistics.median(cold):.2f} s", "4 s"),
        ("open to first sound, cached", f"{statistics.median(warm):.2f} s", "2 s"),
        ("a further sound of 4 s", f"{statistics.median(singles):.2f} s ({max(singles):.2f} at most)", "1 s"),
        ("each further tile of the first wall", f"{statistics.median(walls):.2f} s", ""),
        ("another wall of 12: first tile", f"{tile:.2f} s", "1.2 s"),
    ]


# --- the server ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running_server() -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Start `foleybox serve` as a process; yield its port and the process."""
    command = [sys.executable, "-m", "foleybox", "serve", "--port", "0", "--instrument", "foley"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = int(process.stdout.readline().split("/")[2].split(":")[1])
    try:
        yield port, process
    finally:
        process.terminate()
        process.wait()


def resident(process: subprocess.Popen[str]) -> float:
    """Return the memory of a process in MB (Linux)."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def jobs_per_second(folder: Path, count: int = 70) -> float:
    """Return the sounds a second of `foleybox jobs`, without its start."""
    seconds = []
    for sounds in (1, count):
        rows = [f"{label},{sounds // 7 or 1},{1000}" for label in Synth.load().labels]
        (folder / "jobs.csv").write_text("label,count,seed\n" + "\n".join(rows) + "\n")
        start = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "foleybox",
            "jobs",
            folder / "jobs.csv",
            "-o",
            folder / f"jobs-{sounds}-{time.time_ns()}",
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return (count - 7) / (seconds[1] - seconds[0])


def measure_server(config: Config, folder: Path) -> list[tuple[str, str, str]]:
    """Let clients ask for different sounds at once, each for the next when it has one."""
    before = jobs_per_second(folder)
    labels = Synth.load().labels
    took: list[float] = []
    statuses: Counter[int | str] = Counter()
    with running_server() as (port, process):
        numbers = iter(range(10**9))
        end = time.perf_counter() + config.seconds

        def client() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            while time.perf_counter() < end:
                number = next(numbers)
                start = time.perf_counter()
                try:
                    connection.request("GET", f"/v1/sounds/foley/{labels[number % 7]}/{number}.wav")
                    response = connection.getresponse()
                    body = response.read()
                    statuses[response.status] += 1
                    if response.status == 200:
                        assert int(response.headers["Content-Length"]) == len(body)
                        took.append(time.perf_counter() - start)
                    elif response.status == 429:
                        time.sleep(float(response.headers["Retry-After"]))
                except (OSError, http.client.HTTPException) as error:
                    statuses[type(error).__name__] += 1
                    connection.close()

        memory = []
        with concurrent.futures.ThreadPoolExecutor(config.clients) as pool:
            clients = [pool.submit(client) for _ in range(config.clients)]
            for quarter in range(4):
                time.sleep(config.seconds / 4)
                memory.append(resident(process))
                assert quarter < 4
            for each in clients:
                each.result()
    after = jobs_per_second(folder)
    rate, jobs = len(took) / config.seconds, (before + after) / 2
    p50, p95 = (1000 * float(np.percentile(took, share)) for share in (50, 95))
    answers = ", ".join(f"{count:,} x {status}" for status, count in statuses.items())
    return [
        (f"{config.clients} clients for {config.seconds:g} s: answers", answers, "200, 429"),
        ("the same: time of an answer, p50 and p95", f"{p50:,.0f} and {p95:,.0f} ms", ""),
        ("the same: sounds a second, and relative to `jobs`", f"{rate:.2f}, {rate / jobs:.2f} of {jobs:.2f}", "0.8"),
        ("the same: memory after each quarter", " / ".join(f"{each:,.0f}" for each in memory) + " MB", "flat"),
    ]  # fmt: skip


ODD = ["../", "%2e%2e/", "..%2f", "//", "\\..\\", "%00", "%ff", "\u00e9", "a" * 5000]
HOSTS = ["evil.example", "", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example"]
ORIGINS = ["null", "http://evil.example", "file://", "https://127.0.0.1"]
LENGTHS = ["-1", "99999999999", "1_0", "x", "9" * 30]
NAMES = ["temperature", "seconds", "lufs", "rate", "trim", "via", "fingerprint", "x"]
METHODS = ["PUT", "DELETE", "TRACE", "CONNECT", "X" * 50, "get"]
BODIES = [
    "{", "[" * 9000, "null", "\x00\xff", '{"events":[{"time":1e999}]}', '{"events":[' + "1," * 2000 + "1]}",
    '{"labels":["rain"],"selection":{"count":1e9}}', '{"labels":["../../etc"]}', '{"events":[{"time":1}],"label":"cat"}',
]  # fmt: skip
SOUND = "/v1/sounds/foley/dog_bark/1.wav"


def hostile_request(draw: random.Random, port: int) -> bytes:
    """Return a request that should be refused, or answered without harm."""
    host = f"Host: 127.0.0.1:{port}\r\nConnection: close\r\n"
    odd, body = draw.choice(ODD), draw.choice(BODIES)
    number = draw.choice(["-1", "1e9", "9" * draw.randint(10, 400), "nan", "inf", "0x10", "", "null", "[]", "1;2"])
    noise = "".join(chr(draw.randrange(256)) for _ in range(64))
    posted = draw.choice(["/v1/perform", "/v1/pack", f"/v1/events?name={odd}"])
    upload = f"/v1/events?name=a.{draw.choice(['wav', 'mid', 'csv', 'ogg', 'exe'])}"
    ranges = ",".join(f"{n}-" for n in range(draw.randint(1, 900)))
    text = draw.choice(
        [
            f"GET /{odd * draw.randint(1, 6)}etc/passwd HTTP/1.1\r\n{host}\r\n",
            f"GET {SOUND}?{draw.choice(NAMES)}={number}x HTTP/1.1\r\n{host}\r\n",
            f"GET /v1/sounds/{odd}/{number}/{number}.wav HTTP/1.1\r\n{host}\r\n",
            f"GET {SOUND} HTTP/1.1\r\nHost: {draw.choice(HOSTS)}\r\n\r\n",
            f"GET {SOUND} HTTP/1.1\r\n{host}Origin: {draw.choice(ORIGINS)}\r\n\r\n",
            f"POST {posted} HTTP/1.1\r\n{host}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}",
            f"POST /v1/perform HTTP/1.1\r\n{host}Content-Length: {draw.choice(LENGTHS)}\r\n\r\n",
            f"GET /index.html HTTP/1.1\r\n{host}Range: bytes={ranges}\r\n\r\n",
            f"{draw.choice(METHODS)} {draw.choice(['/', SOUND, '/v1/jobs/' + odd])} HTTP/1.1\r\n{host}\r\n",
            f"POST {upload} HTTP/1.1\r\n{host}Content-Length: 64\r\n\r\n{noise}",
            draw.choice(
                ["\x16\x03\x01\x02\x00", "GET / HTTP/9.9\r\n\r\n", f"GET / HTTP/1.1\r\n{host}{noise}:\r\n\r\n"]
            ),
        ]
    )
    return text.encode("latin-1")


def measure_hostile(config: Config) -> list[tuple[str, str, str]]:
    """Send requests on connections of their own; a tenth of these are left open without a whole request."""
    draw = random.Random(0)
    statuses: Counter[str] = Counter()
    leaks = 0
    with running_server() as (port, process):
        before = resident(process)
        open_ones: list[socket.socket] = []

        def send(request: bytes) -> bytes:
            with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
                with contextlib.suppress(OSError):
                    client.sendall(request)
                answer = b""
                with contextlib.suppress(ConnectionError):
                    while part := client.recv(65536):
                        answer += part
                        if b"\r\n\r\n" in answer and len(answer) > 2000:
                            break
                return answer

        start = time.perf_counter()
        for number in range(config.requests):
            request = hostile_request(draw, port)
            if number % 10 == 9 and len(open_ones) < 400:  # half-open
                client = socket.create_connection(("127.0.0.1", port), timeout=30)
                client.sendall(request[: draw.randrange(len(request))])
                open_ones.append(client)
                statuses["left open"] += 1
                continue
            try:
                answer = send(request)
            except TimeoutError:
                statuses["hang"] += 1
                continue
            leaks += b"root:" in answer or b"Traceback" in answer
            statuses[answer[9:12].decode("latin-1") or "closed"] += 1
        seconds = time.perf_counter() - start
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/v1/sounds/foley/dog_bark/1.wav")
        alive = connection.getresponse().status == 200
        memory = resident(process)
        for client in open_ones:
            client.close()
    kinds = ", ".join(f"{count:,} x {status}" for status, count in sorted(statuses.items()))
    return [
        (f"{config.requests:,} hostile requests in {seconds:.0f} s (seed 0): answers", kinds, "no 500, no hang"),
        ("the same: answers with a file from outside or a traceback", str(leaks), "0"),
        (
            "a sound afterwards; memory before and after",
            f"{'rendered' if alive else 'NOT rendered'}; {before:,.0f} and {memory:,.0f} MB",
            "",
        ),
    ]


def main(config: Config) -> None:
    """Measure the parts and write the page."""
    load = os.getloadavg()[0]
    rows: list[tuple[str, str, str]] = []
    with tempfile.TemporaryDirectory() as temporary, static_site(Path(temporary) / "site") as site:
        folder = Path(temporary)
        if "page" in config.parts:
            rows += measure_page(site, folder)
        if "agree" in config.parts:
            rows += measure_agreement(config, site, folder)
        if "server" in config.parts:
            rows += measure_server(config, folder)
        if "hostile" in config.parts:
            rows += measure_hostile(config)
    browser = (
        subprocess.run([str(CHROMIUM), "--version"], capture_output=True, text=True).stdout.split(" built")[0].strip()
    )
    versions = f"Python {platform.python_version()}, onnxruntime {version('onnxruntime')} and onnxruntime-web 1.30.0"
    text = f"""# The page and the server

Written by `python benchmarks/web.py {" ".join(sys.argv[1:])}` at commit {commit()}: foley 1 where no instrument is named,
{browser} (headless, one thread of wasm), {versions}, {cores()} cores
(load before: {load:.1f}). One 16-bit step is 1/32768 of full scale.

{table(["what", "measured", "target"], rows)}
"""
    write_text(config.out / "web.md", text)
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Config))
