"""Fills the settings into `envoy.yaml`.

Knows nothing of what the file says.
"""

import json
from pathlib import Path
from string import Template

from gateway.local_replies import local_replies
from gateway.settings import GatewaySettings

_TEMPLATE = Path(__file__).with_name("envoy.yaml")
# The folder of the Lua files.
_SCRIPTS = Path(__file__).parent
# In a checkout a link to what `make protos` writes; the wheel has the file itself.
_DESCRIPTORS = Path(__file__).with_name("descriptors.binpb")


def render(settings: GatewaySettings) -> str:
    """Returns Envoy's configuration, YAML."""
    return Template(_TEMPLATE.read_text()).substitute(
        GATEWAY_HOST=settings.gateway_host,
        BRAIN_REST_PORT=settings.brain_rest_port,
        CLONING_REST_PORT=settings.cloning_rest_port,
        ENVOY_METRICS_PORT=settings.envoy_metrics_port,
        # JSON is YAML.
        BRAIN_ENDPOINTS=json.dumps([_endpoint(address) for address in settings.brain_address]),
        CLONING_ENDPOINTS=json.dumps([_endpoint(address) for address in settings.cloning_address]),
        CORS_ALLOW_ORIGINS=json.dumps([{"exact": origin} for origin in settings.cors_allow_origins]),
        CONNECTION_IDLE_SECONDS=settings.connection_idle_seconds,
        # Sooner than the servers close it, so that no call meets a connection that is being closed.
        UPSTREAM_IDLE=round(settings.connection_idle_seconds * 0.8, 3),
        ALLOWED_HOSTS=json.dumps(dict.fromkeys(settings.allowed_hosts, True)),
        DEFAULT_HOST=settings.allowed_hosts[0],
        ALLOWED_ORIGINS=json.dumps(dict.fromkeys(settings.cors_allow_origins, True)),
        LOCAL_REPLIES=json.dumps(local_replies()),
        SCRIPTS=_SCRIPTS,
        DESCRIPTORS=_DESCRIPTORS,
    )


def _endpoint(address: str) -> dict[str, object]:
    host, port = address.rsplit(":", 1)
    return {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}
