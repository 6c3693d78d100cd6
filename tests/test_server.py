"""The server: a real one on a free port of this machine, asked by sockets and urllib."""

import asyncio
import concurrent.futures
import gzip
import hashlib
import http.client
import io
import json
import runpy
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from foleybox.audio import read_wave
from foleybox.studio.extend import finished
from foleybox.studio.latents import vary
from foleybox.studio.recipe import read_recipe
from foleybox.studio.shape import Shape
from foleybox.studio.synth import Synth

pytest.importorskip("fastapi", reason="of the serve extra")

from helpers_web import Running

from foleybox.web.guard import MOST_BODY, Guard

SOUND = "/v1/sounds/foley/dog_bark/5.wav"  # rendered in little time


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with Running([Synth.load("foley"), Synth.load("foley-small")]) as running:
        yield running


class Answer:
    """An answer of the server."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    server: Running, path: str, method: str = "GET", body: Any = None, headers: dict[str, str] | None = None
) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        content = json.dumps(body) if isinstance(body, dict) else body
        fields = {"Content-Type": "application/json"} if isinstance(body, dict) else {}
        connection.request(method, path, content, {**fields, **(headers or {})})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def ended(server: Running, job: dict[str, Any]) -> dict[str, Any]:
    """Wait for the end of a job; return it."""
    for _ in range(600):
        job = ask(server, job["url"]).json
        if job["state"] not in ("queued", "running"):
            return job
        time.sleep(0.05)
    raise AssertionError(job)


# --- sounds -------------------------------------------------------------------------------------------------------


def test_a_sound_is_the_file_that_the_command_line_writes(server: Running, tmp_path: Path) -> None:
    answer = ask(server, "/v1/sounds/foley/dog_bark/5.wav?lufs=-26&seconds=1.5")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "audio/wav")
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    synth = server.synths[0]
    finished(synth, synth.render("dog_bark", 5), Shape(lufs=-26.0, seconds=1.5)).save(tmp_path / "a.wav")
    assert answer.body == (tmp_path / "a.wav").read_bytes()


def test_flac_and_json_are_of_the_same_sound(server: Running, tmp_path: Path) -> None:
    for suffix in ("wav", "flac", "json"):
        (tmp_path / f"a.{suffix}").write_bytes(ask(server, SOUND.replace("wav", suffix)).body)
    assert np.array_equal(read_wave(tmp_path / "a.wav")[0], read_wave(tmp_path / "a.flac")[0])
    about = json.loads((tmp_path / "a.json").read_text())
    recipe = read_recipe(tmp_path / "a.wav")
    assert recipe is not None
    assert about["recipe"] == json.loads(recipe.to_json())
    assert (about["label"], about["seed"], about["seconds"]) == ("DogBark", 5, 4.0)
    assert about["true_peak_db"] <= -1


def test_neighbours_of_a_sound_are_those_of_vary(server: Running, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(ask(server, f'{SOUND}?via=[["vary",0.3,2]]'.replace('"', "%22")).body)
    synth = server.synths[0]
    clip = next(vary(synth, synth.render("dog_bark", 5).recipe.make, 0.3, 2, batch=1))
    finished(synth, clip, Shape()).save(tmp_path / "b.wav")
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    morph = ask(server, f'{SOUND.replace("wav", "json")}?via=[["morph",0.5,["rain",1]]]'.replace('"', "%22")).json
    assert morph["recipe"]["make"]["to"]["label"] == "Rain"


def test_neighbours_that_are_asked_for_at_once_are_rendered_together(server: Running) -> None:
    steps = [["vary", 0.3, seed] for seed in (0, 1, 5)] + [["morph", at, ["rain", 2]] for at in (0.25, 0.75)]
    paths = [f"{SOUND}?via={quote(json.dumps([step]))}" for step in steps]
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        batches = server.studio.renders.batches
        together = list(pool.map(lambda path: ask(server, path).body, paths))
    assert server.studio.renders.batches - batches < 5
    assert [ask(server, path).body for path in paths] == together
    assert len(set(together)) == 5


def test_a_known_tag_is_answered_without_rendering(server: Running) -> None:
    tag = ask(server, SOUND).headers["ETag"]
    before = server.studio.renders.count
    answer = ask(server, SOUND, headers={"If-None-Match": f'"other", {tag}'})
    assert (answer.status, answer.body, server.studio.renders.count) == (304, b"", before)
    assert ask(server, f"{SOUND}?temperature=0.5").headers["ETag"] != tag


def test_an_address_with_the_fingerprint_may_be_kept_for_ever(server: Running) -> None:
    fingerprint = server.synths[0].instrument.fingerprint
    assert "immutable" in ask(server, f"{SOUND}?fingerprint={fingerprint[:16]}").headers["Cache-Control"]
    assert ask(server, SOUND).headers["Cache-Control"] == "no-cache"
    assert ask(server, f"{SOUND}?fingerprint=00000000").status == 404


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("/v1/sounds/foley/cat/5.wav", 404, "unknown label 'cat'"),
        ("/v1/sounds/nobody/rain/5.wav", 404, "no instrument 'nobody'"),
        ("/v1/sounds/foley/rain/9007199254740992.wav", 422, "seed 9007199254740992"),
        ("/v1/sounds/foley/rain/-1.wav", 404, "no sound"),
        ("/v1/sounds/foley/rain/5.exe", 404, "no sound"),
        (f"/v1/sounds/foley/rain/{'9' * 6000}.wav", 404, "no sound"),
        (f"{SOUND}?temperature=11", 422, "temperature 11.0"),
        (f"{SOUND}?seconds=nan", 422, "finite"),
        (f"{SOUND}?seconds=61", 422, "expected 60 at most"),
        (f"{SOUND}?rate=768000", 422, "192,000 Hz at most"),
        (f"{SOUND}?colour=red", 422, "colour"),
        (f"{SOUND}?via=[", 422, "via: expected JSON"),
        (f"{SOUND}?via=" + "[" * 1900, 422, "via"),
        (f"{SOUND}?via=[[%22vary%22,2,1]]", 422, "amount 2"),
        (f"{SOUND}?via=[[%22vary%22,0.1,1e9]]", 422, "via: expected"),
        (f"{SOUND}?via=" + "[" + ",".join(["[%22vary%22,0.1,1]"] * 17) + "]", 422, "16 steps at most"),
        ("/v1/labels?instrument=nobody", 404, "no instrument"),
        ("/v1/jobs/0000", 404, "no such job"),
        ("/../../etc/passwd", 404, "no such address"),
        ("/%2e%2e/%2e%2e/etc/passwd", 404, "no such address"),
        ("/vendor/../server.py", 404, "no such address"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(server: Running, path: str, status: int, sentence: str) -> None:
    answer = ask(server, path)
    assert answer.status == status, answer.body
    assert sentence in answer.json["error"]
    assert len(answer.json["error"]) < 400


# --- many at once -------------------------------------------------------------------------------------------------


def test_concurrent_requests_are_rendered_together_and_give_the_same_bytes(server: Running) -> None:
    paths = [f"/v1/sounds/foley/gunshot/{seed}.wav" for seed in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        batches = server.studio.renders.batches
        together = list(pool.map(lambda path: ask(server, path).body, paths))
    assert server.studio.renders.batches - batches < 4
    assert [ask(server, path).body for path in paths[:1]] == together[:1]


def test_a_full_queue_answers_429_and_a_closed_connection_leaves_it(server: Running) -> None:
    with Running(server.synths, queue=2) as server:
        server.studio.renders.submit(server.wanted("rain", 1, seconds=40.0))  # keeps the renderer busy
        while server.studio.renders.batches == 0 and server.studio.renders._waiting:
            time.sleep(0.01)
        client = socket.create_connection(("127.0.0.1", server.port))
        client.sendall(f"GET {SOUND} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
        while server.studio.renders.open < 2:
            time.sleep(0.01)
        answer = ask(server, SOUND)
        assert answer.status == 429
        assert int(answer.headers["Retry-After"]) >= 1
        client.close()
        for _ in range(100):
            if server.studio.renders.open < 2:
                break
            time.sleep(0.02)
        assert server.studio.renders.open < 2


# --- safety -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Content-Length": "5"}, 400),
        ({"Range": "bytes=" + ",".join("0-" for _ in range(500))}, 200),
    ],
)
def test_requests_of_other_hosts_and_origins_are_refused(server: Running, headers: dict[str, str], status: int) -> None:
    answer = ask(server, "/healthz", headers=headers)
    assert answer.status == status
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert "script-src 'self'" in answer.headers["Content-Security-Policy"]


def test_the_own_origin_is_answered(server: Running) -> None:
    assert ask(server, "/healthz", headers={"Origin": f"http://127.0.0.1:{server.port}"}).status == 200


def test_bodies_are_limited_whatever_they_state(server: Running) -> None:
    assert ask(server, "/v1/perform", "POST", b"", {"Content-Length": str(MOST_BODY + 1)}).status == 413
    assert ask(server, "/v1/perform", "POST", b"{").status == 422
    assert ask(server, "/v1/perform", "POST", {"events": [{"time": 0}] * 2001, "label": "rain"}).status == 422


def test_a_body_that_states_no_length_is_read_up_to_the_limit() -> None:
    sent: list[dict] = []

    async def receive() -> dict:
        return {"type": "http.request", "body": b"x" * 100_000, "more_body": True}

    async def send(message: dict) -> None:
        sent.append(message)

    headers = [(b"host", b"here"), (b"transfer-encoding", b"chunked")]
    scope = {"type": "http", "method": "POST", "path": "/v1/perform", "headers": headers}
    asyncio.run(Guard(None, ["here"])(scope, receive, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 413


def test_a_request_that_does_not_arrive_is_closed(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foleybox.web.guard.REQUEST_SECONDS", 0.4)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost:")
        assert client.recv(1) == b""
    assert ask(server, "/healthz").status == 200


# --- jobs ---------------------------------------------------------------------------------------------------------


def test_a_scene_is_a_job_that_gives_mix_stems_and_licence(server: Running) -> None:
    body = {"events": [{"time": 0.5}, {"time": "0:01", "velocity": 0.5, "seed": 3}], "label": "footstep", "seconds": 2}
    answer = ask(server, "/v1/perform", "POST", body)
    assert (answer.status, answer.headers["Location"]) == (202, answer.json["url"])
    job = ended(server, answer.json)
    assert (job["state"], job["done"]) == ("done", job["total"])
    names = zipfile.ZipFile(io.BytesIO(ask(server, job["files"]["scene.zip"]["url"]).body)).namelist()
    assert {"mix.wav", "stems/Footstep.wav", "markers.csv", "LICENSE.txt"} <= set(names)
    mix = ask(server, job["files"]["mix.wav"]["url"])
    assert len(mix.body) == job["files"]["mix.wav"]["bytes"]
    assert ask(server, f"{job['url']}/other.wav").status == 404
    assert ask(server, job["url"], "DELETE").status == 200
    assert ask(server, job["url"]).status == 404


def test_a_pack_is_a_job(server: Running) -> None:
    body = {"labels": ["gunshot"], "engine": "godot", "selection": {"count": 2}}
    job = ended(server, ask(server, "/v1/pack", "POST", body).json)
    assert job["state"] == "done", job
    names = zipfile.ZipFile(io.BytesIO(ask(server, job["files"]["pack.zip"]["url"]).body)).namelist()
    assert {"GunShot/GunShot.tres", "LICENSE.txt", "manifest.csv"} <= set(names)


def test_a_job_can_be_cancelled_and_too_many_wait_for_none(server: Running) -> None:
    body = {"labels": ["footstep"], "selection": {"count": 60}}
    jobs = [ask(server, "/v1/pack", "POST", body).json]
    while ask(server, jobs[0]["url"]).json["state"] == "queued":
        time.sleep(0.01)
    while (answer := ask(server, "/v1/pack", "POST", body)).status == 202:
        jobs.append(answer.json)
    assert (answer.status, int(answer.headers["Retry-After"])) == (429, 30)
    for job in jobs[1:] + jobs[:1]:
        assert ask(server, job["url"], "DELETE").json["state"] in ("cancelled", "cancelling")
    assert {ended(server, job)["state"] for job in jobs} == {"cancelled"}


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        ("/v1/perform", {}, "a scene of no events"),
        ("/v1/perform", {"events": [{"time": -1}], "label": "rain"}, "time -1"),
        ("/v1/perform", {"events": [{"time": 1}]}, "has no label"),
        ("/v1/perform", {"events": [{"time": 1, "velocity": 2}], "label": "rain"}, "velocity 2"),
        ("/v1/perform", {"surfaces": {"rain": 0.5}, "seconds": 7000}, "600 s at most"),
        ("/v1/perform", {"events": [{"time": 1, "file": "/etc/passwd"}]}, "events.0.file"),
        ("/v1/perform", {"events": [{"time": 1}], "label": "rain", "style": {"variations": 0}}, "variations 0"),
        ("/v1/pack", {"labels": []}, "labels"),
        ("/v1/pack", {"labels": ["cat"]}, "unknown label 'cat'"),
        ("/v1/pack", {"labels": ["rain"], "selection": {"count": 201}}, "expected 1 to 200"),
        ("/v1/pack", {"labels": ["rain"], "selection": {"count": -1}}, "expected 1 to 200"),
        ("/v1/pack", {"labels": ["rain"], "selection": {"seed": -1}}, "seed -1"),
        ("/v1/pack", {"labels": ["rain"], "engine": "other"}, "engine"),
    ],
)
def test_a_job_that_cannot_be_done_is_refused_at_once(server: Running, path: str, body: dict, sentence: str) -> None:
    answer = ask(server, path, "POST", body)
    assert (answer.status, sentence in answer.json["error"]) == (422, True), answer.body


def test_uploads_are_read_by_the_strict_readers(server: Running) -> None:
    answer = ask(server, "/v1/events?name=a.csv", "POST", b"time,label,seed\n0.5,rain,3\n0.25,,\n")
    assert [(each["time"], each["label"], each["seed"]) for each in answer.json["events"]] == [
        (0.25, "", None),
        (0.5, "rain", 3),
    ]
    for name, content in (
        ("../../a.exe", b"x"),
        ("a.wav", b"RIFF1234WAVE"),
        ("a.mid", b"MThd"),
        ("a.json", b"{}"),
        ("a.csv", b""),
    ):
        answer = ask(server, f"/v1/events?name={name}", "POST", content)
        assert answer.status == 422
        assert name.split("/")[-1] in answer.json["error"]
        assert "/tmp" not in answer.json["error"]


# --- about and page -----------------------------------------------------------------------------------------------


def test_the_server_describes_itself(server: Running) -> None:
    assert ask(server, "/healthz").json["status"] == "ok"
    about, _ = ask(server, "/v1/instruments").json
    assert (about["name"], about["licence"], len(about["labels"])) == ("foley", "CC-BY-4.0", 7)
    assert [each["slug"] for each in ask(server, "/v1/labels").json] == about["labels"]
    assert "/v1/perform" in ask(server, "/openapi.json").json["paths"]
    metrics = ask(server, "/metrics").body.decode()
    assert 'foleybox_answers_total{path="/healthz",status="200"}' in metrics
    assert "foleybox_renders_total" in metrics


def test_the_page_is_sent_compressed_where_it_is_so_and_not_changed(server: Running) -> None:
    page = ask(server, "/")
    assert page.headers["Content-Type"].startswith("text/html")
    assert ask(server, "/", headers={"If-None-Match": page.headers["ETag"]}).status == 304
    wasm = "/vendor/ort-wasm-simd-threaded.wasm"
    small = ask(server, wasm, headers={"Accept-Encoding": "gzip"})
    assert (small.headers["Content-Encoding"], small.headers["Content-Type"]) == ("gzip", "application/wasm")
    assert gzip.decompress(small.body) == ask(server, wasm).body
    assert ask(server, "/instruments/foley/decoder.onnx").status == 200
    assert ask(server, "/instruments/foley/instrument.json").status == 404


def test_the_files_of_onnxruntime_web_are_those_of_its_package() -> None:
    root = Path(__file__).parents[1]
    for name, expected in runpy.run_path(str(root / "tools" / "vendor.py"))["FILES"].items():
        content = gzip.decompress((root / "src/foleybox/web/page/vendor" / f"{name}.gz").read_bytes())
        assert hashlib.sha256(content).hexdigest() == expected


def test_threads_and_files_are_gone_when_the_server_has_stopped(server: Running) -> None:
    before = threading.active_count()
    with Running(server.synths) as server:
        folder = Path(server.studio.temporary.name)
        assert ask(server, "/healthz").status == 200
    assert not folder.exists()
    assert threading.active_count() <= before
