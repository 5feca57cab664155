"""Numbers as people read them."""


def format_size(size_bytes: int) -> str:
    """A size for reading: ``50 GB``, ``1.5 MB``, ``812 bytes``."""
    if size_bytes < 1000:
        return f"{size_bytes} bytes"
    size, units = size_bytes / 1000, ["kB", "MB", "GB", "TB", "PB", "EB"]
    while size >= 999.95 and len(units) > 1:  # 999.95 would be rounded to "1000.0"
        size, units = size / 1000, units[1:]
    return f"{size:.1f}".removesuffix(".0") + f" {units[0]}"
