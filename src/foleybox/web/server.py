"""The server: sounds, scenes and packs by HTTP, and the page. `foleybox serve` runs it.

    GET  /v1/sounds/{instrument}/{label}/{seed}.wav|.flac|.json    a sound; parameters in the query
    GET  /v1/instruments, /v1/labels
    POST /v1/events?name=x.mid                                     an uploaded file becomes a list of events
    POST /v1/perform, /v1/pack                                     a job: 202 and its address
    GET, DELETE /v1/jobs/{id}                                      its state and progress; cancel
    GET  /v1/jobs/{id}/{file}                                      a file that it made
    GET  /healthz, /metrics, /openapi.json, /                      state, numbers, description, the page

A sound depends on its address alone, so that its tag (ETag) is known before it is rendered. With `fingerprint`, which
binds the address to one instrument, the answer may be kept for ever. Errors are {"error": "one sentence"}.
"""

import asyncio
import contextlib
import gzip
import re
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from starlette.exceptions import HTTPException

from foleybox.audio import Subtype
from foleybox.errors import UserError
from foleybox.files import sha256
from foleybox.studio import pack as packs
from foleybox.studio.engines import Engine
from foleybox.studio.events import RECORDINGS, make_event, read_events
from foleybox.studio.scene import Style, arrange
from foleybox.studio.seeds import SEEDS, check_seed
from foleybox.studio.shape import Shape, check_shape
from foleybox.studio.synth import Synth, check_temperature
from foleybox.version import __version__
from foleybox.web.guard import Connection, Guard
from foleybox.web.jobs import Job, Jobs, SceneRequest, pack_files, scene_files
from foleybox.web.renders import FORMATS, FullError, Renders, Wanted, make_wanted
from foleybox.web.site import CONFIG, config, instrument_files, label_slug, page_files

EVENT_FILES = (".csv", ".tsv", ".txt", ".json", ".mid", ".midi", *RECORDINGS)
TYPES = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8", ".json": "application/json", ".wasm": "application/wasm",
    ".txt": "text/plain; charset=utf-8", ".md": "text/plain; charset=utf-8", ".svg": "image/svg+xml",
    ".onnx": "application/octet-stream", ".wav": "audio/wav", ".zip": "application/zip",
}  # fmt: skip
BY_INSTRUMENT = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    queue: int = 64  # sounds that are rendered or waiting
    seconds: float = 60.0  # of a sound
    scene_seconds: float = 600.0
    events: int = 2_000
    pack: int = 200  # sounds of a pack
    rate: int = 192_000  # Hz


