"""An OSTree repository (archive-z2) that clients push to: kept as libostree keeps it, so that anybody can serve and judge it."""
