"""Signatures of video formats: recognize a video by its first bytes."""

from __future__ import annotations

HEAD_BYTES = 4096  # of a file, enough for `looks_like_a_video`

_SIGNATURES = (
    b"\x1aE\xdf\xa3",  # Matroska, WebM
    b"0&\xb2u\x8ef\xcf\x11",  # ASF: WMV
    b"FLV\x01",
    b"DKIF",  # IVF
    b"YUV4MPEG2",
    b"nut/multimedia container",
    b"\x06\x0e+4\x02\x05\x01\x01",  # MXF
    b".RMF",  # RealMedia
    *(b"\x1f\x07\0\x3f", b"\x1f\x07\0\xbf"),  # DV
    # Elementary and program streams begin with a start code. MPEG-1, MPEG-2, MPEG-4:
    *(b"\0\0\1\xba", b"\0\0\1\xb3", b"\0\0\1\xb0"),
)
# Codecs whose first packet marks an Ogg file as a video.
_OGG_VIDEO = (b"\x80theora", b"\x01video", b"OVP80", b"BBCD\0")
# Boxes that a QuickTime or MP4 file may begin with; many old ones have no "ftyp".
_QUICKTIME_BOXES = frozenset((b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"moof"))
# ISO files that hold images or sound alone.
_OTHER_BRANDS = frozenset(
    (
        *(b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
        *(b"M4A ", b"M4B ", b"M4P ", b"crx ", b"jp2 ", b"jxl "),
    )
)
# First NAL units of a stream: H.264's SEI, SPS and delimiter, H.265's VPS, SPS and delimiter.
_H264_UNITS, _H265_UNITS = frozenset((6, 7, 9)), frozenset((32, 33, 35))
# Packets of transport streams: plain, with the time code of camcorders and Blu-rays, with error correction.
_PACKET_BYTES = (188, 192, 204)
_LEAST_PACKETS = 3


def looks_like_a_video(content: bytes) -> bool:
    """Whether `content`, the first bytes of a file, begins as a video does."""
    if content.startswith(_SIGNATURES) or (content[:4] == b"RIFF" and content[8:12] in (b"AVI ", b"AVIX", b"AMV ")):
        return True
    if content[4:8] == b"ftyp":
        start = 16 if content.startswith(b"\0\0\0\1") else 8  # behind a size of 64 bits
        return content[start : start + 4] not in _OTHER_BRANDS
    if content.startswith(b"OggS"):
        return any(codec in content for codec in _OGG_VIDEO)
    return content[4:8] in _QUICKTIME_BOXES or _is_unit_stream(content) or bool(transport_packets(content))


def _is_unit_stream(content: bytes) -> bool:
    """Whether `content` begins with a NAL unit, as raw H.264 and H.265 do (their annexes B)."""
    code = next((code for code in (b"\0\0\0\1", b"\0\0\1") if content.startswith(code)), None)
    if code is None or len(content) < len(code) + 2:
        return False
    first, second = content[len(code)], content[len(code) + 1]
    if first & 0x80:
        return False
    is_h264 = first & 0x1F in _H264_UNITS and (first & 0x60 == 0) == (first & 0x1F in (6, 9))
    return is_h264 or (first >> 1 in _H265_UNITS and first & 1 == 0 and second == 1)


def transport_packets(content: bytes) -> tuple[int, int] | None:
    """Where the sync bytes of an MPEG transport stream begin in `content`, and the bytes of a packet.

    The first packet may be cut. None where `content` is of another format.
    """
    for size in _PACKET_BYTES:
        if len(content) < size * _LEAST_PACKETS:
            continue
        for start in range(size):
            synced = content[start::size]
            if len(synced) >= _LEAST_PACKETS and synced.count(0x47) == len(synced):
                return start, size
    return None
