"""The page that `aecli eval --report` writes: one HTML file to open from the disk, or to send to a colleague."""