class Strict(BaseModel):
    """A body or query: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


class SoundQuery(Strict):
    """The parameters of a sound."""

    temperature: FiniteFloat = Field(1.0, description="0 to 10; below 1 more typical, above 1 more unusual")
    seconds: FiniteFloat | None = Field(None, description="length")
    trim: FiniteFloat | None = Field(None, description="remove both ends this many dB below the loudest moment")
    fade: FiniteFloat | None = Field(None, description="seconds of a fade-out")
    rate: int | None = Field(None, description="sample rate in Hz")
    lufs: FiniteFloat | None = Field(None, description="loudness of the event, LUFS")
    peak: FiniteFloat | None = Field(None, description="true-peak ceiling, dBTP")
    subtype: Subtype = "PCM_16"
    via: str = Field(
        "", max_length=2_000, description='neighbours of the sound: [["vary", 0.2, 3]], [["morph", 0.5, ["rain", 9]]]'
    )
    fingerprint: str | None = Field(None, pattern="^[0-9a-f]{8,64}$", description="of the instrument: refuse another")


class EventBody(Strict):
    time: FiniteFloat | Annotated[str, Field(max_length=20)]
    label: str = Field("", max_length=64)
    velocity: FiniteFloat | None = None
    seed: int | None = None


class PerformBody(Strict):
    instrument: str | None = None
    events: list[EventBody] = []
    label: str | None = Field(None, max_length=64, description="of the events that have none")
    surfaces: dict[str, FiniteFloat | list[tuple[FiniteFloat, FiniteFloat]]] = Field({}, max_length=20)
    seconds: FiniteFloat | None = None
    seed: int = 0
    style: Style = Style()
    subtype: Subtype = "PCM_16"
    rate: int | None = None


class PackBody(Strict):
    instrument: str | None = None
    labels: list[str] = Field(min_length=1, max_length=20)
    engine: Engine = "none"
    selection: packs.Selection = packs.Selection()


class MissingError(Exception):
    """Something that is asked for by name and does not exist."""


class Studio:
    """The instruments and the work of a server."""

    def __init__(self, synths: Sequence[Synth], limits: Limits) -> None:
        self.synths = {synth.instrument.name: synth for synth in synths}
        self.limits = limits
        self.temporary = tempfile.TemporaryDirectory(prefix="foleybox-")
        folder = Path(self.temporary.name)
        for name in ("sounds", "jobs", "uploads"):
            (folder / name).mkdir()
        self.uploads = folder / "uploads"
        self.renders = Renders(folder / "sounds", limits.queue)
        self.jobs = Jobs(folder / "jobs")
        self.answers: Counter[tuple[str, int]] = Counter()
        self.started = time.time()

    def synth(self, name: str | None) -> Synth:
        """Return an instrument of the server; None for the first."""
        synth = next(iter(self.synths.values())) if name is None else self.synths.get(name)
        if synth is None:
            raise MissingError(f"no instrument {name[:80]!r}: expected {', '.join(self.synths)}")  # pyright: ignore[reportOptionalSubscript]
        return synth

    def close(self) -> None:
        """Stop all work and remove the files."""
        self.jobs.close()
        self.renders.close()
        self.temporary.cleanup()


def build(synths: Sequence[Synth], hosts: Sequence[str], limits: Limits = Limits()) -> FastAPI:
    """Return the application, which plays these instruments (loaded here) for requests whose Host is one of `hosts`.

    `app.state.studio` holds its threads and temporary files: close it in the end.
    """
    for synth in synths:
        assert synth.sessions  # loaded once, before threads need them
    studio = Studio(synths, limits)
    app = FastAPI(title="foleybox", version=__version__, docs_url=None, redoc_url=None)
    app.state.studio = studio
    _add_errors(app)
    _add_sounds(app, studio)
    _add_jobs(app, studio)
    _add_about(app, studio)
    _add_page(app, synths, limits)
    app.add_middleware(Counting, answers=studio.answers)
    app.add_middleware(Guard, hosts=hosts)
    return app


# --- errors and numbers -------------------------------------------------------------------------------------------


def _error(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": sentence}, status, headers=headers)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(UserError)
    async def user_error(_: Request, error: UserError) -> Response:
        return _error(422, " ".join(str(error).split()))

    @app.exception_handler(MissingError)
    async def missing(_: Request, error: MissingError) -> Response:
        return _error(404, str(error))

    @app.exception_handler(FullError)
    async def full(_: Request, error: FullError) -> Response:
        return _error(429, str(error), {"Retry-After": str(error.seconds)})

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(each) for each in first["loc"] if each not in ("query", "body", "path"))[:80]
        return _error(422, f"{where or 'body'}: {first['msg'][:200]}")

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        sentences = {
            404: "no such address: /openapi.json lists those that exist",
            405: "this address does not take that method",
        }
        return _error(error.status_code, sentences.get(error.status_code, str(error.detail)), error.headers)


class Counting:
    """ASGI middleware that counts answers by kind of request and status."""

    def __init__(self, app: Any, answers: Counter[tuple[str, int]]) -> None:
        self.app, self.answers = app, answers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                self.answers[getattr(route, "path", "other"), message["status"]] += 1
            await send(message)

        await self.app(scope, receive, counted)


# --- sounds -------------------------------------------------------------------------------------------------------


def _add_sounds(app: FastAPI, studio: Studio) -> None:
    @app.get("/v1/sounds/{instrument}/{label}/{file}", response_class=Response)
    async def sound(
        request: Request, instrument: str, label: str, file: str, query: Annotated[SoundQuery, Query()]
    ) -> Response:
        """One sound as WAV, FLAC, or JSON (recipe and measurements); `file` is the seed with a suffix, such as 1234.wav."""
        wanted = _wanted(studio, instrument, label, file, query)
        tag = f'"{wanted.tag}"'
        headers = {"ETag": tag, "Cache-Control": BY_INSTRUMENT if query.fingerprint else "no-cache"}
        if _same_tag(request, tag):
            return Response(status_code=304, headers=headers)
        content = await _until_closed(request, studio.renders.submit(wanted))
        if content is None:
            return Response(status_code=499)  # nobody reads it
        name = f"{wanted.synth.instrument.name}_{wanted.label}_{wanted.seed}.{wanted.format}"
        headers["Content-Disposition"] = f'inline; filename="{re.sub(r"[^A-Za-z0-9._-]", "-", name)}"'
        return Response(content, media_type=FORMATS[wanted.format], headers=headers)

    @app.post("/v1/events")
    async def events(request: Request, name: Annotated[str, Query(max_length=200)]) -> dict[str, Any]:
        """Read an uploaded table, MIDI file, label track or recording; `name` is its file name, which states its format."""
        suffix = Path(name).suffix.lower()
        if suffix not in EVENT_FILES:
            raise UserError(
                f"cannot read onsets from {name[-60:]!r}: expected a name that ends in {', '.join(EVENT_FILES)}"
            )
        content = await request.body()
        found = await asyncio.to_thread(_read_upload, studio.uploads, content, suffix, name)
        if len(found) > studio.limits.events:
            raise UserError(f"{name} holds {len(found):,} events: expected {studio.limits.events:,} at most")
        keys = ("time", "label", "velocity", "seed")
        return {"events": [{key: getattr(event, key) for key in keys} for event in found]}


def _wanted(studio: Studio, instrument: str, label: str, file: str, query: SoundQuery) -> Wanted:
    synth = studio.synth(instrument)
    match = re.fullmatch(r"([0-9]{1,16})\.([a-z]{3,4})", file)
    if not match or match[2] not in FORMATS:
        raise MissingError(
            f"no sound {file[:80]!r}: expected a seed from 0 to {SEEDS - 1} and .wav, .flac or .json, such as 1234.wav"
        )
    if query.fingerprint and not synth.instrument.fingerprint.startswith(query.fingerprint):
        found = synth.instrument.fingerprint[:12]
        raise MissingError(
            f"{instrument} has the fingerprint {found}..., not {query.fingerprint[:12]}...: it is another version"
        )
    if (query.seconds or 0) > studio.limits.seconds:
        raise UserError(f"seconds {query.seconds}: expected {studio.limits.seconds:g} at most")
    _check_rate(query.rate, studio.limits)
    try:
        label = synth.resolve(label)
    except UserError as error:
        raise MissingError(str(error)) from None
    shape = Shape(query.trim, query.seconds, query.fade, query.rate, query.lufs, query.peak)
    return make_wanted(synth, label, int(match[1]), query.via, query.temperature, shape, match[2], query.subtype)


def _check_rate(rate: int | None, limits: Limits) -> None:
    if rate is not None and rate > limits.rate:
        raise UserError(f"rate {rate}: expected {limits.rate:,} Hz at most")


def _same_tag(request: Request, tag: str) -> bool:
    return tag in re.split(r"\s*,\s*", request.headers.get("if-none-match", ""))


async def _until_closed(request: Request, future: Any) -> bytes | None:
    """Return the result of a future; cancel it and return None if the client closes the connection before."""

    async def closed() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    waiting, gone = asyncio.wrap_future(future), asyncio.create_task(closed())
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else None
    finally:
        gone.cancel()
        waiting.cancel()  # which cancels the render; no effect on one that is done
        with contextlib.suppress(asyncio.CancelledError):
            await gone


def _read_upload(folder: Path, content: bytes, suffix: str, name: str) -> list:
    """Read events with the strict readers, which take files. Raises UserError that names the client's file."""
    with tempfile.NamedTemporaryFile(dir=folder, suffix=suffix) as file:
        file.write(content)
        file.flush()
        try:
            return read_events(file.name)
        except UserError as error:
            raise UserError(str(error).replace(file.name, name)) from None


