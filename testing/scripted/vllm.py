"""A scripted vLLM: the part of its HTTP interface that the engine uses, with slots, and without a model.

For what a real one does too rarely for a test: forgetting adapters, refusing them, and reading them again from disk.
"""

import json
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread

PIECES = ("Plants ", "make ", "food.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighing:
    """A request for log-probabilities: the model's name, the prompts' token ids, and the tokens to weigh."""

    model: str
    prompts: tuple[tuple[int, ...], ...]
    tokens: tuple[int, ...]


class ScriptedVllm:
    """Replies that plants make food. Of the tokens to weigh, the base model likes all alike, an adapter the first most.

    Attributes:
        url: Where it listens.
        base_model: Name of the base model.
        max_rank: Highest rank of an adapter that it takes (`--max-lora-rank`).
        slots: Adapters that it holds, those used last (`--max-loras`); it reads another from its folder again.
        failing_sha256: Digest of an adapter that makes it fail with an internal error; empty for none.
        adapters: Folders of the loaded adapters, by name.
        weighings: All requests for log-probabilities, in order.
        replies: Names of the models of all other completions, in order.
        reads: Names of the adapters that it read from their folders to decode with them, in order.
    """

    def __init__(self, *, base_model: str, max_rank: int = 16, slots: int = 8) -> None:
        self.url = ""
        self.base_model = base_model
        self.max_rank = max_rank
        self.slots = slots
        self.failing_sha256 = ""
        self.adapters: dict[str, Path] = {}
        self.weighings: list[Weighing] = []
        self.replies: list[str] = []
        self.reads: list[str] = []
        self._slots: OrderedDict[str, None] = OrderedDict()
        self._lock = Lock()

    def restart(self) -> None:
        """Forgets all adapters, as after a restart."""
        with self._lock:
            self.adapters.clear()
            self._slots.clear()

    def answer(self, method: str, path: str, body: dict[str, object]) -> tuple[HTTPStatus, object]:
        """Returns the status and the content of the answer to a request."""
        with self._lock:
            match method, path:
                case "GET", "/health":
                    return HTTPStatus.OK, {}
                case "GET", "/v1/models":
                    return HTTPStatus.OK, self._models()
                case "POST", "/v1/load_lora_adapter":
                    return self._load(str(body["lora_name"]), Path(str(body["lora_path"]))), {}
                case "POST", "/v1/unload_lora_adapter":
                    known = self.adapters.pop(str(body["lora_name"]), None) is not None
                    return HTTPStatus.OK if known else HTTPStatus.NOT_FOUND, {}
                case "POST", "/v1/completions":
                    return self._complete(body)
        return HTTPStatus.NOT_FOUND, {}

    def _models(self) -> dict[str, object]:
        base = {"id": self.base_model, "root": self.base_model, "parent": None, "max_model_len": 1024}
        adapters = [
            {"id": name, "root": str(folder), "parent": self.base_model} for name, folder in self.adapters.items()
        ]
        return {"data": [base, *adapters]}

    def _load(self, name: str, folder: Path) -> HTTPStatus:
        config = json.loads((folder / "adapter_config.json").read_text())
        if config["r"] > self.max_rank:
            return HTTPStatus.BAD_REQUEST
        self.adapters[name] = folder
        self._use(name)
        return HTTPStatus.OK

    def _use(self, name: str) -> None:
        if name not in self._slots:
            self.reads.append(name)
        self._slots[name] = None
        self._slots.move_to_end(name)
        if len(self._slots) > self.slots:
            self._slots.popitem(last=False)

    def _complete(self, body: dict[str, object]) -> tuple[HTTPStatus, object]:
        model = str(body["model"])
        if model != self.base_model and model not in self.adapters:
            return HTTPStatus.NOT_FOUND, {}
        if self.failing_sha256 and model.startswith(self.failing_sha256):
            return HTTPStatus.INTERNAL_SERVER_ERROR, {}
        self._use(model)
        if not body.get("stream"):
            return HTTPStatus.OK, self._weigh(model, body)
        self.replies.append(model)
        end = {"index": 0, "text": "", "finish_reason": "stop", "stop_reason": None}
        chunks: list[object] = [{"choices": [{"index": 0, "text": piece}]} for piece in PIECES]
        return HTTPStatus.OK, [*chunks, {"choices": [end]}, {"choices": [], "usage": {"completion_tokens": 4}}]

    def _weigh(self, model: str, body: dict[str, object]) -> dict[str, object]:
        prompts, tokens = body["prompt"], body["logprob_token_ids"]
        assert isinstance(prompts, list)
        assert isinstance(tokens, list)
        self.weighings.append(Weighing(model=model, prompts=tuple(map(tuple, prompts)), tokens=tuple(tokens)))
        steepness = 0.0 if model.startswith("base") else 2.0
        logs = {f"token_id:{token}": -1.0 - steepness * place for place, token in enumerate(tokens)}
        choices = [
            {"index": index, "text": "", "finish_reason": "length", "logprobs": {"top_logprobs": [logs]}}
            for index, _ in enumerate(prompts)
        ]
        return {"choices": choices}


@contextmanager
def serving_vllm(vllm: ScriptedVllm) -> Iterator[ScriptedVllm]:
    """Serves it on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer("GET", {})

        def do_POST(self) -> None:
            self._answer("POST", json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def log_message(self, *_: object) -> None:
            """Logs nothing."""

        def _answer(self, method: str, body: dict[str, object]) -> None:
            status, content = vllm.answer(method, self.path, body)
            if isinstance(content, list):
                text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in content) + "data: [DONE]\n\n"
            else:
                text = json.dumps(content)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    vllm.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield vllm
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
