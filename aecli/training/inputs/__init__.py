"""What training reads: image sets, loaders, micro-batches."""
