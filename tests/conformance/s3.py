"""A real S3 server on loopback."""

from collections.abc import Iterator
from contextlib import contextmanager

import boto3  # type: ignore[import-untyped]  # it has no types
import pytest
from botocore.config import Config  # type: ignore[import-untyped]  # it has no types
from moto.server import ThreadedMotoServer


@contextmanager
def s3_server() -> Iterator[str]:
    """Serve for as long as this is entered; gives its address."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        yield f"http://{host}:{port}"
    server.stop()


def client(endpoint: str):  # type: ignore[no-untyped-def]  # boto3's are made at run time
    """Return a client of the server."""
    near = Config(proxies={})
    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", config=near)
