"""Playing in the world model: a session, and the page that serves it to this machine alone."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from lapo_cli.core.config import Config
from lapo_cli.core.errors import MissingInputError, UsageError
from lapo_cli.core.pipeline import Options, play, run_stage
from lapo_cli.core.play.server import Server
from lapo_cli.core.progress import Silent
from lapo_cli.core.run_dir import RunDir


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Config], data_dir: object) -> Iterator[Server]:
    run = RunDir.create(tmp_path_factory.mktemp("run") / "run", tiny(), "paper")
    options = Options("cpu", data_dir)  # type: ignore[arg-type]
    run.seed_dir("maze", 0).path.mkdir(parents=True)
    with pytest.raises(MissingInputError, match="train-idm"):
        play(run, run.path, options, Silent(), 0)
    run_stage(run, "idm", [run.seed_dir("maze", 0)], options, Silent())
    with play(run, run.path, options, Silent(), 0) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield serving
        serving.shutdown()


def _ask(server: Server, path: str = "", body: object = None, **headers: str) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        content: bytes = answer.read()
    return content


def _do(server: Server, action: str, **more: int) -> int:
    steps: int = json.loads(_ask(server, body={"do": action, **more}, **{"X-Lapo": "1"}))["steps"]
    return steps


def test_a_person_acts_goes_back_and_starts_again(server: Server) -> None:
    page = _ask(server).decode()
    assert all(name.partition(": ")[2] in page for name in server.session.names)
    first = _ask(server, "frame")
    assert first[:4] == b"RIFF"
    assert _do(server, "act", cluster=0) == 1
    second = _ask(server, "frame")
    assert second != first
    assert _do(server, "act", cluster=len(server.session.names)) == 1  # There is no such cluster.
    assert _do(server, "back") == 0
    assert _ask(server, "frame") == first
    assert _do(server, "back") == 0
    _do(server, "act", cluster=1)
    assert _do(server, "restart") == 0
    assert _ask(server, "frame") != first

    for path, body, headers, code in (
        ("", {"do": "back"}, {}, 403),  # as a form of another site can send it
        ("", None, {"Host": "example.org"}, 403),  # a name that was pointed at this machine
        ("", [], {"X-Lapo": "1"}, 400),
        ("../etc/passwd", None, {}, 404),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            _ask(server, path, body, **headers)
        assert refused.value.code == code

    with pytest.raises(UsageError, match="choose another --port"):
        Server(server.session, "another", server.server_address[1])
