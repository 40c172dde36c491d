"""The programs that are measured; each runs on its own, driven by lines on its standard input."""
