"""Videos and cameras: frames, tracks, segments and subtitles."""
