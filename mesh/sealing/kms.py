"""A master key in AWS KMS, which never leaves it. Knows KMS alone.

The server needs the permissions `kms:Encrypt` and `kms:Decrypt`. See
https://docs.aws.amazon.com/kms/latest/APIReference/API_Decrypt.html for the errors.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from typing import Any

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from mesh.errors import KeyServiceUnavailable
from mesh.sealing.master_keys import WrongKey

# Callers wait for it: a service that is down gets an error, not a wait.
CONNECT_SECONDS = 2.0
READ_SECONDS = 5.0
_ATTEMPTS = 2
# KMS's words for: another key wrapped this. A key that is disabled, or that this server may not use, may come back.
_WRONG_KEY = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})
_THREADS = 4


class KmsMasterKey:
    """A symmetric key of KMS. Connects on first use.

    Args:
        key_id: Its id, ARN or alias.
        endpoint_url: URL of the service; None for AWS.
    """

    def __init__(self, key_id: str, *, endpoint_url: str | None = None) -> None:
        self._key_id = key_id
        self._endpoint_url = endpoint_url
        self._client: Any = None
        self._connecting = asyncio.Lock()
        # Of its own: a service that hangs must not take the threads that others share.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="kms")
        self.name = f"kms-{sha256(key_id.encode()).hexdigest()[:16]}"

    async def wrap(self, data_key: bytes, *, context: str) -> bytes:
        """See `MasterKey.wrap`."""
        try:
            answer = await self._call("encrypt", context, Plaintext=data_key)
        except ClientError as error:
            raise _unavailable(error) from error
        return bytes(answer["CiphertextBlob"])

    async def unwrap(self, wrapped: bytes, *, context: str) -> bytes:
        """See `MasterKey.unwrap`."""
        try:
            answer = await self._call("decrypt", context, CiphertextBlob=wrapped)
        except ClientError as error:
            if error.response["Error"]["Code"] in _WRONG_KEY:
                raise WrongKey from error
            raise _unavailable(error) from error
        return bytes(answer["Plaintext"])

    async def _call(self, operation: str, context: str, **values: bytes) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS + READ_SECONDS):
                async with self._connecting:
                    if self._client is None:
                        self._client = await loop.run_in_executor(self._threads, self._connect)
                call = getattr(self._client, operation)
                request = partial(call, KeyId=self._key_id, EncryptionContext={"aivo": context}, **values)
                answer: dict[str, Any] = await loop.run_in_executor(self._threads, request)
        except (BotoCoreError, TimeoutError) as error:
            raise KeyServiceUnavailable(f"the key service does not answer ({type(error).__name__})") from error
        return answer

    def _connect(self) -> object:
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        )
        client: object = Session().client("kms", endpoint_url=self._endpoint_url, config=config)
        return client


def _unavailable(error: ClientError) -> KeyServiceUnavailable:
    return KeyServiceUnavailable(f"the key service refuses calls ({error.response['Error']['Code']})")
