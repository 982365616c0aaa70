"""Other people's way of doing it, written by ourselves, to be timed beside ours."""
