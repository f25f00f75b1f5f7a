"""One run: its folder, what is settled before workers start, its log and progress."""
