"""What the person who runs the server decides: sizes, key files, settings. Knows the core and no other part."""