# --- jobs ---------------------------------------------------------------------------------------------------------


def _add_jobs(app: FastAPI, studio: Studio) -> None:
    def accepted(job: Job) -> Response:
        return JSONResponse(job.about(), 202, headers={"Location": f"/v1/jobs/{job.id}"})

    @app.post("/v1/perform", status_code=202, response_class=JSONResponse)
    async def perform(body: PerformBody) -> Response:
        """Play events at their times, as `foleybox perform` does: a job that makes mix.wav and scene.zip."""
        wanted = _scene(studio, body)
        return accepted(studio.jobs.submit("perform", partial(scene_files, wanted)))

    @app.post("/v1/pack", status_code=202, response_class=JSONResponse)
    async def pack(body: PackBody) -> Response:
        """Make a set of variations for a game, as `foleybox pack` does: a job that makes pack.zip."""
        synth, wanted = studio.synth(body.instrument), body.selection
        labels = list(dict.fromkeys(synth.resolve(label) for label in body.labels))
        if not 1 <= wanted.count * len(labels) <= studio.limits.pack or wanted.count < 1:
            raise UserError(f"{wanted.count} sounds of {len(labels)} labels: expected 1 to {studio.limits.pack} in all")
        if not 0 <= wanted.apart < 100:
            raise UserError(f"apart {wanted.apart}: expected 0 to 100 dB")
        check_seed(wanted.seed)
        check_seed(wanted.seed + wanted.count * packs.TRIED)
        check_temperature(wanted.temperature)
        check_shape(Shape(seconds=wanted.seconds, lufs=wanted.lufs, peak=wanted.peak, rate=wanted.rate))
        _check_rate(wanted.rate, studio.limits)
        if wanted.seconds > studio.limits.seconds:
            raise UserError(f"seconds {wanted.seconds:g}: expected {studio.limits.seconds:g} at most")
        return accepted(studio.jobs.submit("pack", partial(pack_files, synth, labels, body.engine, wanted)))

    def find(id: str) -> Job:
        job = studio.jobs.jobs.get(id)
        if job is None:
            raise MissingError("no such job: it never existed, was removed, or ended long ago")
        return job

    @app.get("/v1/jobs/{id}")
    async def job_state(id: str) -> dict[str, Any]:
        """The state of a job, its progress, and the files that it made."""
        return find(id).about()

    @app.delete("/v1/jobs/{id}")
    async def job_cancel(id: str) -> dict[str, Any]:
        """Cancel a job that has not ended; remove one that has."""
        job = find(id)
        studio.jobs.cancel(job)
        return {"id": job.id, "state": job.state if job.state != "running" else "cancelling"}

    @app.get("/v1/jobs/{id}/{name}", response_class=FileResponse)
    async def job_file(id: str, name: str) -> Response:
        """A file that a job made."""
        path = find(id).files.get(name)
        if path is None:
            raise MissingError(f"this job has no file {name[:80]!r}")
        return FileResponse(path, media_type=TYPES[path.suffix], filename=name, headers={"Cache-Control": "no-store"})


