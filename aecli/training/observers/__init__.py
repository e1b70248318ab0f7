"""What watches training: previews, TensorBoard."""
