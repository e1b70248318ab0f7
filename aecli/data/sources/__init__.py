"""Where images come from: folders, zips, shards, data sets by name."""