def _scene(studio: Studio, body: PerformBody) -> SceneRequest:
    """Return a checked scene. Raises UserError for one that cannot be played."""
    synth, limits = studio.synth(body.instrument), studio.limits
    if len(body.events) > limits.events:
        raise UserError(f"{len(body.events):,} events: expected {limits.events:,} at most")
    events = [
        make_event(f"event {number}", each.time, each.label, each.velocity, each.seed)
        for number, each in enumerate(body.events, 1)
    ]
    _, curves = arrange(synth, events, body.label, body.surfaces, body.seconds, body.seed, body.style)
    times = [body.seconds or 0.0, *(event.time for event in events), *(points[-1][0] for points in curves.values())]
    if max(times) > limits.scene_seconds:
        raise UserError(f"a scene of {max(times):g} s: expected {limits.scene_seconds:g} s at most")
    check_shape(Shape(rate=body.rate))
    _check_rate(body.rate, limits)
    return SceneRequest(
        synth, events, body.label, body.surfaces, body.seconds, body.seed, body.style, body.subtype, body.rate
    )  # fmt: skip


# --- about --------------------------------------------------------------------------------------------------------


def _add_about(app: FastAPI, studio: Studio) -> None:
    @app.get("/v1/instruments")
    async def instruments() -> list[dict[str, Any]]:
        """The instruments of this server, the default one first."""
        found = (synth.instrument for synth in studio.synths.values())
        return [
            {
                "name": each.name, "version": each.version, "fingerprint": each.fingerprint, "licence": each.licence.terms,
                "rate": each.rate, "seconds": each.seconds, "labels": [label_slug(name) for name in each.labels],
            }
            for each in found
        ]  # fmt: skip

    @app.get("/v1/labels")
    async def labels(instrument: str | None = None) -> list[dict[str, Any]]:
        """The labels of an instrument."""
        return [{"name": name, "slug": label_slug(name)} for name in studio.synth(instrument).labels]

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Whether the server works."""
        return {"status": "ok", "foleybox": __version__, "open": studio.renders.open}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        """Numbers for Prometheus."""
        renders = studio.renders
        states = Counter(job.state for job in list(studio.jobs.jobs.values()))
        lines = [
            f"foleybox_uptime_seconds {time.time() - studio.started:.0f}",
            f"foleybox_renders_open {renders.open}",
            f"foleybox_renders_total {renders.count}",
            f"foleybox_render_batches_total {renders.batches}",
            f"foleybox_render_busy_seconds_total {renders.busy_seconds:.3f}",
            *(f'foleybox_jobs{{state="{state}"}} {count}' for state, count in sorted(states.items())),
            *(
                f'foleybox_answers_total{{path="{path}",status="{status}"}} {count}'
                for (path, status), count in sorted(studio.answers.items())
            ),
        ]
        return "\n".join(lines) + "\n"


def _add_page(app: FastAPI, synths: Sequence[Synth], limits: Limits) -> None:
    """Serve the files of the page and of the instruments: those of one list, whatever the address."""
    texts = {CONFIG: config(synths, server=True, seconds=limits.seconds, events=limits.events).encode()}
    files: dict[str, Path] = {
        **page_files(),
        **{name: path for synth in synths for name, path in instrument_files(synth).items()},
    }
    tags = {name: f'"{sha256(path)[:32]}"' for name, path in files.items()}

    @app.get("/{name:path}", include_in_schema=False)
    async def page(request: Request, name: str) -> Response:
        name = name or "index.html"
        headers = {"Cache-Control": "no-cache"}
        if name in texts:
            return Response(texts[name], media_type=TYPES[Path(name).suffix], headers=headers)
        path = files.get(name)
        if path is None:
            raise HTTPException(404)
        headers |= {"ETag": tags[name], "Vary": "Accept-Encoding"}
        if _same_tag(request, tags[name]):
            return Response(status_code=304, headers=headers)
        content = await asyncio.to_thread(path.read_bytes)
        if path.suffix == ".gz" and "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
        elif path.suffix == ".gz":
            content = await asyncio.to_thread(gzip.decompress, content)
        return Response(content, media_type=TYPES[Path(name).suffix], headers=headers)


# --- running ------------------------------------------------------------------------------------------------------


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address; port 0: any free port. Raises UserError if it is not free."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen at {host} port {port} ({error}): name another --host or --port") from None


def host_names(host: str, port: int, more: Sequence[str] = ()) -> list[str]:
    """Return the values of the Host header that are answered: this machine's names, `host` and `more`, with the port."""
    names = ["127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host, *more]
    return [f"{name}:{port}" for name in names] + (names if port == 80 else [])


def server_of(app: FastAPI) -> uvicorn.Server:
    """Return a server of the application, to run on a socket of `listen`."""
    settings = uvicorn.Config(
        app, http=Connection, ws="none", lifespan="off", log_level="error", access_log=False, server_header=False,
        h11_max_incomplete_event_size=16_384, timeout_keep_alive=5, timeout_graceful_shutdown=2, loop="asyncio",
    )  # fmt: skip
    return uvicorn.Server(settings)


def serve(
    synths: Sequence[Synth], listening: socket.socket, hosts: Sequence[str], limits: Limits, ready: Callable[[], None]
) -> None:
    """Serve until Ctrl-C; `ready` is called before the first request."""
    app = build(synths, hosts, limits)
    try:
        ready()
        server_of(app).run(sockets=[listening])
    finally:
        app.state.studio.close()
