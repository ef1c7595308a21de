"""Segments worked by hand."""

from __future__ import annotations

import pickle

import pytest

from fer_runtime.results import Face
from fer_runtime.video.results import FrameResult, TrackedFace
from fer_runtime.video.segments import Segment, SegmentBuilder
from fer_runtime.video.subtitles import to_srt


def _frame(time: float, *faces: tuple[int, str], is_cut: bool = False) -> FrameResult:
    return FrameResult(
        path="film",
        frame=round(time * 10),
        time=time,
        faces=tuple(
            TrackedFace(
                track=track,
                face=Face(box=(0, 0, 9, 9), expression=name, confidence=0.5 + time / 10, probabilities={name: 0.5}),
            )
            for track, name in faces
        ),
        is_cut=is_cut,
    )


def test_an_expression_lasts_until_the_next_one() -> None:
    builder = SegmentBuilder()
    assert builder.add(_frame(0.0, (1, "happy"))) == []
    assert builder.add(_frame(1.0, (1, "happy"), (2, "sad"))) == []
    (ended,) = builder.add(_frame(2.0, (1, "angry"), (2, "sad")))
    assert (ended.track, ended.start, ended.end, ended.expression) == (1, 0.0, 2.0, "happy")
    assert ended.confidence == pytest.approx((0.5 + 0.6) / 2)
    assert [(segment.track, segment.start, segment.end) for segment in builder.finish(2.5)] == [
        (2, 1.0, 2.5),
        (1, 2.0, 2.5),
    ]


def test_a_face_that_goes_stays_until_its_next_frame_was_due() -> None:
    builder = SegmentBuilder(max_gap=0.5)
    for time in (0.0, 0.1, 0.2):
        builder.add(_frame(time, (1, "happy")))
    for time in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
        assert builder.add(_frame(time)) == []
    (gone,) = builder.add(_frame(0.9))
    assert gone.start == 0.0
    assert gone.end == pytest.approx(0.3)


def test_a_hole_in_the_film_belongs_to_nobody() -> None:
    builder = SegmentBuilder()
    for time in (0.0, 0.1, 0.2):
        builder.add(_frame(time, (1, "happy")))
    (gone,) = builder.add(_frame(60.0, (2, "happy")))
    assert gone.start == 0.0
    assert gone.end == pytest.approx(0.3)


@pytest.mark.parametrize("seconds", [1.2, 60.0])
def test_segments_of_a_timelapse_have_a_length_and_no_holes(seconds: float) -> None:
    builder = SegmentBuilder()
    ended = [segment for frame in range(3) for segment in builder.add(_frame(frame * seconds, (1, "happy")))]
    assert ended == []
    (segment,) = builder.add(_frame(3 * seconds, (1, "sad")))
    assert segment.start == 0.0
    assert segment.end == pytest.approx(3 * seconds)
    (last,) = builder.finish()
    assert [last.start, last.end] == pytest.approx([3 * seconds, 4 * seconds])


def test_a_single_frame_lasts_as_long_as_the_film() -> None:
    builder = SegmentBuilder()
    builder.add(_frame(0.0, (1, "happy")))
    (segment,) = builder.finish(0.04)
    assert (segment.start, segment.end) == (0.0, 0.04)


def test_a_cut_ends_every_segment_at_once() -> None:
    builder = SegmentBuilder()
    builder.add(_frame(0.0, (1, "happy"), (2, "sad")))
    builder.add(_frame(0.1, (1, "happy")))
    ended = builder.add(_frame(0.2, (3, "happy"), is_cut=True))
    assert [(segment.track, segment.end) for segment in ended] == [(1, 0.2), (2, 0.1)]


def test_segments_keep_nothing_of_faces_that_are_gone() -> None:
    builder = SegmentBuilder(max_gap=1.0)
    sizes = []
    for number in range(100, 900):
        builder.add(_frame(0.1 * number, *([(number, "happy")] if number % 30 == 0 else [])))
        sizes.append(len(pickle.dumps(builder)))
    # Each face is alone in the film, so that one segment is open at most.
    assert max(sizes[100:]) <= max(sizes[:100]) + 40


def test_subtitles_are_subrip() -> None:
    segment = Segment(path="f", track=2, start=3661.5, end=3662.042, expression="sad", confidence=0.654)
    assert to_srt(segment, 7) == "7\n01:01:01,500 --> 01:01:02,042\nface 2: sad 65%\n\n"
