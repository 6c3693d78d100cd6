"""`foleybox serve`: the page and its server (see `web/server.py`)."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from foleybox.commands.page import Instruments
from foleybox.errors import UserError
from foleybox.web.server import Limits, host_names, listen
from foleybox.web.server import serve as run
from foleybox.web.site import load_instruments


@dataclass(frozen=True)
class Serve:
    """Open the page in a browser: choose sounds by listening and looking, place them on a timeline, download them.

    The same server answers programs: /api.html lists the addresses. It answers this machine alone unless --host names
    another address. There are no passwords: put a proxy that asks for one before a server that others can reach.

    Example: foleybox serve --port 8733
    """

    host: Annotated[str, arg(metavar="ADDRESS")] = "127.0.0.1"
    "address to listen at; 0.0.0.0 stands for all of this machine"
    port: Annotated[int, arg(aliases=["-p"], metavar="N")] = 8733
    "port; 0 for any that is free"
    allow_host: Annotated[tuple[str, ...], arg(metavar="NAME...", help_behavior_hint="(default: none)")] = ()
    "further names by which browsers reach the server, such as studio-pc.local"
    instrument: Instruments = ()
    "instruments to play"
    queue: Annotated[int, arg(metavar="N")] = Limits.queue
    "sounds that may be rendered or wait at a time; further requests are answered with 429"


def serve(config: Serve) -> None:
    """Serve until Ctrl-C. Raises UserError for an instrument, an address or a port that cannot be used."""
    synths = load_instruments(config.instrument)
    if not 1 <= config.queue <= 10_000:
        raise UserError(f"--queue {config.queue}: expected 1 to 10000")
    if not 0 <= config.port <= 65_535:
        raise UserError(f"--port {config.port}: expected 0 to 65535")
    with listen(config.host, config.port) as listening:
        port = listening.getsockname()[1]
        hosts = host_names(config.host, port, config.allow_host)
        name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(config.host, config.host)

        def ready() -> None:
            print(f"foleybox is at http://{name}:{port}/ (Ctrl-C stops it)", flush=True)

        run(synths, listening, hosts, Limits(queue=config.queue), ready)
