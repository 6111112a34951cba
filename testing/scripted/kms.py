"""A scripted AWS KMS: it wraps with keys that it makes itself, and refuses as a test says.

It speaks the JSON protocol of https://docs.aws.amazon.com/kms/latest/APIReference, of which `Encrypt` and `Decrypt`.
"""

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

# A fixed nonce would be a fault in a product; the keys of a test wrap nothing that matters.
_NONCE = b"\0" * 12


class ScriptedKms:
    """Answers while `serve` is entered.

    Attributes:
        refusal: The error code of every answer; empty for none.
        calls: Operation, key id and context of every call.
        url: Its address.
    """

    def __init__(self) -> None:
        self.refusal = ""
        self.calls: list[tuple[str, str, str]] = []
        self.url = ""
        self._keys: dict[str, AESGCM] = {}

    @contextlib.contextmanager
    def serve(self) -> Iterator["ScriptedKms"]:
        """Listens on a free loopback port."""
        kms = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, answer = kms.answer(self.headers["x-amz-target"].rpartition(".")[2], request)
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/x-amz-json-1.1")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Prints nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def answer(self, operation: str, request: dict[str, Any]) -> tuple[int, dict[str, str]]:
        """The status and body of an answer."""
        key_id, context = request["KeyId"], json.dumps(request["EncryptionContext"], sort_keys=True)
        self.calls.append((operation, key_id, request["EncryptionContext"]["aivo"]))
        if self.refusal:
            return 400, {"__type": self.refusal, "message": "as the test says"}
        cipher = self._keys.setdefault(key_id, AESGCM(AESGCM.generate_key(256)))
        if operation == "Encrypt":
            wrapped = cipher.encrypt(_NONCE, base64.b64decode(request["Plaintext"]), context.encode())
            return 200, {"CiphertextBlob": base64.b64encode(wrapped).decode(), "KeyId": key_id}
        try:
            data_key = cipher.decrypt(_NONCE, base64.b64decode(request["CiphertextBlob"]), context.encode())
        except InvalidTag:
            return 400, {"__type": "InvalidCiphertextException", "message": ""}
        return 200, {"Plaintext": base64.b64encode(data_key).decode(), "KeyId": key_id}
