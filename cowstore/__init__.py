"""The copy-on-write store of layers, images and snapshots: nothing here yet."""
