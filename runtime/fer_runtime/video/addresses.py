"""Addresses of network streams: which arguments are one, and a name without what must stay secret."""

from __future__ import annotations

import os
import re

# What FFmpeg may open on behalf of each scheme: an HLS playlist or an RTSP description must not name a local file.
PROTOCOLS = {
    "rtsp": "rtsp,rtp,rtcp,udp,tcp",
    "rtsps": "rtsps,rtsp,srtp,rtp,rtcp,udp,tcp,tls",
    "http": "http,https,httpproxy,tcp,tls,crypto",
    "https": "http,https,httpproxy,tcp,tls,crypto",
    "udp": "udp",
}
_ADDRESS = r"([A-Za-z][A-Za-z0-9+.-]*)://\S*[^\s:;,.!?)'\"]"


def is_stream(source: object) -> bool:
    """Whether `source` is the address of a stream, such as `rtsp://host/path`, and no file of that name."""
    if not isinstance(source, str):
        return False
    scheme, separator, _ = source.partition("://")
    return bool(separator) and scheme.lower() in PROTOCOLS and not os.path.lexists(source)


def stream_name(address: str) -> str:
    """`address` as it may be shown: scheme, host and port.

    User and password may stand before the host, but cameras also take them in the path or in the query.
    """
    from urllib.parse import urlsplit  # 5 ms that a run over images does not need

    scheme, _, rest = address.partition("://")
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return f"{scheme}://"
    if "@" in rest[len(parts.netloc) :]:  # a password with a slash: what looks like the host is a part of it
        return f"{scheme}://"
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}" + ("" if port is None else f":{port}")


def hide_addresses(text: str) -> str:
    """`text` with `stream_name` in place of every address of a stream in it."""
    if "://" not in text:
        return text
    return re.sub(_ADDRESS, lambda found: stream_name(found[0]) if found[1].lower() in PROTOCOLS else found[0], text)
