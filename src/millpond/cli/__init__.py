"""The commands. They read arguments, say what is served, and leave the rest to the supervisor."""
