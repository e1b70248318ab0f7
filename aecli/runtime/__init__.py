"""What this machine has, and how it is best used."""
