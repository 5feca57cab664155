"""What goes, in which order, and how a segment goes without taking along what was promised."""
