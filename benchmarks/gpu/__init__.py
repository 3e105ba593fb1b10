"""Numbers and speed of every GPU path, in tables that one command makes."""
