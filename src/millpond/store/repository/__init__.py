"""A directory as a whole: what lies where, who may open it, and whether its index is to be believed."""
