"""Is everything what it says it is? Looking, telling, repairing, and forgetting for good."""
