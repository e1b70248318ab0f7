"""Independent re-implementations, written from the report and the papers; they import nothing of aecli."""
