"""A server in this process, for the tests of the server and of the page."""

import threading
import time
from collections.abc import Sequence

from foleybox.studio.shape import Shape
from foleybox.studio.synth import Synth
from foleybox.web.renders import Wanted, make_wanted
from foleybox.web.server import Limits, Studio, build, host_names, listen, server_of


class Running:
    """A context manager that serves on a free port of 127.0.0.1."""

    def __init__(self, synths: Sequence[Synth], queue: int = 64) -> None:
        self.synths = synths
        self.socket = listen("127.0.0.1", 0)
        self.port: int = self.socket.getsockname()[1]
        self.app = build(synths, host_names("127.0.0.1", self.port), Limits(queue=queue))
        self.studio: Studio = self.app.state.studio
        self.server = server_of(self.app)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def wanted(self, label: str, seed: int, **shape: float) -> Wanted:
        return make_wanted(self.synths[0], label, seed, "", 1.0, Shape(**shape), "wav", "PCM_16")  # pyright: ignore[reportArgumentType]

    def __enter__(self) -> "Running":
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()
        self.studio.close()
