"""From a SOURCE of images to normalised batches on a device: list, decode, pack once, iterate."""
